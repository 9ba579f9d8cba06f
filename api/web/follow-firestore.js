// Follows one run by listening to its document, and to its deltas once the reply has outgrown the document. Where
// listening is refused or the connection is lost, the API is asked every few seconds, and the page says so.

import { Problem } from "./api.js";
import { createTeller, fromDocument } from "./firestore-run.js";
import { backoff } from "./follow-sse.js";
import { isTerminal } from "./run.js";

const POLL_MS = 2_500;
/** A listener that was refused is tried again this often: rules may have been deployed meanwhile. */
const LISTEN_AGAIN_MS = 60_000;

/**
 * Starts following. `api` has `readRun`; `source` has `listenRun(runId, {onData, onLost, onRefused})` and
 * `listenDeltas(runId, epoch, {onWhole, onMore, onRefused})`, each returning what ends it.
 */
export function followDocument(runId, api, source, callbacks) {
  const teller = createTeller(callbacks);
  let stopped = false;
  let paused = false;
  let unlisten = null;       // null: nobody listens
  let undelta = null;
  let deltasOf = 0;          // the epoch whose deltas are listened to; 0: none
  let refusedAt = 0;
  let polling = 0;           // which round of polling goes on; 0: none
  let rounds = 0;
  let wake = () => {};

  function listen() {
    unlisten = source.listenRun(runId, {
      onData(data) {
        if (stopped || paused) return;
        if (data === null || data.rolledBack === true) poll();
        else heard(data);
      },
      onLost() {
        if (!stopped && !paused) poll();
      },
      onRefused() {
        if (stopped || paused) return;
        unlistenAll();
        refusedAt = performance.now();
        poll();
      },
    });
  }

  function heard(data) {
    polling = 0;
    wake();
    callbacks.onConnected();
    const run = fromDocument(data);
    if (isTerminal(run.status) && run.text === null) {
      // The whole reply is more than one document: the API puts it together.
      undeltaNow();
      poll();
      return;
    }
    if (run.text !== null || run.status === "queued") undeltaNow();
    if (teller.tell(run)) stop();
    else if (run.text === null && run.status !== "queued" && data.reply > 0) listenDeltas(data.reply);
  }

  function listenDeltas(epoch) {
    if (deltasOf === epoch) return;
    undeltaNow();
    deltasOf = epoch;
    const mine = (act) => (text) => {
      if (!stopped && !paused && deltasOf === epoch) act(text);
    };
    undelta = source.listenDeltas(runId, epoch, {
      onWhole: mine(teller.tellReply),
      onMore: mine(teller.tellMore),
      onRefused: mine(() => {
        undeltaNow();
        poll();
      }),
    });
  }

  function undeltaNow() {
    undelta?.();
    undelta = null;
    deltasOf = 0;
  }

  function unlistenAll() {
    unlisten?.();
    unlisten = null;
    undeltaNow();
  }

  function nap(milliseconds) {
    return new Promise((resolve) => {
      const timer = setTimeout(resolve, milliseconds);
      wake = () => {
        clearTimeout(timer);
        resolve();
      };
    });
  }

  /** Asks the API until a listener speaks again or the run is over. */
  async function poll() {
    if (polling !== 0) return;
    rounds += 1;
    const mine = rounds;
    polling = mine;
    let failures = 0;
    for (;;) {
      let delay = POLL_MS;
      try {
        const run = await api.readRun(runId);
        if (polling !== mine) return;
        failures = 0;
        if (teller.tell(run)) return stop();
        callbacks.onPolling();
      } catch (error) {
        if (polling !== mine) return;
        if (error instanceof Problem && [401, 403, 404].includes(error.status)) {
          stop();
          callbacks.onGone(error);
          return;
        }
        failures += 1;
        delay = Math.max((error?.retryAfterSeconds ?? 0) * 1000, backoff(failures));
        callbacks.onWaiting({ seconds: delay / 1000 });
      }
      await nap(delay);
      if (polling !== mine) return;
      if (unlisten === null && performance.now() - refusedAt > LISTEN_AGAIN_MS) listen();
    }
  }

  function retryNow() {
    if (!stopped && !paused && unlisten === null) listen();
    wake();
  }

  function stop() {
    stopped = true;
    polling = 0;
    unlistenAll();
    wake();
    globalThis.removeEventListener?.("online", retryNow);
  }

  globalThis.addEventListener?.("online", retryNow);
  listen();

  return {
    retryNow,
    stop,
    pause() {
      paused = true;
      polling = 0;
      unlistenAll();
      wake();
    },
    resume() {
      if (!paused || stopped) return;
      paused = false;
      listen();
    },
  };
}
