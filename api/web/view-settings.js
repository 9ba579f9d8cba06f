// The settings dialog (language, theme, user id or account), the quick switches beside it, and the dialog that asks
// before a conversation is deleted.

import { byId, icon, setText } from "./dom.js";
import { language, LANGUAGES, onLanguage, setLanguage, t } from "./i18n.js";
import { isUserId, setUserId, userId } from "./identity.js";
import { usesTokens } from "./session.js";
import { onTheme, setTheme, theme } from "./settings.js";
import { problemWords } from "./words.js";

const systemIsDark = matchMedia("(prefers-color-scheme: dark)");
const isDark = () => (theme() === "system" ? systemIsDark.matches : theme() === "dark");

/** A click on the backdrop closes, as Escape does. */
function closeOnBackdrop(dialog) {
  dialog.addEventListener("click", (event) => {
    if (event.target === dialog) dialog.close();
  });
}

/** The two buttons that change language and theme without the dialog. */
export function createQuickSwitches(quickLanguage, quickTheme) {
  function render() {
    quickTheme.replaceChildren(icon(isDark() ? "sun" : "moon"));
    quickTheme.setAttribute("aria-label", t(isDark() ? "nav.toLight" : "nav.toDark"));
    quickTheme.title = quickTheme.getAttribute("aria-label");
    quickLanguage.lang = LANGUAGES.find((other) => other !== language());
  }

  quickLanguage.addEventListener("click", () => setLanguage(quickLanguage.lang));
  quickTheme.addEventListener("click", () => setTheme(isDark() ? "light" : "dark"));
  systemIsDark.addEventListener("change", render);
  onTheme(render);
  onLanguage(render);
  render();
}

/** `onIdentity()` is called after the user id was changed. */
export function createSettings({ onIdentity }) {
  const dialog = byId("settings");
  const input = byId("identity");
  const wrong = byId("identity-wrong");
  const radios = (name) => [...dialog.querySelectorAll(`input[name="${name}"]`)];

  function render() {
    for (const radio of radios("language")) radio.checked = radio.value === language();
    for (const radio of radios("theme")) radio.checked = radio.value === theme();
  }

  for (const radio of radios("language")) radio.addEventListener("change", () => setLanguage(radio.value));
  for (const radio of radios("theme")) radio.addEventListener("change", () => setTheme(radio.value));
  createQuickSwitches(byId("language"), byId("theme"));
  onTheme(render);
  onLanguage(render);
  render();

  byId("settings-open").addEventListener("click", () => {
    if (!usesTokens) input.value = userId();
    wrong.hidden = true;
    input.removeAttribute("aria-invalid");
    dialog.showModal();
  });
  byId("settings-close").addEventListener("click", () => dialog.close());
  closeOnBackdrop(dialog);

  byId("identity-form").addEventListener("submit", (event) => {
    event.preventDefault();
    const wanted = input.value.trim();
    wrong.hidden = isUserId(wanted);
    input.setAttribute("aria-invalid", String(!isUserId(wanted)));
    if (!isUserId(wanted)) {
      input.focus();
      return;
    }
    const changed = wanted !== userId();
    setUserId(wanted);
    dialog.close();
    if (changed) onIdentity();
  });
}

/** Returns `ask(title, act)`: asks, then runs `act` and stays open with the reason when it fails. True when done. */
export function createConfirm() {
  const dialog = byId("confirm");
  const yes = byId("confirm-yes");
  const wrong = byId("confirm-wrong");
  let question = null; // {act, answer, working}: one at a time

  function answer(done) {
    question?.answer(done);
    question = null;
  }

  async function confirmed() {
    if (question === null || question.working) return;
    question.working = true;
    setText(yes, t("delete.working"));
    try {
      await question.act();
      answer(true);
      dialog.close();
    } catch (problem) {
      wrong.hidden = false;
      setText(wrong, problemWords(problem));
      question.working = false;
      if (!dialog.open) answer(false);
    }
    setText(yes, t("delete.confirm"));
  }

  yes.addEventListener("click", confirmed);
  byId("confirm-no").addEventListener("click", () => dialog.close());
  closeOnBackdrop(dialog);
  dialog.addEventListener("close", () => {
    // The event comes late: the dialog may be open again for the next question. And a deletion under way
    // still decides the answer when its dialog was closed.
    if (!dialog.open && !question?.working) answer(false);
  });

  return function ask(title, act) {
    if (question?.working) return Promise.resolve(false);
    answer(false);
    setText(byId("confirm-body"), t("delete.body", { title }));
    wrong.hidden = true;
    dialog.showModal();
    byId("confirm-no").focus();
    return new Promise((resolve) => {
      question = { act, answer: resolve, working: false };
    });
  };
}
