// A run as Firestore keeps it, told to the page in the words of the event stream. No DOM, no clock, no SDK.

import { isTerminal } from "./run.js";

const moment = (timestamp) => timestamp?.toDate().toISOString() ?? null;

/**
 * The run document in the shape of the API's answer. Its `text` is null where the reply has outgrown the
 * document. The place in the queue is not in it: only the API counts the line.
 */
export function fromDocument(data) {
  return {
    id: data.id,
    conversationId: data.conversationId,
    batchId: data.batchId ?? null,
    customId: data.customId ?? null,
    userId: data.userId,
    agent: data.agent,
    status: data.status,
    waiting: data.status === "queued" && data.waitingReason ? { reason: data.waitingReason, position: null } : null,
    message: data.message,
    text: data.text ?? null,
    truncated: data.truncated === true,
    exitCode: data.exitCode ?? null,
    error: data.error ?? null,
    attempts: (data.attempts ?? []).map((attempt) => ({
      ...attempt, startedAt: moment(attempt.startedAt), endedAt: moment(attempt.endedAt),
    })),
    usage: data.usage ?? {},
    createdAt: moment(data.createdAt),
    startedAt: moment(data.startedAt),
    finishedAt: moment(data.finishedAt),
    expireAt: moment(data.expireAt),
    metadata: JSON.parse(data.metadataJson ?? "{}"),
    sequenceNumber: data.sequenceNumber,
  };
}

/**
 * Turns whole states into events. `tell(run)` says what is new in it and returns whether that was the end;
 * a state that is older than what was told is left out. `tellReply(text)` and `tellMore(piece)` are for a reply
 * that is read apart from its run.
 */
export function createTeller({ onStart, onEvent }) {
  let told = null;  // the reply as the page has it from here; null: it has not been told yet
  let status = null;
  let reason = null;
  let sequenceNumber = -1;

  function tellReply(text) {
    if (text === told) return;
    if (told !== null && text.startsWith(told)) {
      onEvent("delta", { text: text.slice(told.length) });
    } else {
      onStart();
      onEvent("delta", { text });
    }
    told = text;
  }

  function tellMore(piece) {
    onEvent("delta", { text: piece });
    told += piece;
  }

  function tellStatus(run) {
    const why = run.waiting?.reason ?? null;
    if (run.status === status && why === reason) return;
    status = run.status;
    reason = why;
    onEvent("status", { status: run.status, waiting: run.waiting, sequenceNumber: run.sequenceNumber });
  }

  function tell(run) {
    if (run.sequenceNumber < sequenceNumber) return false;
    // The same state may be read from two sides, and one of them knows less of the reply.
    const again = run.sequenceNumber === sequenceNumber;
    sequenceNumber = run.sequenceNumber;
    if (isTerminal(run.status)) {
      onEvent("result", run);
      return true;
    }
    if (run.status === "queued") {
      // The page takes back what a lost attempt had said when it hears this.
      tellStatus(run);
      if (told !== "") tellReply("");
      return false;
    }
    // The reply first: a page that was just opened shows it already and need not blink.
    const first = status === null;
    if (!first) tellStatus(run);
    if (run.text !== null && !(again && told?.startsWith(run.text))) tellReply(run.text);
    if (first) tellStatus(run);
    return false;
  }

  return { tell, tellReply, tellMore };
}
