// Google's Firestore emulator and Firebase's parts, for the tests of the rules and of the signed-in page. What is not
// installed is installed by the scripts that are named here, or they say what to do.

import { execFile, spawn } from "node:child_process";
import { createServer } from "node:net";
import { createRequire } from "node:module";
import { join, resolve } from "node:path";
import { createInterface } from "node:readline";
import { promisify } from "node:util";

export const REPOSITORY = resolve(import.meta.dirname, "../../..");
const START_MS = 60_000;

/** Values that a set-up script prints as NAME=value lines; what the environment has already is taken as it is. */
async function setUp(script, ...names) {
  if (names.every((name) => process.env[name])) return process.env;
  const { stdout } = await promisify(execFile)(join(REPOSITORY, "infra/dev", script)).catch((error) => {
    throw new Error(`infra/dev/${script} could not set up what this test needs:\n${error.stderr}`);
  });
  return Object.fromEntries(stdout.trim().split("\n").map((line) => [line.slice(0, line.indexOf("=")), line.slice(line.indexOf("=") + 1)]));
}

/** Loads a package of tests/rules/package.json from where infra/dev/firebase.sh installs it. */
export async function firebasePackages() {
  const { FIREBASE_MODULES } = await setUp("firebase.sh", "FIREBASE_MODULES", "FIREBASE_SDK");
  return createRequire(join(FIREBASE_MODULES, "here.js"));
}

function freePort() {
  return new Promise((done, failed) => {
    const server = createServer().once("error", failed);
    server.listen(0, "127.0.0.1", () => {
      const { port } = server.address();
      server.close(() => done(port));
    });
  });
}

/** Starts a program and waits for the line that `ready` takes (it returns something for it). */
async function start(command, args, options, ready) {
  const child = spawn(command, args, { stdio: ["pipe", "pipe", "pipe"], ...options });
  const ended = new Promise((done) => child.once("exit", done));
  const output = [];
  let timer;
  const found = await new Promise((done, failed) => {
    timer = setTimeout(() => failed(new Error(`${command} was not ready within ${START_MS} ms`)), START_MS);
    const read = (line) => {
      output.push(line);
      const what = ready(line);
      if (what) done(what);
    };
    createInterface({ input: child.stdout }).on("line", read);
    createInterface({ input: child.stderr }).on("line", read);
    child.once("error", failed);
    ended.then((code) => failed(new Error(`${command} ended at once (${code})`)));
  }).catch((error) => {
    child.kill("SIGKILL");
    throw new Error(`${error.message}\n${output.slice(-20).join("\n")}`);
  }).finally(() => clearTimeout(timer));
  return {
    found,
    async stop() {
      child.kill("SIGKILL");
      await ended;
    },
  };
}

const JAVA = ["java", "-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Duser.language=en"];

/** Runs a program of Java's until `stop()`. It dies with this process, also when that is killed. */
const startJava = (classPath, main, port, ready) =>
  start("setpriv", ["--pdeathsig", "KILL", ...JAVA, "-cp", classPath, main, "--host=127.0.0.1", `--port=${port}`], {}, ready);

/** A Firestore emulator of one's own: `{host, stop()}`. */
export async function startFirestore() {
  const { FIRESTORE_EMULATOR_JAR } = await setUp("emulators.sh", "FIRESTORE_EMULATOR_JAR");
  const port = await freePort();
  const { stop } = await startJava(FIRESTORE_EMULATOR_JAR, "com.google.cloud.datastore.emulator.firestore.CloudFirestore", port,
    (line) => line.includes("Dev App Server is now running"));
  return { host: `127.0.0.1:${port}`, stop };
}

/** A Pub/Sub emulator of one's own: `{host, stop()}`. */
export async function startPubsub() {
  const { PUBSUB_EMULATOR_JAR, PUBSUB_EMULATOR_SHIM } = await setUp("emulators.sh", "PUBSUB_EMULATOR_JAR");
  const classPath = [PUBSUB_EMULATOR_SHIM, PUBSUB_EMULATOR_JAR].filter(Boolean).join(":");
  const port = await freePort();
  const { stop } = await startJava(classPath, "com.google.cloud.pubsub.testing.v1.Main", port, (line) => line.includes("Server started"));
  return { host: `127.0.0.1:${port}`, stop };
}

/** Firebase's Auth emulator for one project and a local copy of its SDK: `{sdk, auth, stop()}`. */
export async function startFirebase(project) {
  const environment = await setUp("firebase.sh", "FIREBASE_MODULES", "FIREBASE_SDK");
  const env = { ...process.env, FIREBASE_MODULES: environment.FIREBASE_MODULES, FIREBASE_SDK: environment.FIREBASE_SDK };
  const { found, stop } = await start(process.execPath, [join(REPOSITORY, "infra/dev/firebase.mjs"), "0", "0", project, "piped"], { env },
    (line) => line.startsWith("{") && JSON.parse(line));
  return { ...found, stop };
}
