// On a narrow screen the list of conversations is a drawer over the chat: it takes the focus while it is
// open, the chat behind it is inert, and Escape or a tap beside it closes it.

import { byId } from "./dom.js";

export function createDrawer() {
  const narrow = matchMedia("(max-width: 47.99rem)");
  const side = byId("side");
  const main = byId("main");
  const opener = byId("side-open");
  let open = false;

  function render() {
    document.body.classList.toggle("drawer-open", open);
    opener.setAttribute("aria-expanded", String(open));
    main.inert = open;
    side.inert = narrow.matches && !open;
  }

  function close() {
    if (!open) return;
    const inside = side.contains(document.activeElement);
    open = false;
    render();
    if (inside) opener.focus();
  }

  opener.addEventListener("click", () => {
    open = true;
    render();
    byId("side-close").focus();
  });
  byId("side-close").addEventListener("click", close);
  byId("scrim").addEventListener("click", close);
  // Also when the link leads to where the reader already is.
  side.addEventListener("click", (event) => {
    if (event.target.closest("a")) close();
  });
  side.addEventListener("keydown", (event) => {
    if (event.key === "Escape") close();
  });
  narrow.addEventListener("change", () => {
    open = false;
    render();
  });
  render();

  return { close };
}
