// The list of conversations beside the chat: newest first, older ones on demand, one deletes in place.

import * as api from "./api.js";
import { byId, el, icon, setText } from "./dom.js";
import { formatFull, formatMoment, onLanguage, t } from "./i18n.js";
import { harmless } from "./text.js";
import { problemWords } from "./words.js";

/** While something runs somewhere the list is read again this often. */
const REFRESH_MS = 8_000;

/** The words for a conversation whose first message may be empty or all white space. */
export const titleOf = (conversation) => harmless(conversation.title?.trim() || t("list.untitled"));

/** `onDelete(conversation, button)` is called when the reader asks to delete one. */
export function createList({ onDelete }) {
  const list = byId("conversations");
  const note = byId("list-note");
  const more = byId("list-more");
  const rows = new Map();
  let conversations = [];
  let nextAfter = null;
  let loaded = false;
  let problem = null;
  let open = null;
  let generation = 0;
  let timer = 0;

  function row(conversation) {
    const title = el("span", { class: "row-title", dir: "auto" });
    const time = el("time", { class: "row-time" });
    const active = el("span", { class: "row-active" }, el("span", { class: "only-read" }));
    const link = el("a", { class: "row-link", href: `#/c/${conversation.id}` }, title, el("span", { class: "row-meta" }, active, time));
    const remove = el("button", { type: "button", class: "plain square row-delete" }, icon("trash"));
    const node = el("li", { class: "row" }, link, remove);
    const made = { node, title, time, active, link, remove, conversation };
    remove.addEventListener("click", () => onDelete(made.conversation, remove));
    return made;
  }

  function fill(made) {
    const { conversation } = made;
    const title = titleOf(conversation);
    const moment = conversation.updatedAt ?? conversation.createdAt;
    setText(made.title, title);
    setText(made.time, formatMoment(moment));
    made.time.dateTime = moment;
    made.time.title = formatFull(moment);
    made.active.hidden = !(conversation.activeRuns > 0);
    setText(made.active.firstChild, t("list.active"));
    made.remove.setAttribute("aria-label", t("list.delete", { title }));
    if (conversation.id === open) made.link.setAttribute("aria-current", "page");
    else made.link.removeAttribute("aria-current");
  }

  function render() {
    const wanted = new Set(conversations.map((conversation) => conversation.id));
    for (const [id, made] of rows) {
      if (wanted.has(id)) continue;
      made.node.remove();
      rows.delete(id);
    }
    conversations.forEach((conversation, index) => {
      const made = rows.get(conversation.id) ?? row(conversation);
      rows.set(conversation.id, made);
      made.conversation = conversation;
      fill(made);
      // Only what is out of place moves: moving a row takes the focus from it.
      if (list.children[index] !== made.node) list.insertBefore(made.node, list.children[index] ?? null);
    });
    const empty = loaded && conversations.length === 0;
    note.hidden = problem === null && !empty;
    setText(note, problem ? problemWords(problem) : t("list.empty"));
    more.hidden = nextAfter === null && problem === null;
    setText(more, t(problem ? "retry" : "list.more"));
  }

  function schedule() {
    clearTimeout(timer);
    if (!conversations.some((conversation) => conversation.activeRuns > 0)) return;
    timer = setTimeout(() => (document.hidden ? schedule() : refresh()), REFRESH_MS);
  }

  /** Reads the newest page again and keeps the older ones that were loaded. */
  async function refresh() {
    const mine = (generation += 1);
    try {
      const page = await api.listConversations(null);
      if (mine !== generation) return;
      const fresh = new Set(page.data.map((conversation) => conversation.id));
      const older = loaded && nextAfterKnown(page) ? conversations.filter((conversation) => !fresh.has(conversation.id)) : [];
      if (older.length === 0) nextAfter = page.nextAfter;
      conversations = [...page.data, ...older];
      loaded = true;
      problem = null;
    } catch (error) {
      if (mine !== generation) return;
      problem = error;
    }
    render();
    schedule();
  }

  /** With everything on one page there are no older ones: what is missing was deleted elsewhere. */
  const nextAfterKnown = (page) => page.nextAfter !== null;

  async function loadMore() {
    if (problem !== null || nextAfter === null) return refresh();
    const mine = (generation += 1);
    try {
      const page = await api.listConversations(nextAfter);
      if (mine !== generation) return undefined;
      const known = new Set(conversations.map((conversation) => conversation.id));
      const first = page.data.find((conversation) => !known.has(conversation.id));
      conversations = [...conversations, ...page.data.filter((conversation) => !known.has(conversation.id))];
      nextAfter = page.nextAfter;
      render();
      if (first) rows.get(first.id).link.focus();
    } catch (error) {
      if (mine !== generation) return undefined;
      problem = error;
      render();
    }
    return undefined;
  }

  more.addEventListener("click", loadMore);
  onLanguage(render);

  return {
    refresh,
    /** Marks the open conversation; null when a new one is being written. */
    setOpen(id) {
      open = id;
      render();
    },
    find: (id) => conversations.find((conversation) => conversation.id === id) ?? null,
    /** Takes a deleted conversation out and returns the element that should have the focus now. */
    remove(id) {
      const index = conversations.findIndex((conversation) => conversation.id === id);
      conversations = conversations.filter((conversation) => conversation.id !== id);
      render();
      const next = conversations[Math.min(index, conversations.length - 1)];
      return index >= 0 && next ? rows.get(next.id).link : byId("new");
    },
    /** Forgets everything (another user id) and reads anew. */
    restart() {
      conversations = [];
      nextAfter = null;
      loaded = false;
      return refresh();
    },
  };
}
