// The box where a message is written and sent. What was typed stays there until the server has accepted it,
// and a second try of the same words carries the same idempotency key, so nothing ever runs twice.

import * as api from "./api.js";
import { announce, byId, el, icon, setText } from "./dom.js";
import { onLanguage, t } from "./i18n.js";
import { randomId } from "./identity.js";
import { rememberedHere, rememberHere } from "./settings.js";
import { problemWords } from "./words.js";

/** Phones have no Shift key at hand: there the return key starts a new line and the button sends. */
const touch = matchMedia("(hover: none) and (pointer: coarse)");

/** `target()` names the conversation to send to; `onAccepted(run)` gets the run the server made. */
export function createComposer({ target, onAccepted }) {
  const form = byId("composer");
  const box = byId("message");
  const button = byId("send");
  const notice = byId("notice");
  const agentField = byId("agent-field");
  const agentSelect = byId("agent");
  let agents = [];
  let sending = false;
  let refusal = null;       // {words(): string} or null
  let countdown = 0;
  let place = "";           // whose draft is in the box: a conversation id, or "" for a new one

  const draftKey = () => `draft.${place}`;
  const attemptKey = () => `attempt.${place}`;

  function saveDraft() {
    rememberHere(draftKey(), box.value === "" ? null : box.value);
  }

  function fit() {
    box.style.height = "auto";
    box.style.height = `${box.scrollHeight + 2}px`;
  }

  /**
   * The body and key of this message. A send that was never answered left its key behind: the same words
   * to the same place take it again; other words get a new one.
   */
  function attempt() {
    const agent = agentField.hidden || agentSelect.value === "" ? undefined : agentSelect.value;
    const message = box.value;
    const left = JSON.parse(rememberedHere(attemptKey()) ?? "null");
    if (left && left.body.message === message && left.body.agent === agent) return left;
    const made = { key: randomId("key_"), body: { message, conversationId: target(), agent } };
    rememberHere(attemptKey(), JSON.stringify(made));
    return made;
  }

  async function send() {
    if (sending) return;
    if (box.value.trim() === "") {
      box.focus();
      announce(t("composer.empty"));
      return;
    }
    sending = true;
    refuse(null);
    render();
    const { key, body } = attempt();
    const sentFrom = place;
    try {
      const run = await api.submit(body, key);
      rememberHere(`attempt.${sentFrom}`, null);
      rememberHere(`draft.${sentFrom}`, null);
      if (place === sentFrom) {
        box.value = "";
        fit();
      }
      onAccepted(run, sentFrom);
    } catch (problem) {
      // Only an unanswered or unfinished send may have been accepted; every other answer ends this key.
      if (![0, 409].includes(problem.status) && problem.status < 500) rememberHere(`attempt.${sentFrom}`, null);
      if (place === sentFrom) refuse(problem);
    } finally {
      sending = false;
      render();
    }
  }

  function refuse(problem) {
    clearInterval(countdown);
    refusal = problem;
    if (problem?.retryAfterSeconds > 0) {
      const until = performance.now() + problem.retryAfterSeconds * 1000;
      const left = () => Math.max(0, Math.ceil((until - performance.now()) / 1000));
      problem.left = left;
      countdown = setInterval(() => {
        render();
        if (left() > 0) return;
        clearInterval(countdown);
        announce(t("problem.waited"));
      }, 1000);
    }
    render();
  }

  // The countdown is outside of the alert's words, or a screen reader would read it every second.
  const noticeWords = el("span");
  const noticeWait = el("span", { class: "notice-wait", "aria-hidden": "true" });
  const noticeClose = el("button", { type: "button", class: "plain square", onclick: () => refuse(null) }, icon("close"));
  notice.append(el("p", {}, noticeWords, noticeWait), noticeClose);

  function render() {
    const busy = String(sending);
    form.setAttribute("aria-busy", busy);
    button.setAttribute("aria-disabled", busy);
    box.readOnly = sending;
    setText(byId("send-words"), t(sending ? "composer.sending" : "composer.send"));
    notice.hidden = refusal === null;
    setText(noticeWords, refusal === null ? "" : problemWords(refusal, true));
    const left = refusal?.left?.();
    setText(noticeWait, left === undefined ? "" : ` ${left > 0 ? t("problem.wait", { n: left }) : t("problem.waited")}`);
    noticeClose.setAttribute("aria-label", t("problem.closed"));
    setText(byId("hint"), t(touch.matches ? "composer.hint.touch" : "composer.hint"));
    box.placeholder = t(agents.length === 0 || chosen() === "python" ? "composer.placeholder" : "composer.placeholder.other");
  }

  const chosen = () => (agents.length === 1 ? agents[0].name : agentSelect.value);

  function renderAgents() {
    agentField.hidden = agents.length < 2;
    if (agents.length < 2) return;
    const before = agentSelect.value;
    const marked = agents.find((agent) => agent.default === true)?.name;
    const options = agents.map((agent) => el("option", { value: agent.name, title: agent.description }, agent.name));
    // Without a mark the server's default is not known by name, and leaving the agent out means just that.
    if (!marked) options.unshift(el("option", { value: "" }, t("composer.agent.default")));
    agentSelect.replaceChildren(...options);
    agentSelect.value = before || marked || "";
  }

  form.addEventListener("submit", (event) => {
    event.preventDefault();
    send();
  });
  box.addEventListener("input", () => {
    fit();
    saveDraft();
  });
  box.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.altKey) return;
    // The Enter that ends a composition (Korean, Japanese, Chinese input) belongs to the input method; 229
    // is what browsers report that fire it after the composition's end.
    if (event.isComposing || event.keyCode === 229) return;
    if (touch.matches && !event.ctrlKey && !event.metaKey) return;
    event.preventDefault();
    send();
  });
  agentSelect.addEventListener("change", render);
  onLanguage(() => {
    renderAgents();
    render();
  });

  return {
    /** Shows the draft of a conversation ("" for a new one). */
    open(conversationId) {
      if (place !== conversationId) refuse(null);
      place = conversationId;
      box.value = rememberedHere(draftKey()) ?? "";
      fit();
      render();
    },
    setAgents(next) {
      agents = next;
      renderAgents();
      render();
    },
    hasAgent: (name) => agents.length === 0 || agents.some((agent) => agent.name === name),
    /** Puts a message into the box for the reader to send; `agent` is chosen where there is a choice. */
    suggest(message, agent) {
      box.value = message;
      if (agents.some((known) => known.name === agent)) agentSelect.value = agent;
      saveDraft();
      fit();
      render();
      button.focus();
    },
    setHidden(hidden) {
      form.hidden = hidden;
    },
    focus: () => box.focus(),
  };
}
