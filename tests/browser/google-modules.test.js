// How the page follows a run in Firestore, without a browser: documents turned into events, replies that outgrow
// their document, refused listeners, and the way back.

import assert from "node:assert/strict";
import { join } from "node:path";
import { test } from "node:test";

const WEB = join(import.meta.dirname, "../../api/web");
const load = (name) => import(join(WEB, name));

const { createTeller, fromDocument } = await load("firestore-run.js");
const { followDocument } = await load("follow-firestore.js");
const { afterEvent, beforeStream, fromRun } = await load("run.js");
const { Problem } = await load("api.js");
const { signInWords } = await load("words.js");
const { dictionaries } = await load("dictionaries.js");

const time = (text) => ({ toDate: () => new Date(text) });

/** A document as the store writes it. */
function data(sequenceNumber, status, text, more = {}) {
  return {
    id: "run_1", conversationId: "conv_1", userId: "ada", agent: "python", status, waitingReason: null, message: "go", text, truncated: false,
    exitCode: null, error: null, attempts: [], usage: {}, createdAt: time("2026-01-02T03:04:05Z"), startedAt: null, finishedAt: null,
    expireAt: null, metadataJson: "{\"a.b\":\"c\"}", sequenceNumber, rolledBack: false, reply: 1, finalParts: 0, ...more,
  };
}

const run = (...args) => fromDocument(data(...args));

/** What the page shows after each of `states`, told by a teller, and the events themselves. */
function tellAll(...states) {
  let shown = fromRun(run(0, "queued", ""));
  const log = [];
  const texts = [];
  const teller = createTeller({
    onStart() {
      log.push("start");
      shown = beforeStream(shown);
    },
    onEvent(name, event) {
      log.push(name === "delta" ? `delta ${event.text}` : `${name} ${event.status}`);
      shown = afterEvent(shown, name, event);
    },
  });
  for (const state of states) {
    if (typeof state === "function") state(teller);
    else teller.tell(state);
    texts.push(shown.text);
  }
  return { log, texts, shown };
}

test("a document reads as the API's answer", () => {
  const read = fromDocument(data(3, "queued", "", {
    waitingReason: "no_capacity", attempts: [{ number: 1, startedAt: time("2026-01-02T03:04:06Z"), endedAt: null, outcome: null }],
  }));
  assert.deepEqual(read.waiting, { reason: "no_capacity", position: null });
  assert.equal(read.createdAt, "2026-01-02T03:04:05.000Z");
  assert.deepEqual(read.attempts, [{ number: 1, startedAt: "2026-01-02T03:04:06.000Z", endedAt: null, outcome: null }]);
  assert.deepEqual(read.metadata, { "a.b": "c" });
  assert.equal(fromDocument(data(3, "in_progress", null, { waitingReason: "retrying" })).waiting, null);
  assert.equal(fromDocument(data(3, "in_progress", null)).text, null);
});

test("a reply that grows is told in pieces", () => {
  const { log, shown } = tellAll(run(1, "queued", ""), run(2, "in_progress", ""), run(3, "in_progress", "a"), run(4, "in_progress", "ab"),
    run(5, "completed", "ab"));
  assert.deepEqual(log, ["status queued", "start", "delta ", "status in_progress", "delta a", "delta b", "result completed"]);
  assert.equal(shown.text, "ab");
});

test("a page that comes late gets the whole reply first and then its status", () => {
  assert.deepEqual(tellAll(run(7, "in_progress", "abc")).log, ["start", "delta abc", "status in_progress"]);
  assert.deepEqual(tellAll(run(7, "in_progress", "abc"), run(7, "in_progress", "abc")).log.length, 3, "nothing is told twice");
});

test("an attempt that was lost takes its words along, seen or not", () => {
  const seen = tellAll(run(1, "in_progress", "old"), run(2, "queued", "", { waitingReason: "retrying", reply: 0 }), run(3, "in_progress", "new", { reply: 2 }));
  assert.deepEqual(seen.texts, ["old", "", "new"]);
  const unseen = tellAll(run(1, "in_progress", "old"), run(3, "in_progress", "", { reply: 2 }), run(4, "in_progress", "new", { reply: 2 }));
  assert.deepEqual(unseen.texts, ["old", "", "new"]);
});

test("what was read before is not told after what came later", () => {
  const { texts } = tellAll(run(5, "in_progress", "abc"), run(4, "in_progress", "ab"), run(5, "in_progress", "ab"));
  assert.deepEqual(texts, ["abc", "abc", "abc"]);
});

test("a reply that outgrows its document goes on from its pieces", () => {
  const { log, texts } = tellAll(run(1, "in_progress", "ab"), run(2, "in_progress", null), (teller) => teller.tellReply("abcd"),
    (teller) => teller.tellMore("ef"), run(3, "completed", "abcdef"));
  assert.deepEqual(texts, ["ab", "ab", "abcd", "abcdef", "abcdef"]);
  assert.equal(log.filter((entry) => entry === "start").length, 1);
  const late = tellAll(run(2, "in_progress", null), (teller) => teller.tellReply("abcd"));
  assert.deepEqual(late.log, ["status in_progress", "start", "delta abcd"]);
});

/** A source and an API that the test moves, and what the follower says. */
function scene({ reads = [] } = {}) {
  const log = [];
  const listeners = [];
  const source = {
    listenRun(id, callbacks) {
      const listener = { ...callbacks, ended: false };
      listeners.push(listener);
      return () => (listener.ended = true);
    },
    listenDeltas(id, epoch, callbacks) {
      const listener = { ...callbacks, epoch, ended: false };
      listeners.push(listener);
      log.push(`deltas ${epoch}`);
      return () => (listener.ended = true);
    },
  };
  let answered;
  const api = {
    async readRun() {
      log.push("read");
      const next = reads.shift();
      if (next === undefined) return new Promise(() => {}); // an answer that is still on its way
      if (next instanceof Error) throw next;
      return next;
    },
  };
  const heard = (words) => {
    log.push(words);
    answered?.();
  };
  const follower = followDocument("run_1", api, source, {
    onStart: () => log.push("start"),
    onEvent: (name, event) => heard(name === "delta" ? `delta ${event.text}` : `${name} ${event.status}`),
    onConnected: () => log.push("connected"),
    onWaiting: () => heard("waiting"),
    onPolling: () => heard("polling"),
    onGone: ({ status }) => heard(`gone ${status}`),
  });
  /** Waits until the follower has said these words. */
  async function until(words) {
    while (!log.includes(words)) await new Promise((resolve) => (answered = resolve));
  }
  return { log, listeners, follower, until };
}

test("the listener alone tells a run to its end", () => {
  const { log, listeners } = scene();
  listeners[0].onData(data(1, "in_progress", "a"));
  listeners[0].onData(data(2, "completed", "ab"));
  assert.deepEqual(log, ["connected", "start", "delta a", "status in_progress", "connected", "result completed"]);
  assert.ok(listeners[0].ended);
  listeners[0].onData(data(3, "failed", "late"));
  assert.equal(log.at(-1), "result completed", "nothing is said after the end");
});

test("deltas are listened to for the attempt whose reply is too long, and let go with it", async () => {
  const end = { ...run(5, "completed", "long and longer") };
  const { log, listeners, until } = scene({ reads: [end] });
  const [document] = listeners;
  document.onData(data(1, "in_progress", null, { reply: 1 }));
  listeners[1].onWhole("lost");
  document.onData(data(2, "queued", "", { reply: 0, waitingReason: "retrying" }));
  assert.ok(listeners[1].ended);
  listeners[1].onMore(" words");
  document.onData(data(3, "in_progress", null, { reply: 2 }));
  listeners[2].onWhole("long");
  document.onData(data(4, "in_progress", null, { reply: 2 }));
  listeners[2].onMore(" and longer");
  assert.equal(listeners.length, 3, "one listener an attempt");
  document.onData(data(5, "completed", null, { reply: 2 }));
  await until("result completed");
  assert.ok(listeners.every(({ ended }) => ended));
  assert.deepEqual(log.filter((entry) => /^(delta|result|read|polling)/.test(entry)),
    ["deltas 1", "delta lost", "delta ", "deltas 2", "delta long", "delta  and longer", "read", "result completed"]);
});

test("a refused listener means asking the API, and trying again listens again", async () => {
  const { log, listeners, follower, until } = scene({ reads: [run(2, "in_progress", "ab")] });
  listeners[0].onRefused(new Error("permission-denied"));
  await until("polling");
  assert.deepEqual(log, ["read", "start", "delta ab", "status in_progress", "polling"]);
  follower.retryNow();
  listeners[1].onData(data(3, "in_progress", "abc"));
  assert.deepEqual(log.filter((entry) => entry !== "read").slice(4), ["connected", "delta c"]);
  follower.stop();
});

test("without a connection the API is asked, and when that does not answer either, the page says so", async () => {
  const { log, listeners, follower, until } = scene({ reads: [new Problem({}), run(2, "in_progress", "ab")] });
  listeners[0].onData(data(1, "in_progress", "a"));
  listeners[0].onLost();
  await until("waiting");
  assert.equal(listeners[0].ended, false, "the SDK connects again by itself");
  follower.retryNow();
  await until("polling");
  listeners[0].onData(data(3, "completed", "abc"));
  assert.deepEqual(log.slice(-2), ["connected", "result completed"]);
});

test("a listener that speaks again ends the asking, and an answer that was on its way is not heard", async () => {
  let answer;
  const late = new Promise((resolve) => (answer = resolve));
  const { log, listeners, follower } = scene({ reads: [late] });
  listeners[0].onData(data(1, "in_progress", "a"));
  listeners[0].onLost();
  listeners[0].onData(data(2, "in_progress", "ab"));
  answer(run(3, "in_progress", "abc"));
  await late;
  await new Promise((resolve) => setImmediate(resolve));
  assert.deepEqual(log.slice(-3), ["read", "connected", "delta b"]);
  follower.stop();
});

test("a run that is gone, or that was taken back, is asked for once", async () => {
  for (const gone of [null, data(2, "queued", "", { rolledBack: true })]) {
    const { log, listeners, until } = scene({ reads: [new Problem({ status: 404, code: "not_found" })] });
    listeners[0].onData(gone);
    await until("gone 404");
    assert.deepEqual(log, ["read", "gone 404"]);
    assert.ok(listeners[0].ended);
  }
});

test("a page that nobody sees lets its listeners go and takes them up again", () => {
  const { listeners, follower } = scene();
  listeners[0].onData(data(1, "in_progress", null));
  follower.pause();
  assert.deepEqual(listeners.map(({ ended }) => ended), [true, true]);
  follower.resume();
  listeners[2].onData(data(2, "in_progress", null));
  assert.equal(listeners[3].epoch, 1);
  follower.stop();
  assert.ok(listeners.every(({ ended }) => ended));
});

test("every refusal to sign in has words, and a closed window needs none", () => {
  assert.equal(signInWords({ code: "auth/popup-closed-by-user" }), null);
  assert.equal(signInWords({ code: "auth/wrong-password" }), dictionaries.en["problem.auth.credential"]);
  assert.equal(signInWords({ code: "auth/weak-password" }), dictionaries.en["problem.auth.weak-password"]);
  assert.equal(signInWords({ code: "auth/brand-new" }), "Signing in did not work (brand-new).");
  assert.equal(signInWords(new Error("boom")), "Signing in did not work (boom).");
});
