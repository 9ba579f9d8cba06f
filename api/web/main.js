// Puts the page together: which conversation is open (the address says), and what the parts tell each other.

import * as api from "./api.js";
import { createConnectionLine } from "./connection.js";
import { announce, byId, el, setText } from "./dom.js";
import { examples } from "./examples.js";
import { onLanguage, startLanguage, t } from "./i18n.js";
import { rememberHere } from "./settings.js";
import { createChat } from "./view-chat.js";
import { createComposer } from "./view-composer.js";
import { createDrawer } from "./view-drawer.js";
import { createList, titleOf } from "./view-list.js";
import { createConfirm, createSettings } from "./view-settings.js";
import { startGate } from "./view-gate.js";
import { randomId } from "./identity.js";
import { usesTokens } from "./session.js";

const title = byId("title");
const empty = byId("empty");
const remove = byId("delete");
/** A phone's keyboard would cover the page, so only readers with a real pointer start in the box. */
const hasPointer = matchMedia("(pointer: fine)");

let conversation = null; // what is known about the open one

startLanguage();
const drawer = createDrawer();
const confirm = createConfirm();
const connection = createConnectionLine();
const chat = createChat({ connection, onChanged: refreshList, onRetry: () => route() });
const list = createList({ onDelete: askToDelete });
const composer = createComposer({
  target: () => chat.opened() ?? randomId("conv_"),
  onAccepted(run, sentFrom) {
    // The reader may have gone elsewhere while the message was on its way.
    if ((chat.opened() ?? "") !== sentFrom) return refreshList();
    const isNew = chat.opened() === null;
    chat.add(run);
    if (isNew) {
      conversation = { id: run.conversationId, title: run.message.slice(0, 80) };
      history.pushState(null, "", `#/c/${run.conversationId}`);
      composer.open(run.conversationId);
      list.setOpen(run.conversationId);
    }
    render();
    composer.focus();
    return refreshList();
  },
});
createSettings({
  async onIdentity() {
    announce(t("settings.id.saved"));
    location.hash = "#/";
    await Promise.all([list.restart(), loadAgents(), route()]);
  },
});

async function refreshList() {
  await list.refresh();
  const known = list.find(chat.opened());
  if (known) conversation = known;
  render();
}

async function loadAgents() {
  try {
    const answer = await api.listAgents();
    composer.setAgents(answer.data);
  } catch {
    composer.setAgents([]); // Without a list there is nothing to choose; the server's default answers.
  }
  render();
}

function render() {
  const isNew = chat.opened() === null;
  setText(title, isNew || conversation === null ? (isNew ? t("chat.new") : "…") : titleOf(conversation));
  document.title = isNew || conversation === null ? "Quayside" : `${titleOf(conversation)} · Quayside`;
  remove.hidden = isNew || conversation === null;
  remove.setAttribute("aria-label", conversation === null ? "" : t("list.delete", { title: titleOf(conversation) }));
  byId("new").toggleAttribute("aria-current", false);
  if (isNew) byId("new").setAttribute("aria-current", "page");
  empty.hidden = !isNew || chat.runs() > 0;
  renderEmpty();
}

function renderEmpty() {
  if (empty.hidden) return empty.replaceChildren();
  const cards = examples.map(({ key, message }) =>
    el("li", {}, el("button", { type: "button", class: "example", onclick: () => composer.suggest(message, "python") },
      el("strong", {}, t(`empty.${key}`)), el("span", {}, t(`empty.${key}.about`)))));
  const offered = composer.hasAgent("python")
    ? [el("p", { class: "empty-try" }, t("empty.try")), el("ul", { class: "examples", role: "list" }, ...cards)]
    : [];
  const way = ["queued", "in_progress", "streaming", "completed"].map((phase) =>
    el("li", { dataset: { phase } }, el("span", { class: "mark", "aria-hidden": "true" }), t(`phase.${phase}`)));
  return empty.replaceChildren(el("h2", {}, t("empty.title")), el("p", {}, composer.hasAgent("python") ? `${t("empty.body")} ${t("empty.python")}` : t("empty.body")),
    el("ol", { class: "way", role: "list", "aria-label": t("empty.way") }, ...way), ...offered);
}

/** Opens what the address names. `byReader` moves the focus there. */
async function route({ byReader = false } = {}) {
  const match = /^#\/c\/([A-Za-z0-9_-]{1,64})$/.exec(location.hash);
  const wanted = match ? match[1] : null;
  drawer.close();
  conversation = list.find(wanted);
  list.setOpen(wanted);
  composer.setHidden(false);
  composer.open(wanted ?? "");
  const loading = chat.open(wanted);
  render();
  if (byReader && (wanted !== null || !hasPointer.matches)) title.focus({ preventScroll: true });
  else if (hasPointer.matches) composer.focus();
  try {
    if (!(await loading)) return;
    if (wanted !== null && conversation === null) {
      const read = await api.readConversation(wanted);
      if (chat.opened() === wanted) conversation = read;
    }
    render();
  } catch (problem) {
    if (chat.opened() === wanted) composer.setHidden(problem.status === 404);
  }
}

async function askToDelete(target, button) {
  const done = await confirm(titleOf(target), () => deleteConversation(target.id));
  if (!done) return button.focus();
  for (const kept of ["draft", "attempt"]) rememberHere(`${kept}.${target.id}`, null);
  const next = list.remove(target.id);
  announce(t("delete.done"));
  if (chat.opened() === target.id) {
    history.replaceState(null, "", "#/");
    await route({ byReader: true });
    return undefined;
  }
  return next.focus();
}

/** Gone already is as good as deleted. */
async function deleteConversation(id) {
  try {
    await api.deleteConversation(id);
  } catch (problem) {
    if (problem.status !== 404) throw problem;
  }
}

byId("skip").addEventListener("click", (event) => {
  event.preventDefault();
  composer.focus();
});
remove.addEventListener("click", () => askToDelete(conversation, remove));
byId("new").addEventListener("click", () => {
  if (location.hash === "#/" || location.hash === "") route();
});
onLanguage(render);

/** The first questions to the server, once it is known who asks. */
function begin() {
  addEventListener("hashchange", () => route({ byReader: true }));
  route();
  list.refresh().then(() => {
    conversation ??= list.find(chat.opened());
    list.setOpen(chat.opened());
    render();
  });
  loadAgents();
}

if (usesTokens) startGate(begin);
else begin();
