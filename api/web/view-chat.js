// The open conversation: its runs in order, the one stream that is followed, the places in line of the
// others, and the scroll position.

import * as api from "./api.js";
import { announce, byId, setText } from "./dom.js";
import { followRun } from "./follow.js";
import { onLanguage, t } from "./i18n.js";
import { afterEvent, afterRead, beforeStream, fromRun, isTerminal } from "./run.js";
import { RunView } from "./view-run.js";
import { problemWords, stateWords } from "./words.js";

/** A place in line moves without an event, so runs that wait are read again this often. */
const POLL_MS = 2_500;
/** A page that nobody looks at gives its connection back after this long. */
const HIDDEN_MS = 30_000;
/** Closer to the end than this counts as reading the newest text. */
const NEAR_END_PX = 96;

/**
 * `connection` is the line of connection.js. `onChanged()` is called when runs began or ended, `onRetry()` when
 * the reader asks again for a conversation that could not be read.
 */
export function createChat({ connection, onChanged, onRetry }) {
  const log = byId("log");
  const list = byId("runs");
  const note = byId("log-note");
  const retry = byId("log-retry");
  const latest = byId("latest");
  const views = new Map();  // run id -> RunView, in the order of the conversation
  let opened = null;
  let generation = 0;
  let following = null;     // {id, follower, waiting}
  let stick = true;
  let noteWords = null;
  let hiddenTimer = 0;

  // --- What is on screen ---

  function say(words, { again = false } = {}) {
    noteWords = words;
    retry.hidden = !again;
    note.hidden = words === null;
    setText(note, words === null ? "" : words());
  }

  function put(run) {
    const known = views.get(run.id);
    if (known) {
      known.update(afterRead(known.state, run, following?.id === run.id));
      return known;
    }
    const view = new RunView(fromRun(run), { onCancel: () => cancel(run.id), onGrow: () => (latest.hidden = stick) });
    views.set(run.id, view);
    list.append(view.node);
    return view;
  }

  /** A run that the server no longer has: rolled back, or its conversation was deleted elsewhere. */
  function drop(view) {
    view.dispose();
    view.node.remove();
    views.delete(view.state.run.id);
    if (views.size === 0) say(() => t("chat.missing"));
    tend();
  }

  function clear() {
    unfollow();
    for (const view of views.values()) view.dispose();
    views.clear();
    list.replaceChildren();
    say(null);
    stick = true;
    latest.hidden = true;
  }

  function keepUp() {
    if (views.size === 0) log.scrollTop = 0;
    else if (stick) log.scrollTop = log.scrollHeight;
  }

  // Text that arrives also leaves the end far away, so only a reader who goes up stops the following.
  let lastTop = 0;
  log.addEventListener("scroll", () => {
    const near = log.scrollHeight - log.scrollTop - log.clientHeight < NEAR_END_PX;
    if (near) stick = true;
    else if (log.scrollTop < lastTop) stick = false;
    lastTop = log.scrollTop;
    if (stick) latest.hidden = true;
  }, { passive: true });
  // Whatever changes a height (text, a notice, the box that grows, a phone's keyboard), the end stays in sight.
  const heights = new ResizeObserver(keepUp);
  heights.observe(log);
  heights.observe(log.firstElementChild);

  latest.addEventListener("click", () => {
    stick = true;
    keepUp();
    latest.hidden = true;
    log.focus({ preventScroll: true });
  });

  // --- The stream ---

  /** Follows the first run that is not over. One at a time: in a conversation only one can be running. */
  function tend() {
    const next = [...views.values()].find((view) => !isTerminal(view.state.run.status));
    const id = next?.state.run.id ?? null;
    if (following?.id === id) return;
    unfollow();
    if (id !== null) follow(next);
  }

  function follow(view) {
    const { id } = view.state.run;
    const follower = followRun(id, api, {
      onStart: () => view.update(beforeStream(view.state)),
      onEvent: (name, data) => settle(view, afterEvent(view.state, name, data)),
      onRun: (run) => settle(view, fromRun(run)),
      onConnected: () => connection.clear(),
      onWaiting({ seconds }) {
        following.waiting = true;
        connection.waiting(seconds, () => follower.retryNow());
      },
      onPolling() {
        following.waiting = false;
        connection.polling(() => follower.retryNow());
      },
      onGone(problem) {
        connection.clear({ quietly: true });
        if (problem.status === 404) drop(view);
        else view.setProblem(problem);
      },
    });
    following = { id, follower, waiting: false };
  }

  function settle(view, next) {
    const before = view.state.run.status;
    following.waiting = false;
    view.update(next);
    if (next.run.status !== before) onChanged();
    if (isTerminal(next.run.status)) tend();
  }

  function unfollow() {
    if (following === null) return;
    following.follower.stop();
    following = null;
    connection.clear({ quietly: true });
  }

  async function poll() {
    if (document.hidden || following?.waiting) return;
    const mine = generation;
    const waiting = [...views.values()].filter((view) => {
      const { id, status } = view.state.run;
      return status === "queued" || (!isTerminal(status) && id !== following?.id);
    });
    for (const view of waiting.slice(0, 10)) {
      try {
        const run = await api.readRun(view.state.run.id);
        if (mine !== generation) return;
        put(run);
      } catch {
        return; // The stream notices a lost connection and says so; a missed look at the line does not matter.
      }
    }
    tend();
  }

  (async function pollForever() {
    for (;;) {
      await new Promise((resolve) => setTimeout(resolve, POLL_MS));
      await poll();
    }
  })();

  document.addEventListener("visibilitychange", () => {
    clearTimeout(hiddenTimer);
    if (document.hidden) hiddenTimer = setTimeout(() => following?.follower.pause(), HIDDEN_MS);
    else following?.follower.resume();
  });

  async function cancel(id) {
    const view = views.get(id);
    try {
      const run = await api.cancelRun(id);
      view.setProblem(null);
      if (isTerminal(view.state.run.status)) return;
      if (isTerminal(run.status)) settleRead(view, run);
      else view.update({ ...view.state, run: { ...view.state.run, status: run.status, waiting: run.waiting }, appended: null });
    } catch (problem) {
      view.setProblem(problem);
    }
  }

  function settleRead(view, run) {
    view.update(fromRun(run));
    onChanged();
    tend();
  }

  // --- Conversations ---

  async function load(conversationId) {
    const mine = generation;
    say(() => t("chat.loading"));
    let after = null;
    try {
      do {
        const page = await api.listRuns(conversationId, after);
        if (mine !== generation) return false;
        page.data.forEach(put);
        after = page.nextAfter;
      } while (after);
      say(null);
      tend();
      return true;
    } catch (problem) {
      if (mine !== generation) return false;
      const missing = problem.status === 404;
      say(() => (missing ? t("chat.missing") : problemWords(problem)), { again: !missing });
      throw problem;
    }
  }

  retry.addEventListener("click", onRetry);
  onLanguage(() => {
    for (const view of views.values()) view.render();
    if (noteWords !== null) setText(note, noteWords());
  });

  return {
    opened: () => opened,
    runs: () => views.size,
    /** Opens a conversation, null for a new one. Throws the Problem when it cannot be read. */
    async open(conversationId) {
      generation += 1;
      opened = conversationId;
      clear();
      return conversationId === null ? true : load(conversationId);
    },
    /** Shows a run that was just accepted. */
    add(run) {
      opened = run.conversationId;
      stick = true;
      announce(stateWords(put(run).state));
      keepUp();
      tend();
    },
  };
}
