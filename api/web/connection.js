// The line that says that the connection is lost, when it is tried again, and lets the reader hurry it.

import { announce, byId, setText } from "./dom.js";
import { onLanguage, t } from "./i18n.js";

export function createConnectionLine() {
  const line = byId("connection");
  const words = byId("connection-words");
  let until = 0;
  let hurry = () => {};
  let timer = 0;

  function render() {
    const left = Math.ceil((until - performance.now()) / 1000);
    setText(words, left > 0 ? t("connection.lost", { n: left }) : t("connection.trying"));
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
      hurry = retryNow;
      render();
      if (line.hidden) announce(words.textContent);
      line.hidden = false;
      clearInterval(timer);
      timer = setInterval(render, 250);
    },
    /** The connection is there, or nobody needs it any more. */
    clear({ quietly = false } = {}) {
      clearInterval(timer);
      if (line.hidden) return;
      line.hidden = true;
      if (!quietly) announce(t("connection.back"));
    },
  };
}
