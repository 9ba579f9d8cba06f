// What somebody sees who is not signed in: the form to sign in or to create an account, or in words why nobody can.

import { config } from "./config.js";
import { byId, setText } from "./dom.js";
import { language, onLanguage, t } from "./i18n.js";
import {
  account, createAccount, offersGoogle, resetPassword, signIn, signInWithGoogle, signOut, startSession, wasSignedIn,
} from "./session.js";
import { forgetHere, rememberedHere, rememberHere } from "./settings.js";
import { createQuickSwitches } from "./view-settings.js";
import { signInWords } from "./words.js";

/** Starts signing in. `onIn()` is called once, when somebody is signed in and the page may ask the server. */
export function startGate(onIn) {
  const gate = byId("gate");
  const frame = byId("frame");
  const form = byId("gate-form");
  const email = byId("gate-email");
  const password = byId("gate-password");
  const wrong = byId("gate-wrong");
  const note = byId("gate-note");
  const wait = byId("gate-wait");
  const again = byId("gate-again");
  const setup = byId("gate-setup");
  let inside = null;        // the id of who is in
  let isNew = false;        // the form creates an account
  let busy = false;
  let waitWords = () => t("gate.loading");
  let problem = null;       // Firebase's error
  let sentTo = null;        // where the message for a new password went

  function show(part) {
    frame.hidden = true;
    byId("skip").hidden = true;
    gate.hidden = false;
    form.hidden = part !== "form";
    setup.hidden = part !== "setup";
    wait.hidden = !["loading", "failed"].includes(part);
    again.hidden = part !== "failed";
    render();
    if (part === "form") email.focus();
  }

  function enter() {
    gate.hidden = true;
    frame.hidden = false;
    frame.inert = false;
    byId("skip").hidden = false;
    // Drafts of whoever was here before in this tab.
    if (rememberedHere("owner") !== inside) forgetHere();
    rememberHere("owner", inside);
    renderAccount();
    onIn();
  }

  /** Whatever the page knows is of the one who left, so it starts anew and knows nothing. */
  function leave() {
    forgetHere();
    history.replaceState(null, "", "#/");
    location.reload();
  }

  function onUser() {
    const now = account();
    if (inside !== null) {
      if (now?.id !== inside) leave();
      return;
    }
    if (now === null) {
      show("form");
      return;
    }
    inside = now.id;
    enter();
  }

  function render() {
    setText(byId("gate-title"), t(isNew ? "gate.title.new" : "gate.title"));
    setText(byId("gate-submit"), t(busy ? "gate.working" : isNew ? "gate.create" : "gate.signIn"));
    setText(byId("gate-other"), t(isNew ? "gate.toOld" : "gate.toNew"));
    byId("gate-submit").setAttribute("aria-disabled", String(busy));
    form.setAttribute("aria-busy", String(busy));
    byId("gate-help").hidden = !isNew;
    byId("gate-forgot").hidden = isNew;
    byId("gate-google").hidden = !offersGoogle();
    password.autocomplete = isNew ? "new-password" : "current-password";
    const words = problem === null ? null : signInWords(problem);
    wrong.hidden = words === null;
    setText(wrong, words ?? "");
    note.hidden = sentTo === null;
    setText(note, sentTo === null ? "" : t("gate.sent", { email: sentTo }));
    setText(wait, waitWords());
  }

  function renderAccount() {
    const { name } = account();
    for (const node of document.querySelectorAll(".account-name")) setText(node, name);
    for (const node of document.querySelectorAll(".account")) node.hidden = false;
    byId("identity-form").hidden = true;
  }

  /** One thing at a time; what went wrong is said and the field it is about gets the focus. */
  async function act(action) {
    if (busy) return;
    busy = true;
    problem = null;
    sentTo = null;
    render();
    try {
      await action();
    } catch (error) {
      problem = error;
    }
    busy = false;
    const code = String(problem?.code ?? "");
    const field = /email/.test(code) ? email : /password|credential|user-not-found/.test(code) ? password : null;
    for (const input of [email, password]) input.setAttribute("aria-invalid", String(input === field));
    render();
    if (gate.hidden) password.value = "";
    else field?.focus();
  }

  const refusal = (code) => Promise.reject(Object.assign(new Error(code), { code: `auth/${code}` }));

  form.addEventListener("submit", (event) => {
    event.preventDefault();
    act(() => {
      const address = email.value.trim();
      if (!email.validity.valid || address === "") return refusal("invalid-email");
      if (password.value === "") return refusal("missing-password");
      return (isNew ? createAccount : signIn)(address, password.value);
    });
  });
  byId("gate-forgot").addEventListener("click", () => act(async () => {
    const address = email.value.trim();
    if (!email.validity.valid || address === "") return refusal("invalid-email");
    await resetPassword(address, language());
    sentTo = address;
    return undefined;
  }));
  byId("gate-google-in").addEventListener("click", () => act(signInWithGoogle));
  byId("gate-other").addEventListener("click", () => {
    isNew = !isNew;
    problem = null;
    sentTo = null;
    render();
    email.focus();
  });
  again.addEventListener("click", () => location.reload());
  for (const button of document.querySelectorAll(".sign-out")) button.addEventListener("click", () => signOut());
  createQuickSwitches(byId("gate-language"), byId("gate-theme"));
  onLanguage(render);

  if (config.firebase === null) {
    show("setup");
    return;
  }
  // Somebody who was signed in most likely is: the page stays as it is and takes nothing until that is sure.
  if (wasSignedIn()) frame.inert = true;
  else show("loading");
  startSession(onUser).catch(() => {
    waitWords = () => t("gate.failed", { host: new URL(config.firebase.sdk).host });
    show("failed");
  });
}
