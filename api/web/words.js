// What happened, in words: a run's state, its end, and every refusal of the server.

import { formatDuration, has, t } from "./i18n.js";
import { phaseOf } from "./run.js";
import { usesTokens } from "./session.js";

/** The state of a run in one line; while it waits, with the reason and the place in line. */
export function stateWords(state) {
  const phase = phaseOf(state);
  const words = [has(`phase.${phase}`) ? t(`phase.${phase}`) : phase];
  const { waiting } = state.run;
  if (phase === "queued" && waiting) {
    if (has(`waiting.${waiting.reason}`)) words.push(t(`waiting.${waiting.reason}`));
    else if (waiting.reason) words.push(String(waiting.reason));
    if (Number.isInteger(waiting.position) && waiting.position > 0) {
      words.push(t("waiting.position", { n: waiting.position }));
    }
  }
  return words.join(" · ");
}

/** Why a run ended without a complete reply, or null when there is nothing to explain. */
export function endWords({ run }) {
  if (run.status === "timed_out" || run.status === "expired") return t(`error.${run.status}`);
  if (run.status !== "failed") return null;
  const code = run.error?.code ?? "";
  return t(has(`error.${code}`) ? `error.${code}` : "error.other");
}

/** Milliseconds that the attempt took, or null while it is not over. */
export function tookMillis(run) {
  if (run.usage?.wallMillis > 0) return run.usage.wallMillis;
  if (!run.startedAt || !run.finishedAt) return null;
  return Math.max(0, Date.parse(run.finishedAt) - Date.parse(run.startedAt));
}

/** The discreet facts of a finished run: duration, exit code, attempts. */
export function factWords({ run }) {
  const facts = [];
  const took = tookMillis(run);
  if (took !== null && run.finishedAt) facts.push(formatDuration(took));
  if (Number.isInteger(run.exitCode)) facts.push(t("run.exit", { code: run.exitCode }));
  if (run.attempts?.length > 1) facts.push(t("run.attempts", { n: run.attempts.length }));
  return facts;
}

/**
 * A refusal in words. `sending` says that a typed message is at stake. The server's own sentence follows
 * where it knows more than the page: what exactly is wrong with the message.
 */
export function problemWords(problem, sending = false) {
  const { status, code, detail, fields } = problem;
  if (status === 0) return t(sending ? "problem.network" : "problem.network.read");
  if (status === 401 && usesTokens) return t("problem.401.token");
  let words;
  if (has(`problem.${code}`)) words = t(`problem.${code}`);
  else if (status === 422) words = fields.length > 0 ? t("problem.422", { field: fields.join(", ") }) : t("problem.422.plain");
  else if (has(`problem.${status}`)) words = t(`problem.${status}`);
  else words = status >= 500 ? t("problem.5xx") : t("problem.other", { status });
  const explains = [400, 413, 415, 422].includes(status) && !has(`problem.${code}`);
  return explains && detail ? `${words} ${detail}` : words;
}

/** Why signing in did not work. Null when there is nothing to say: the reader closed Google's window. */
export function signInWords(error) {
  const code = String(error?.code ?? "").replace("auth/", "");
  switch (code) {
    case "popup-closed-by-user":
    case "cancelled-popup-request":
      return null;
    case "invalid-credential":
    case "wrong-password":
    case "user-not-found":
      return t("problem.auth.credential");
    case "invalid-email":
    case "missing-email":
      return t("problem.auth.email");
    case "missing-password":
      return t("problem.auth.password");
    default:
      return has(`problem.auth.${code}`) ? t(`problem.auth.${code}`) : t("problem.auth.other", { code: code || String(error?.message ?? error) });
  }
}
