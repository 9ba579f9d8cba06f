// One run as the page knows it: a pure state, changed by what the server says. No DOM and no clock here.
//
// A state is `{run, text, appended, provisional}`: the run as the server told it, the reply so far, the piece
// by which the last event made it longer (null when it was replaced or left alone), and whether the text is
// about to be told again by a stream that starts from its beginning.

export const TERMINAL = ["completed", "failed", "timed_out", "cancelled", "expired"];

/** Whether nothing more will happen to a run with this status. */
export const isTerminal = (status) => TERMINAL.includes(status);

/**
 * What the page shows of a run: its status, and "streaming" once an attempt that runs has said something.
 */
export function phaseOf({ run, text }) {
  return run.status === "in_progress" && text !== "" ? "streaming" : run.status;
}

/** The state of a run as it was read from the server. */
export const fromRun = (run) => ({ run, text: run.text ?? "", appended: null, provisional: false });

/**
 * The event stream is about to be read from its beginning: the text shown now came with the run and is
 * kept only until the stream's first event, which starts to tell the same text again.
 */
export const beforeStream = (state) => ({ ...state, appended: null, provisional: true });

/** Events do not count the line: while the reason stays the same, the place that was last read still holds. */
function placed(waiting, before) {
  if (waiting === null || waiting.position || waiting.reason !== before?.reason) return waiting;
  return { ...waiting, position: before.position };
}

/** The state after one event of the stream; `data` is the event's parsed JSON. */
export function afterEvent(state, event, data) {
  if (event === "delta" && state.provisional) {
    return { ...state, text: data.text, appended: null, provisional: false };
  }
  if (event === "delta") return { ...state, text: state.text + data.text, appended: data.text };
  if (event === "result") return fromRun(data);
  if (event !== "status") return state;
  const run = { ...state.run, status: data.status, waiting: placed(data.waiting ?? null, state.run.waiting) };
  // Queued again means that the attempt was lost: the next one tells its reply from the first word.
  const text = data.status === "queued" || state.provisional ? "" : state.text;
  return { run, text, appended: null, provisional: false };
}

/**
 * The state after the run was read again while its stream may be open. The stream is the authority on
 * everything but the place in the queue, which moves without an event, and the end.
 */
export function afterRead(state, run, streamed) {
  if (isTerminal(state.run.status)) return state;
  if (isTerminal(run.status) || !streamed) return fromRun(run);
  if (run.status === "queued" && state.run.status === "queued") {
    return { ...state, run: { ...state.run, waiting: run.waiting }, appended: null };
  }
  return state;
}
