// Follows one run's event stream to its end, through lost connections: resumes with Last-Event-ID,
// waits longer after every failure, and tells the page when it waits so that a person can hurry it.
// What the callbacks mean is written in follow.js.

import { Problem } from "./api.js";
import { isTerminal } from "./run.js";
import { createParser } from "./sse.js";

/** The server sends a comment every 15 s; three missed ones mean that nobody is there any more. */
const SILENCE_MS = 45_000;
const FIRST_DELAY_MS = 1_000;
const LONGEST_DELAY_MS = 30_000;

/** Milliseconds to wait before attempt `failures` + 1: doubling, half of it random so that pages spread out. */
export function backoff(failures, random = Math.random) {
  const full = Math.min(LONGEST_DELAY_MS, FIRST_DELAY_MS * 2 ** (failures - 1));
  return full / 2 + (full / 2) * random();
}

/** Starts following. `api` has `openEvents` and `readRun`. */
export function followStream(runId, api, callbacks) {
  let stopped = false;
  let paused = false;
  let lastEventId = "";
  let failures = 0;
  let abort = new AbortController();
  let wake = () => {};

  function nap(milliseconds) {
    return new Promise((resolve) => {
      const timer = milliseconds === null ? null : setTimeout(resolve, milliseconds);
      wake = () => {
        clearTimeout(timer);
        resolve();
      };
    });
  }

  async function loop() {
    while (!stopped) {
      if (paused) {
        await nap(null);
        continue;
      }
      abort = new AbortController();
      try {
        if (failures > 0 && (await caughtUp())) return;
        if (await readStream(abort.signal)) return;
      } catch (error) {
        if (stopped || paused) continue;
        if (error instanceof Problem && [401, 403, 404].includes(error.status)) {
          callbacks.onGone(error);
          return;
        }
        failures += 1;
        const asked = (error?.retryAfterSeconds ?? 0) * 1000;
        const delay = Math.max(asked, backoff(failures));
        callbacks.onWaiting({ seconds: delay / 1000 });
        await nap(delay);
      }
    }
  }

  /** Reads the run after a lost connection. True when it is over and no stream is needed. */
  async function caughtUp() {
    const run = await api.readRun(runId);
    if (stopped) return true;
    // A server that is behind what we saw has lost unstored deltas in a crash: begin again.
    if (lastEventId !== "" && run.sequenceNumber < Number(lastEventId)) lastEventId = "";
    if (!isTerminal(run.status)) return false;
    failures = 0;
    callbacks.onConnected();
    callbacks.onRun(run);
    return true;
  }

  /** Reads one connection. True at the run's end; throws when the connection ends before. */
  async function readStream(signal) {
    const response = await api.openEvents(runId, lastEventId, signal);
    if (stopped) return true;
    if (response.status === 204) {
      const run = await api.readRun(runId);
      if (!isTerminal(run.status)) throw new Problem({ detail: "no stream for a run that is not over" });
      failures = 0;
      if (!stopped) {
        callbacks.onConnected();
        callbacks.onRun(run);
      }
      return true;
    }
    failures = 0;
    callbacks.onConnected();
    if (lastEventId === "") callbacks.onStart();
    let ended = false;
    const parser = createParser(({ id, event, data }) => {
      if (stopped || ended) return;
      lastEventId = id;
      ended = event === "result";
      callbacks.onEvent(event, JSON.parse(data));
    });
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    while (!ended && !stopped) {
      const { done, value } = await withinSilence(reader);
      if (done) break;
      parser.feed(value);
    }
    abort.abort();
    if (ended || stopped) return true;
    throw new Problem({ detail: "the stream ended before the run" });
  }

  async function withinSilence(reader) {
    const timer = setTimeout(() => abort.abort(), SILENCE_MS);
    try {
      return await reader.read();
    } finally {
      clearTimeout(timer);
    }
  }

  const retryNow = () => wake();
  globalThis.addEventListener?.("online", retryNow);
  loop().finally(() => globalThis.removeEventListener?.("online", retryNow));

  return {
    retryNow,
    stop() {
      stopped = true;
      abort.abort();
      wake();
    },
    /** Lets the connection go (a hidden page needs none, and a browser has only six for a host). */
    pause() {
      paused = true;
      abort.abort();
      wake();
    },
    resume() {
      paused = false;
      wake();
    },
  };
}
