// The whole way on Google's side, with nothing played: an API and a worker as processes of their own, joined by the
// Pub/Sub and Firestore emulators, and a page that signs in and listens.

import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { counting, startBrowser } from "./support/browser.js";
import { makeAccount, openGate, startGoogle } from "./support/google.js";
import { startServer, startWorker } from "./support/server.js";

let google;
let api;
let worker;
let browser;
const accounts = {};

before(async () => {
  google = await startGoogle("demo-run");
  api = await startServer({ command: "api", ...google.options });
  worker = await startWorker(google.options);
  browser = await startBrowser();
  for (const name of ["ada", "eve"]) accounts[name] = await makeAccount(google.firebase, `${name}@example.org`);
});

after(async () => {
  await browser?.close();
  await Promise.all([api?.stop(), worker?.stop()]);
  await google?.stop();
});

async function open(who, options = {}) {
  const at = await openGate(browser, api.url, options);
  at.page.on("request", (request) => {
    if (/\/events$/.test(request.url())) at.wrongs.push(`the page opened ${request.url()}`);
  });
  await at.signIn(accounts[who].email);
  return at;
}

test("a message is sent, runs, is told while it runs, and a reload goes on where it is", async () => {
  const at = await open("ada");
  const { message, output } = counting(16, 0.4);
  const run = await at.send(message);
  await at.phase(run, "streaming");
  await at.page.waitForFunction(() => document.querySelector(".reply").textContent.includes("line 3\n"));
  await at.phase(run, "streaming");
  await at.screenshot("google-run-light");
  await at.page.reload();
  await at.phase(at.run(0), "streaming");
  await at.phase(at.run(0), "completed");
  assert.equal(await at.text(at.run(0)), output);
  await at.listed(1);
  await at.close();
});

test("a reply over the size of a document is told whole, while it runs and at its end", async () => {
  const at = await open("ada");
  const run = await at.send("import time\nfor n in range(12):\n    print(n, 'x' * 20000, flush=True)\n    time.sleep(0.3)");
  await at.page.waitForFunction(() => document.querySelector(".reply")?.textContent.length > 100_000);
  await at.phase(run, "completed");
  const expected = Array.from({ length: 12 }, (_, n) => `${n} ${"x".repeat(20_000)}\n`).join("");
  assert.equal(await at.text(run), expected);
  await at.page.reload();
  await at.phase(at.run(0), "completed");
  assert.equal(await at.text(at.run(0)), expected);
  await at.close();
});

test("a run is cancelled from the page", async () => {
  const at = await open("ada");
  const run = await at.send(counting(200, 0.2).message);
  await at.phase(run, "streaming");
  await run.getByRole("button", { name: "Cancel" }).click();
  await at.phase(run, "cancelled");
  assert.match(await at.text(run), /^line 1\n/);
  await at.close();
});

test("a stranger opens the address of a run that is running and gets nothing", async () => {
  const ada = await open("ada");
  const run = await ada.send(counting(12, 0.3).message);
  await ada.phase(run, "streaming");
  const eve = await open("eve", { expected: [/status of 404/] });
  await eve.page.goto(ada.page.url());
  await eve.page.getByText("There is no such conversation here.").waitFor();
  assert.equal(await eve.runs.count(), 0);
  await eve.close();
  await ada.phase(run, "completed");
  await ada.page.locator("#side").getByRole("button", { name: "Sign out" }).click();
  await ada.page.locator("#gate-form").waitFor();
  assert.doesNotMatch(await ada.page.evaluate(() => document.documentElement.outerHTML), /line 1/);
  await ada.close();
});
