// Serves the local copy of Firebase's SDK and the Auth emulator of one project on 127.0.0.1. Started by
// `infra/dev/firebase.sh serve [SDK_PORT [AUTH_PORT [PROJECT]]]`, or with FIREBASE_MODULES and FIREBASE_SDK set. Port 0
// picks one; the first line of output is {"sdk": "http://...", "auth": "host:port"}. With `piped` as the last word it ends when its standard input does.

import { readFile } from "node:fs/promises";
import { createServer } from "node:http";
import { createRequire } from "node:module";
import { join } from "node:path";

const [sdkPort = "0", authPort = "0", project = "demo-quayside", piped] = process.argv.slice(2);
const require = createRequire(join(process.env.FIREBASE_MODULES, "here.js"));
const { createApp } = require("firebase-tools/lib/emulator/auth/server");

const FILES = ["firebase-app.js", "firebase-auth.js", "firebase-firestore.js"];

function sdk() {
  return createServer(async (request, response) => {
    const name = FILES.find((file) => new URL(request.url, "http://sdk").pathname === `/${file}`);
    if (!name) return response.writeHead(404).end();
    const body = await readFile(join(process.env.FIREBASE_SDK, name));
    // Modules of another origin are loaded only when it allows that.
    return response.writeHead(200, { "Content-Type": "text/javascript; charset=utf-8", "Access-Control-Allow-Origin": "*" }).end(body);
  });
}

const listening = (server, port) =>
  new Promise((done, failed) => {
    const listener = server.listen(port, "127.0.0.1", () => done(listener.address().port));
    listener.once("error", failed);
  });

const sdkAt = await listening(sdk(), Number(sdkPort));
const authAt = await listening(await createApp(project), Number(authPort));
console.log(JSON.stringify({ sdk: `http://127.0.0.1:${sdkAt}`, auth: `127.0.0.1:${authAt}` }));
if (piped === "piped") process.stdin.resume().once("end", () => process.exit(0));
