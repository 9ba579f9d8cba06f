// The parts of the page that need no browser: the event-stream parser, a run's state, the following of a
// stream, harmless text, and the words.

import assert from "node:assert/strict";
import { readdir, readFile } from "node:fs/promises";
import { join } from "node:path";
import { test } from "node:test";

const WEB = join(import.meta.dirname, "../../api/web");
const load = (name) => import(join(WEB, name));

const { createParser } = await load("sse.js");
const { afterEvent, afterRead, beforeStream, fromRun, phaseOf } = await load("run.js");
const { backoff, followRun } = await load("follow.js");
const { Problem, retryAfterSeconds } = await load("api.js");
const { harmless } = await load("text.js");
const { dictionaries } = await load("dictionaries.js");
const { choose, formatDuration, t } = await load("i18n.js");
const { endWords, factWords, problemWords, stateWords } = await load("words.js");
const { isUserId, randomId } = await load("identity.js");

const STREAM = [
  "\ufeff: hello\n\n",
  "id: 1\nevent: status\ndata: {\"status\":\"queued\"}\n\n",
  ": keep-alive\n",
  "id:2\r\nevent:delta\r\ndata:one\r\ndata: two\r\n\r\n",
  "id: 3\rdata:  space kept\r\r",
  "unknown: field\ndata\n\n",
  "event: lost\n\n",
  "id: bad\0id\ndata: 한글 🚢\n\n",
  "data: unfinished",
].join("");

const EVENTS = [
  { id: "1", event: "status", data: "{\"status\":\"queued\"}" },
  { id: "2", event: "delta", data: "one\ntwo" },
  { id: "3", event: "message", data: " space kept" },
  { id: "3", event: "message", data: "" },
  { id: "3", event: "message", data: "한글 🚢" },
];

test("the parser reads a stream the same in pieces of any size", () => {
  for (let size = 1; size <= STREAM.length; size += 1) {
    const events = [];
    const parser = createParser((event) => events.push(event));
    for (let from = 0; from < STREAM.length; from += size) parser.feed(STREAM.slice(from, from + size));
    assert.deepEqual(events, EVENTS, `in pieces of ${size}`);
    assert.equal(parser.lastEventId, "3");
  }
});

test("a line of a megabyte in small pieces takes linear time", () => {
  const events = [];
  const parser = createParser((event) => events.push(event));
  const piece = "x".repeat(64);
  const started = performance.now();
  parser.feed("data: ");
  for (let n = 0; n < 16_384; n += 1) parser.feed(piece);
  parser.feed("\n\n");
  assert.equal(events[0].data.length, 1 << 20);
  assert.ok(performance.now() - started < 2_000);
});

const RUN = { id: "run_1", status: "queued", waiting: null, text: "", sequenceNumber: 1 };

test("a run goes from queued to running to replying to done", () => {
  let state = fromRun(RUN);
  assert.equal(phaseOf(state), "queued");
  state = afterEvent(state, "status", { status: "in_progress", waiting: null });
  assert.equal(phaseOf(state), "in_progress");
  state = afterEvent(state, "delta", { text: "a" });
  state = afterEvent(state, "delta", { text: "b" });
  assert.deepEqual([phaseOf(state), state.text, state.appended], ["streaming", "ab", "b"]);
  state = afterEvent(state, "result", { ...RUN, status: "completed", text: "ab" });
  assert.deepEqual([phaseOf(state), state.text, state.appended], ["completed", "ab", null]);
});

test("queued again drops what the lost attempt had said", () => {
  let state = fromRun({ ...RUN, status: "in_progress", text: "half" });
  state = afterEvent(state, "status", { status: "queued", waiting: { reason: "retrying", position: 1 } });
  assert.deepEqual([state.text, state.run.waiting.reason], ["", "retrying"]);
});

test("a stream from the beginning replaces the text that came with the run", () => {
  const read = beforeStream(fromRun({ ...RUN, status: "in_progress", text: "ab" }));
  assert.equal(read.text, "ab", "it is kept until the stream speaks");
  assert.equal(afterEvent(read, "delta", { text: "a" }).text, "a");
  const told = afterEvent(read, "status", { status: "in_progress", waiting: null });
  assert.equal(afterEvent(told, "delta", { text: "ab" }).text, "ab");
});

test("an event without a place in line keeps the place that was read", () => {
  const read = fromRun({ ...RUN, waiting: { reason: "no_capacity", position: 3 } });
  const same = afterEvent(read, "status", { status: "queued", waiting: { reason: "no_capacity", position: null } });
  assert.equal(same.run.waiting.position, 3);
  const other = afterEvent(read, "status", { status: "queued", waiting: { reason: "user_quota", position: null } });
  assert.equal(other.run.waiting.position, null);
});

test("an unknown event changes nothing", () => {
  const state = fromRun(RUN);
  assert.equal(afterEvent(state, "heartbeat", {}), state);
});

test("reading a run again moves its place in line, and never takes a stream's text back", () => {
  const queued = fromRun({ ...RUN, waiting: { reason: "no_capacity", position: 3 } });
  const moved = afterRead(queued, { ...RUN, waiting: { reason: "no_capacity", position: 1 } }, true);
  assert.equal(moved.run.waiting.position, 1);
  const streaming = afterEvent(fromRun({ ...RUN, status: "in_progress" }), "delta", { text: "new" });
  assert.equal(afterRead(streaming, { ...RUN, status: "in_progress", text: "" }, true).text, "new");
  assert.equal(afterRead(streaming, { ...RUN, status: "completed", text: "new end" }, true).text, "new end");
  const done = fromRun({ ...RUN, status: "completed", text: "all" });
  assert.equal(afterRead(done, { ...RUN, status: "in_progress", text: "" }, false), done);
});

test("waiting doubles up to half a minute and is spread", () => {
  assert.deepEqual([1, 2, 3, 9].map((n) => backoff(n, () => 1)), [1_000, 2_000, 4_000, 30_000]);
  assert.deepEqual([1, 2, 3, 9].map((n) => backoff(n, () => 0)), [500, 1_000, 2_000, 15_000]);
});

/** Follows with scripted answers: a function per request to the stream, and the run as it is read. */
async function follow(answers, run) {
  const log = [];
  const asked = [];
  await new Promise((over) => {
    const follower = followRun("run_1", {
      openEvents: async (_, lastEventId) => {
        asked.push(lastEventId);
        return answers[asked.length - 1]();
      },
      readRun: async () => run,
    }, {
      onStart: () => log.push("start"),
      onEvent: (name, data) => {
        log.push(`${name} ${data.text ?? data.status}`);
        if (name === "result") over();
      },
      onRun: ({ status }) => {
        log.push(`run ${status}`);
        over();
      },
      onConnected: () => log.push("connected"),
      onWaiting: () => {
        log.push("waiting");
        queueMicrotask(() => follower.retryNow());
      },
      onGone: ({ status }) => {
        log.push(`gone ${status}`);
        over();
      },
    });
  });
  return { log, asked };
}

const stream = (text) => () => new Response(text);
const event = (id, name, data) => `id: ${id}\nevent: ${name}\ndata: ${JSON.stringify(data)}\n\n`;

test("a lost stream is resumed after the last event that arrived", async () => {
  const { log, asked } = await follow([
    stream(event(1, "status", { status: "in_progress" }) + event(2, "delta", { text: "a" }) + "id: 3\nevent: delta\n"),
    () => Promise.reject(new Problem({})),
    stream(event(3, "delta", { text: "b" }) + event(4, "result", { status: "completed" })),
  ], { status: "in_progress", sequenceNumber: 3 });
  assert.deepEqual(asked, ["", "2", "2"]);
  assert.deepEqual(log, ["connected", "start", "status in_progress", "delta a", "waiting", "waiting", "connected",
    "delta b", "result completed"]);
});

test("a server that has forgotten what it sent is asked from the beginning", async () => {
  const { log, asked } = await follow([
    stream(event(7, "delta", { text: "lost" })),
    stream(event(3, "result", { status: "completed" })),
  ], { status: "queued", sequenceNumber: 2 });
  assert.deepEqual(asked, ["", ""]);
  assert.equal(log.filter((entry) => entry === "start").length, 2);
});

test("204 means to read the run, and a run that ended meanwhile needs no stream", async () => {
  const nothing = () => new Response(null, { status: 204 });
  const ended = { status: "completed", sequenceNumber: 9 };
  assert.deepEqual((await follow([nothing], ended)).log, ["connected", "run completed"]);
  const { log, asked } = await follow([() => Promise.reject(new Problem({}))], ended);
  assert.deepEqual([log, asked.length], [["waiting", "connected", "run completed"], 1]);
});

test("a run that is gone is not asked for again", async () => {
  const { log, asked } = await follow([() => Promise.reject(new Problem({ status: 404, code: "not_found" }))], null);
  assert.deepEqual([log, asked.length], [["gone 404"], 1]);
});

test("control and reordering characters are shown, everything else is left alone", () => {
  assert.equal(harmless("a\tb\nc\r\nd\re"), "a\tb\nc\nd\u240de");
  assert.equal(harmless("\0\x1b[0m\x7f\x85"), "\u2400\u241b[0m\u2421\u2426");
  assert.equal(harmless("\u202e\u2069"), "\u27e8U+202E\u27e9\u27e8U+2069\u27e9");
  const plain = "<b>&amp; 한글 עברית 🚢 \u200d é";
  assert.equal(harmless(plain), plain);
});

test("both languages have the same keys with the same placeholders", async () => {
  const { en, ko } = dictionaries;
  assert.deepEqual(Object.keys(ko), Object.keys(en));
  const holes = (words) => [...words.matchAll(/\{\w+\}/g)].map(String).sort();
  for (const key of Object.keys(en)) {
    assert.deepEqual(holes(ko[key]), holes(en[key]), key);
    assert.ok(ko[key].trim() !== "" && en[key].trim() !== "", key);
  }
});

test("every key that the page uses has words, and every word is used", async () => {
  const files = (await readdir(WEB)).filter((name) => /\.(js|html)$/.test(name) && name !== "dictionaries.js");
  const source = (await Promise.all(files.map((name) => readFile(join(WEB, name), "utf8")))).join("\n");
  const named = [...source.matchAll(/\bt\("([\w.]+)"|data-t(?:-label|-placeholder)?="([\w.]+)"/g)].map(([, a, b]) => a ?? b);
  assert.ok(named.length > 60);
  for (const key of named) assert.ok(key in dictionaries.en, `${key} has no words`);
  const made = /^(phase|waiting|error|problem|empty|settings\.theme)\./;
  for (const key of Object.keys(dictionaries.en)) {
    assert.ok(source.includes(`"${key}"`) || made.test(key), `${key} is never said`);
  }
});

test("no file of the page can turn text into markup or reach another host", async () => {
  for (const name of await readdir(WEB)) {
    const source = await readFile(join(WEB, name), "utf8");
    assert.doesNotMatch(source, /innerHTML|outerHTML|insertAdjacentHTML|document\.write|DOMParser|srcdoc|\beval\(|new Function/, name);
    assert.doesNotMatch(source.replaceAll("http://www.w3.org/2000/svg", ""), /https?:\/\//, name);
    if (name.endsWith(".html")) assert.doesNotMatch(source, /\sstyle=|\son\w+=|<script>|<style/, name);
  }
});

test("every status and every error code has words in both languages", () => {
  const codes = ["exit_nonzero", "oom", "output_invalid", "image_unavailable", "sandbox_error", "attempts_exhausted", "poison"];
  const reasons = ["conversation_busy", "user_quota", "no_capacity", "retrying", "scheduled", "sandbox_not_enforced"];
  const statuses = ["queued", "in_progress", "streaming", "cancelling", "completed", "failed", "timed_out", "cancelled", "expired"];
  for (const words of Object.values(dictionaries)) {
    for (const code of [...codes, "timed_out", "expired", "other"]) assert.ok(words[`error.${code}`], code);
    for (const reason of reasons) assert.ok(words[`waiting.${reason}`], reason);
    for (const status of statuses) assert.ok(words[`phase.${status}`], status);
  }
});

test("a state line carries the reason and the place in line", () => {
  const waiting = { reason: "no_capacity", position: 3 };
  assert.equal(stateWords(fromRun({ ...RUN, waiting })), "Waiting · every place to run is taken · number 3 in line");
  assert.equal(stateWords(fromRun({ ...RUN, waiting: { reason: "brand_new", position: 0 } })), "Waiting · brand_new");
  assert.equal(stateWords(fromRun(RUN)), "Waiting");
  assert.equal(endWords(fromRun({ ...RUN, status: "failed", error: { code: "unheard_of" } })), t("error.other"));
  assert.equal(endWords(fromRun({ ...RUN, status: "completed" })), null);
  const facts = { ...RUN, status: "failed", exitCode: 3, finishedAt: "x", usage: { wallMillis: 3210 }, attempts: [{}, {}] };
  assert.deepEqual(factWords(fromRun(facts)), ["3.2 sec", "exit code 3", "2 attempts"]);
});

test("refusals are told by code, field and status", () => {
  const words = (status, more = {}) => problemWords(new Problem({ status, code: "", ...more }), true);
  assert.equal(words(422, { fields: ["message"], detail: "message is too long" }), "The server did not accept message. message is too long");
  assert.equal(words(409, { code: "conversation_busy" }), t("problem.conversation_busy"));
  assert.equal(words(429, { code: "rate_limited" }), t("problem.429"));
  assert.equal(words(429, { detail: "12 of your runs are waiting" }), t("problem.429"));
  assert.equal(words(503), t("problem.503"));
  assert.equal(words(500), t("problem.5xx"));
  assert.equal(words(418), "That did not work (status 418).");
  assert.equal(problemWords(new Problem({}), true), t("problem.network"));
  assert.equal(problemWords(new Problem({})), t("problem.network.read"));
});

test("Retry-After is read as seconds and as a date", () => {
  assert.equal(retryAfterSeconds("12"), 12);
  assert.equal(retryAfterSeconds(null), null);
  assert.equal(retryAfterSeconds("soon"), null);
  assert.equal(retryAfterSeconds("Thu, 01 Jan 1970 00:00:10 GMT", 4_000), 6);
});

test("languages, ids and durations", () => {
  assert.deepEqual([choose(["ko-KR", "en"], null), choose(["fr", "en-GB"], null), choose(["fr"], null), choose(["ko"], "en")],
    ["ko", "en", "en", "en"]);
  assert.match(randomId("web-"), /^web-[0-9A-Za-z]{22}$/);
  assert.notEqual(randomId(""), randomId(""));
  assert.deepEqual(["a", "", "a b", "한", "x".repeat(128), "x".repeat(129)].map(isUserId), [true, false, false, false, true, false]);
  assert.deepEqual([840, 3_210, 59_949, 125_000].map(formatDuration), ["840 ms", "3.2 sec", "59.9 sec", "2 min 5 sec"]);
});
