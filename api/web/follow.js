// Follows one run to its end. Two sources tell the same story: the API's event stream, and Firestore itself where
// the page is signed in and may listen to it.
//
// The callbacks: `onStart()` before the reply is told from its first word, `onEvent(name, data)` (`status`, `delta`
// and `result` as in the event stream), `onRun(run)` when the run was read instead (it may be over),
// `onConnected()`, `onWaiting({seconds})` after a lost connection, `onPolling()` when only the API can be asked,
// `onGone(problem)` when the run is not there for us any more.

import { followDocument } from "./follow-firestore.js";
import { followStream } from "./follow-sse.js";
import { documents } from "./session.js";

export { backoff } from "./follow-sse.js";

/** Starts following. Returns `{stop, retryNow, pause, resume}`; after `stop` no callback is called. */
export function followRun(runId, api, callbacks) {
  const source = documents();
  return source === null ? followStream(runId, api, callbacks) : followDocument(runId, api, source, callbacks);
}
