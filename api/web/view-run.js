// One run on the screen: what was said, the state line, the reply as it grows, and how it ended.

import { announce, el, setText } from "./dom.js";
import { formatFull, formatMoment, formatSeconds, t } from "./i18n.js";
import { isTerminal, phaseOf } from "./run.js";
import { harmless, TextPane } from "./text.js";
import { endWords, factWords, problemWords, stateWords } from "./words.js";

/** Once a second is enough for a clock that shows seconds. */
const TICK_MS = 1_000;

/** `onCancel()` is called by the cancel button, `onGrow()` after the reply became longer on screen. */
export class RunView {
  #pane;
  #parts;
  #state;
  #problem = null;
  #clock = 0;
  #headStart = 0;  // milliseconds that an attempt had been running when it was first seen

  constructor(state, { onCancel, onGrow }) {
    const id = state.run.id;
    const parts = {
      you: el("h2", { class: "run-who", id: `you-${id}` }),
      time: el("time", { class: "run-time" }),
      said: el("div", { class: "said" }),
      who: el("h3", { class: "run-who", id: `reply-${id}` }),
      words: el("span", { class: "state-words" }),
      facts: el("span", { class: "state-facts" }),
      clock: el("span", { class: "state-clock", "aria-hidden": "true" }),
      cancel: el("button", { type: "button", class: "run-cancel", onclick: onCancel }),
      reply: el("div", { class: "reply" }),
      none: el("p", { class: "run-none", hidden: true }),
      note: el("p", { class: "run-note", hidden: true }),
      wrong: el("p", { class: "run-wrong", hidden: true }),
      detail: el("span", { class: "run-detail", dir: "auto" }),
      problem: el("p", { class: "run-wrong", role: "alert", hidden: true }),
    };
    parts.wrongWords = el("span");
    parts.wrong.append(parts.wrongWords, parts.detail);
    parts.article = el("article", { class: "run", tabindex: -1, "aria-labelledby": `you-${id}`, dataset: { run: id } },
      el("div", { class: "run-head" }, parts.you, parts.time),
      parts.said,
      el("div", { class: "run-head run-state" },
        el("span", { class: "mark", "aria-hidden": "true" }), parts.who, parts.words, parts.facts, parts.clock, parts.cancel),
      parts.reply, parts.none, parts.note, parts.wrong, parts.problem);
    this.#parts = parts;
    this.#pane = new TextPane(parts.reply, onGrow);
    this.node = el("li", {}, parts.article);
    this.#state = state;
    const started = Date.parse(state.run.attempts?.at(-1)?.startedAt ?? "");
    if (started <= Date.now()) this.#headStart = Date.now() - started;
    const said = new TextPane(parts.said);
    said.append(state.run.message ?? "");
    said.end();
    this.#pane.reset(state.text);
    this.#finishText();
    this.render();
  }

  get state() {
    return this.#state;
  }

  /** Shows a new state. Text that only grew is appended, anything else is shown anew. */
  update(next) {
    const before = this.#state;
    this.#state = next;
    if (next.appended !== null) this.#pane.append(next.appended);
    else if (next.text !== before.text) this.#pane.reset(next.text);
    this.#finishText();
    const turned = phaseOf(next) !== phaseOf(before);
    // A reply may come in a hundred thousand pieces: only the text changes with each.
    if (turned || next.run !== before.run) this.render();
    if (turned) this.#announce();
  }

  /** Says what went wrong with something the reader asked for, or takes it back with null. */
  setProblem(problem) {
    this.#problem = problem;
    this.render();
  }

  /** Stops the clock; the view leaves the page. */
  dispose() {
    clearInterval(this.#clock);
  }

  /** Says everything again (state, language). The reply's text is not touched. */
  render() {
    const { run } = this.#state;
    const parts = this.#parts;
    const phase = phaseOf(this.#state);
    const over = isTerminal(run.status);
    parts.article.dataset.phase = phase;
    setText(parts.you, t("run.you"));
    setText(parts.time, formatMoment(run.createdAt));
    parts.time.dateTime = run.createdAt ?? "";
    parts.time.title = formatFull(run.createdAt);
    setText(parts.who, run.agent ?? "");
    parts.who.setAttribute("aria-label", t("run.reply", { agent: run.agent ?? "" }));
    setText(parts.words, stateWords(this.#state));
    setText(parts.facts, over ? factWords(this.#state).join(" · ") : "");
    setText(parts.cancel, t("run.cancel"));
    parts.cancel.setAttribute("aria-label", t("run.cancel.label"));
    const hadFocus = document.activeElement === parts.cancel;
    parts.cancel.hidden = over || run.status === "cancelling";
    // The focus stays with the run, or the next Tab would start at the top of the page.
    if (hadFocus && parts.cancel.hidden) parts.article.focus({ preventScroll: true });
    parts.reply.setAttribute("aria-busy", String(phase === "streaming" || phase === "in_progress"));
    parts.reply.hidden = this.#state.text === "";
    parts.none.hidden = !(run.status === "completed" && this.#state.text === "");
    setText(parts.none, t("run.none"));
    parts.note.hidden = !run.truncated;
    setText(parts.note, t("run.truncated"));
    const wrong = endWords(this.#state);
    parts.wrong.hidden = wrong === null;
    setText(parts.wrongWords, wrong ?? "");
    setText(parts.detail, wrong !== null && run.error?.message ? harmless(run.error.message) : "");
    parts.problem.hidden = this.#problem === null;
    setText(parts.problem, this.#problem === null ? "" : problemWords(this.#problem));
    this.#tick(run.status === "in_progress");
  }

  #finishText() {
    if (isTerminal(this.#state.run.status)) this.#pane.end();
  }

  #announce() {
    const words = [stateWords(this.#state), endWords(this.#state)].filter(Boolean).join(". ");
    if (phaseOf(this.#state) !== "streaming") announce(words);
  }

  #tick(running) {
    if (!running) {
      clearInterval(this.#clock);
      this.#clock = 0;
      this.#headStart = 0;
      setText(this.#parts.clock, "");
      return;
    }
    if (this.#clock !== 0) return;
    const since = performance.now() - this.#headStart;
    const show = () => setText(this.#parts.clock, formatSeconds((performance.now() - since) / 1000));
    show();
    this.#clock = setInterval(show, TICK_MS);
  }
}
