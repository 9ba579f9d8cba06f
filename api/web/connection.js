// The line that says that the connection is lost, when it is tried again, and lets the reader hurry it; or that
// live updates are, and the page asks again and again instead.

import { announce, byId, setText } from "./dom.js";
import { onLanguage, t } from "./i18n.js";

export function createConnectionLine() {
  const line = byId("connection");
  const words = byId("connection-words");
  let until = 0;
  let kind = null; // "lost", "polling", or null while there is nothing to say
  let hurry = () => {};
  let timer = 0;

  function render() {
    if (kind === "polling") return setText(words, t("connection.polling"));
    const left = Math.ceil((until - performance.now()) / 1000);
    return setText(words, left > 0 ? t("connection.lost", { n: left }) : t("connection.trying"));
  }

  function show(next, retryNow) {
    const turned = kind !== next;
    kind = next;
    hurry = retryNow;
    clearInterval(timer);
    render();
    if (turned) announce(words.textContent);
    line.hidden = false;
  }

  byId("connection-retry").addEventListener("click", () => {
    until = 0;
    render();
    hurry();
  });
  onLanguage(render);

  return {
    /** The connection is lost; `retryNow` is called when the reader does not want to wait. */
    waiting(seconds, retryNow) {
      until = performance.now() + seconds * 1000;
      show("lost", retryNow);
      timer = setInterval(render, 250);
    },
    /** The server answers, but cannot be listened to; `retryNow` tries whether it can again. */
    polling: (retryNow) => show("polling", retryNow),
    /** The connection is there, or nobody needs it any more. */
    clear({ quietly = false } = {}) {
      clearInterval(timer);
      if (kind === null) return;
      kind = null;
      line.hidden = true;
      if (!quietly) announce(t("connection.back"));
    },
  };
}
