// What this browser remembers: language, theme, identity, unsent drafts. Where storage is forbidden
// (private windows, strict settings) everything still works and is forgotten with the page.

const PREFIX = "quayside.";
const memory = new Map();

/** The stored value, or null. */
export function remembered(key) {
  try {
    return localStorage.getItem(PREFIX + key) ?? memory.get(key) ?? null;
  } catch {
    return memory.get(key) ?? null;
  }
}

/** Stores a value; null forgets it. */
export function remember(key, value) {
  if (value === null) memory.delete(key);
  else memory.set(key, value);
  try {
    if (value === null) localStorage.removeItem(PREFIX + key);
    else localStorage.setItem(PREFIX + key, value);
  } catch {
    // The copy in memory serves until the page is closed.
  }
}

/** As `remembered`, for this tab alone: two tabs with half-written messages do not disturb each other. */
export function rememberedHere(key) {
  try {
    return sessionStorage.getItem(PREFIX + key) ?? memory.get(key) ?? null;
  } catch {
    return memory.get(key) ?? null;
  }
}

/** As `remember`, for this tab alone; it outlives a reload. */
export function rememberHere(key, value) {
  if (value === null) memory.delete(key);
  else memory.set(key, value);
  try {
    if (value === null) sessionStorage.removeItem(PREFIX + key);
    else sessionStorage.setItem(PREFIX + key, value);
  } catch {
    // As above.
  }
}

/** Forgets what outlived a reload in this tab: somebody else uses it now. */
export function forgetHere() {
  try {
    for (const key of Object.keys(sessionStorage).filter((key) => key.startsWith(PREFIX))) sessionStorage.removeItem(key);
  } catch {
    // As above.
  }
}

export const THEMES = ["system", "light", "dark"];

/** The chosen theme: "system", "light" or "dark". */
export function theme() {
  const stored = remembered("theme");
  return THEMES.includes(stored) ? stored : "system";
}

const themeListeners = new Set();

/** Calls back after every change of theme. */
export const onTheme = (listener) => themeListeners.add(listener);

/** Applies and remembers a theme. The colours themselves live in tokens.css. */
export function setTheme(next) {
  remember("theme", next === "system" ? null : next);
  document.documentElement.dataset.theme = next;
  for (const listener of themeListeners) listener();
}
