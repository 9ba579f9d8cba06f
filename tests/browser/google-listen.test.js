// The page listens to Firestore: the API alone runs, and the test writes into the emulator as a worker does, so that
// every state is there for as long as it takes to look at it.

import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { startBrowser } from "./support/browser.js";
import { makeAccount, openGate, startGoogle } from "./support/google.js";
import { startServer } from "./support/server.js";

/** What the SDK and the browser say when the connection to Firestore is cut or refused by the test. */
const CUT = [/net::ERR/, /@firebase\/firestore/];
/** Without a connection the SDK asks whether Google's image loads; the page lets it reach nothing that it does not need. */
const PROBE = /www\.google\.com\/images\/cleardot\.gif/;

let google;
let server;
let browser;
const accounts = {};

before(async () => {
  google = await startGoogle("demo-listen");
  server = await startServer({ command: "api", queuedPerUser: 100, ...google.options });
  browser = await startBrowser();
  for (const name of ["ada", "eve", "kim"]) accounts[name] = await makeAccount(google.firebase, `${name}@example.org`);
});

after(async () => {
  await browser?.close();
  await server?.stop();
  await google?.stop();
});

/** A page of `who` that counts what it asks of the API's event stream and of Firestore. */
async function open(who, options = {}) {
  const at = await openGate(browser, server.url, options);
  at.asked = { events: 0, firestore: 0 };
  at.page.on("request", (request) => {
    if (/\/events$/.test(request.url())) at.asked.events += 1;
    if (request.url().startsWith(`http://${google.firestore.host}/`)) at.asked.firestore += 1;
  });
  await at.signIn(accounts[who].email);
  return at;
}

/** The worker's hand on the run that a page has just sent. */
async function take(run) {
  const id = await run.getAttribute("data-run");
  const path = `runs/${id}`;
  let sequenceNumber = Number((await google.read(path)).fields.sequenceNumber.integerValue);
  const write = (fields) => google.write(path, { ...fields, sequenceNumber: (sequenceNumber += 1) });
  return {
    id,
    write,
    start: (epoch = 1) => write({ status: "in_progress", waitingReason: null, startedAt: new Date(), text: "", reply: epoch }),
    say: (text) => write({ text }),
    delta: (epoch, number, text) => google.write(`${path}/deltas/${String(epoch).padStart(6, "0")}-${String(number).padStart(12, "0")}`, {
      sequenceNumber: number, epoch, text, userId: accounts.ada.id, expireAt: new Date(Date.now() + 86_400_000),
    }),
    finish: (fields = {}) => write({ status: "completed", exitCode: 0, finishedAt: new Date(), ...fields }),
  };
}

const shows = (at, text) => at.page.waitForFunction((wanted) => document.querySelector(".reply")?.textContent === wanted, text);

test("a reply is told by Firestore from the first word to the last, and no stream of the API is opened", async () => {
  const at = await open("ada");
  const run = await at.send("say something");
  const worker = await take(run);
  await at.phase(run, "queued");
  await worker.start();
  await at.phase(run, "in_progress");
  await worker.say("one\n");
  await at.phase(run, "streaming");
  await shows(at, "one\n");
  await worker.say("one\ntwo\n");
  await shows(at, "one\ntwo\n");
  await at.screenshot("google-streaming-light");
  await worker.finish({ text: "one\ntwo\nthree\n" });
  await at.phase(run, "completed");
  assert.equal(await at.text(run), "one\ntwo\nthree\n");
  assert.match(await run.locator(".state-facts").innerText(), /exit code 0/);
  assert.equal(at.asked.events, 0);
  assert.ok(at.asked.firestore > 0);
  await at.close();
});

test("a lost attempt takes its words along, and the next one begins again", async () => {
  const at = await open("ada");
  const run = await at.send("be unlucky");
  const worker = await take(run);
  await worker.start(1);
  await worker.say("half of it");
  await shows(at, "half of it");
  await worker.write({ status: "queued", waitingReason: "retrying", text: "", reply: 0 });
  await at.phase(run, "queued");
  await run.getByText("the last attempt was lost, it starts over").waitFor();
  assert.equal(await at.text(run), "");
  await worker.start(2);
  await worker.say("all of it");
  await shows(at, "all of it");
  // So short a turn that the page may see only its end.
  await worker.write({ status: "queued", waitingReason: "retrying", text: "", reply: 0 });
  await worker.start(3);
  await worker.say("third");
  await shows(at, "third");
  await worker.finish();
  await at.phase(run, "completed");
  await at.close();
});

test("a reply that has outgrown its document goes on from its deltas, and those of a lost attempt are no part of it", async () => {
  const at = await open("ada");
  const run = await at.send("say a lot");
  const worker = await take(run);
  await worker.delta(1, 1, "of the attempt that was lost");
  await worker.start(2);
  const pieces = Array.from({ length: 8 }, (_, n) => `${n} ${"x".repeat(10_000)}\n`);
  for (const [n, piece] of pieces.slice(0, 6).entries()) await worker.delta(2, n + 1, piece);
  await worker.say(pieces.slice(0, 6).join(""));
  await shows(at, pieces.slice(0, 6).join(""));
  await worker.delta(2, 7, pieces[6]);
  await worker.write({ text: null });
  await shows(at, pieces.slice(0, 7).join(""));
  await worker.delta(2, 8, pieces[7]);
  await shows(at, pieces.join(""));
  await at.phase(run, "streaming");
  // A page that comes now gets the same from its beginning.
  await at.page.reload();
  await shows(at, pieces.join(""));
  await worker.delta(2, 9, "and more\n");
  await shows(at, `${pieces.join("")}and more\n`);
  await worker.finish({ exitCode: 0 });
  await at.phase(at.run(0), "completed");
  assert.equal(await at.text(at.run(0)), `${pieces.join("")}and more\n`, "the end comes from the API, whole");
  await at.close();
});

test("a reload in the middle goes on where the reply is", async () => {
  const at = await open("ada");
  const worker = await take(await at.send("wait for me"));
  await worker.start();
  await worker.say("before ");
  await shows(at, "before ");
  await at.page.reload();
  await shows(at, "before ");
  await worker.say("before and after");
  await shows(at, "before and after");
  await worker.finish();
  await at.phase(at.run(0), "completed");
  await at.close();
});

/** What the bare SDK answers to whoever is signed in on the page. */
const bare = (at, act, argument) => at.page.evaluate(async ({ body, options, given }) => {
  const [{ initializeApp }, auth, firestore] = await Promise.all(["app", "auth", "firestore"].map((name) => import(`${options.sdk}/firebase-${name}.js`)));
  const app = initializeApp({ apiKey: "emulator", projectId: "demo-listen" }, `bare-${Math.random()}`);
  if (options.email) {
    auth.connectAuthEmulator(auth.getAuth(app), options.auth, { disableWarnings: true });
    await auth.signInWithEmailAndPassword(auth.getAuth(app), options.email, options.password);
  }
  const db = firestore.getFirestore(app);
  const [host, port] = options.firestore.split(":");
  firestore.connectFirestoreEmulator(db, host, Number(port));
  const answer = await globalThis[body](firestore, db, given).then(() => "allowed", (error) => error.code);
  // The emulator speaks HTTP/1.1, and a browser has six connections for it.
  await firestore.terminate(db);
  return answer;
}, { body: act, options: at.bareOptions, given: argument });

test("a stranger's run is refused, to the page and to the bare SDK", async () => {
  const ada = await open("ada");
  const run = await ada.send("mine alone");
  const worker = await take(run);
  await worker.start();
  await worker.say("secret");
  await shows(ada, "secret");
  const conversation = ada.page.url();

  const eve = await open("eve", { expected: [/status of 40[04]/, /permission/i, ...CUT] });
  await eve.page.goto(conversation);
  await eve.page.getByText("There is no such conversation here.").waitFor();
  assert.equal(await eve.runs.count(), 0);
  assert.doesNotMatch(await eve.page.locator("body").innerText(), /secret|mine alone/);

  await eve.page.evaluate(() => {
    Object.assign(globalThis, {
      readRun: ({ doc, getDocFromServer }, db, id) => getDocFromServer(doc(db, "runs", id)),
      listen: ({ doc, onSnapshot }, db, id) => new Promise((heard, refused) => onSnapshot(doc(db, "runs", id), heard, refused)),
      readDeltas: ({ collection, getDocsFromServer }, db, id) => getDocsFromServer(collection(db, "runs", id, "deltas")),
      writeRun: ({ doc, updateDoc }, db, id) => updateDoc(doc(db, "runs", id), { text: "forged" }),
      makeRun: ({ doc, setDoc }, db) => setDoc(doc(db, "runs", "run_forged"), { userId: "forged" }),
      listAll: ({ collection, getDocsFromServer }, db) => getDocsFromServer(collection(db, "runs")),
    });
  });
  for (const email of [accounts.eve.email, null]) {
    eve.bareOptions = {
      sdk: google.firebase.sdk, auth: `http://${google.firebase.auth}`, firestore: google.firestore.host, email, password: "correct horse",
    };
    for (const act of ["readRun", "listen", "readDeltas", "writeRun", "makeRun", "listAll"]) {
      assert.equal(await bare(eve, act, worker.id), "permission-denied", `${act} as ${email}`);
    }
  }
  // The same questions are answered to the owner, so it was the rules that refused.
  eve.bareOptions.email = accounts.ada.email;
  for (const act of ["readRun", "listen", "readDeltas"]) assert.equal(await bare(eve, act, worker.id), "allowed", act);
  assert.equal(await bare(eve, "writeRun", worker.id), "permission-denied", "not even the owner writes");
  await worker.finish();
  await ada.phase(run, "completed");
  await ada.close();
  await eve.close();
});

test("where listening is refused the page asks the API, says so, and listens again when it may", async () => {
  const at = await open("ada", { expected: [/permission/i, ...CUT] });
  await google.deployRules("rules_version = '2'; service cloud.firestore { match /databases/{d}/documents { match /{all=**} { allow read, write: if false; } } }");
  try {
    const run = await at.send("anyway");
    const worker = await take(run);
    await at.page.locator("#connection").getByText("Live updates are not available. Asking the server every few seconds instead.").waitFor();
    await worker.start();
    await worker.say("still ");
    await shows(at, "still ");
    await at.screenshot("google-polling-light");
    await google.deployRules();
    await at.page.locator("#connection").getByRole("button", { name: "Retry now" }).click();
    await at.page.locator("#connection").waitFor({ state: "hidden" });
    await worker.say("still there");
    await shows(at, "still there");
    await worker.finish();
    await at.phase(run, "completed");
  } finally {
    await google.deployRules();
  }
  await at.close();
});

test("a connection to Firestore that is lost is noticed, and found again", async () => {
  const at = await open("ada", { expected: [...CUT, PROBE] });
  const run = await at.send("hold on");
  const worker = await take(run);
  await worker.start();
  await worker.say("a");
  await shows(at, "a");
  const context = at.page.context();
  await context.setOffline(true);
  await at.page.locator("#connection").getByText(/Connection lost\. Trying again/).waitFor();
  await worker.say("ab");
  await context.setOffline(false);
  await shows(at, "ab");
  await worker.say("abc");
  await shows(at, "abc");
  await at.page.locator("#connection").waitFor({ state: "hidden" });
  await worker.finish();
  await at.phase(run, "completed");
  await at.close();
});

test("signing out stops listening", async () => {
  const at = await open("ada");
  const worker = await take(await at.send("do not tell the next one"));
  await worker.start();
  await worker.say("secret");
  await shows(at, "secret");
  await at.page.locator("#side").getByRole("button", { name: "Sign out" }).click();
  await at.page.locator("#gate-form").waitFor();
  const before = at.asked.firestore;
  await worker.say("secret words");
  await at.signIn(accounts.eve.email);
  await at.listed(0);
  assert.equal(at.asked.firestore, before, "a page without a run of its own asks Firestore for nothing");
  assert.doesNotMatch(await at.page.evaluate(() => document.documentElement.outerHTML), /secret/);
  await worker.finish();
  await at.close();
});

test("a run whose conversation is deleted elsewhere is cancelled on the page, too", async () => {
  const at = await open("ada");
  const run = await at.send("to be deleted");
  await at.phase(run, "queued");
  const conversation = /#\/c\/(.+)$/.exec(at.page.url())[1];
  const response = await fetch(`${server.url}/api/conversations/${conversation}`, {
    method: "DELETE", headers: { Authorization: `Bearer ${accounts.ada.token}` },
  });
  assert.equal(response.status, 204);
  await at.phase(run, "cancelled");
  await at.close();
});

test("a run that is removed leaves the page", async () => {
  const at = await open("kim", { expected: [/status of 404/] });
  const worker = await take(await at.send("to be removed"));
  await worker.start();
  await at.phase(at.run(0), "in_progress");
  await google.remove(`runs/${worker.id}`);
  await at.page.getByText("There is no such conversation here.").waitFor();
  assert.equal(await at.runs.count(), 0);
  await at.close();
});

test("from the write to the page it takes milliseconds", async (t) => {
  const at = await open("ada");
  const worker = await take(await at.send("be quick"));
  await worker.start();
  await at.page.evaluate(() => {
    globalThis.seen = [];
    new MutationObserver(() => globalThis.seen.push([document.querySelector(".reply").textContent, Date.now()]))
      .observe(document.querySelector(".reply"), { subtree: true, childList: true, characterData: true });
  });
  const took = [];
  let text = "";
  for (let n = 0; n < 40; n += 1) {
    text += `${n} `;
    await worker.say(text);
    const written = Date.now();
    await shows(at, text);
    const seen = await at.page.evaluate((wanted) => globalThis.seen.find(([shown]) => shown === wanted)[1], text);
    took.push(seen - written);
  }
  took.sort((a, b) => a - b);
  t.diagnostic(`write to page over the write itself: median ${took[20]} ms, p95 ${took[37]} ms, most ${took[39]} ms`);
  // The bar is 60 ms on an idle machine; a test only tells listening from polling, which is late by seconds.
  assert.ok(took[37] <= 1000, `p95 is ${took[37]} ms`);
  await worker.finish();
  await at.close();
});
