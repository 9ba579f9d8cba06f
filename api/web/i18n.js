// Which language the page speaks, and how it says words (dictionaries.js), dates and durations (Intl).

import { dictionaries } from "./dictionaries.js";
import { remember, remembered } from "./settings.js";

export const LANGUAGES = Object.keys(dictionaries);

/** The first of the reader's languages that the page speaks; English when it speaks none. */
export function choose(wanted, stored) {
  if (LANGUAGES.includes(stored)) return stored;
  for (const tag of wanted ?? []) {
    const language = tag.toLowerCase().split("-")[0];
    if (LANGUAGES.includes(language)) return language;
  }
  return "en";
}

let current = "en";
const listeners = new Set();

export const language = () => current;

/** Calls back after every change of language; everything on screen has to be said again. */
export const onLanguage = (listener) => listeners.add(listener);

/** The words for a key, with `{name}` replaced from `values`. An unknown key is a defect and shows as itself. */
export function t(key, values = {}) {
  const words = dictionaries[current][key] ?? key;
  return words.replace(/\{(\w+)\}/g, (whole, name) => String(values[name] ?? whole));
}

/** Whether there are words for a key (server codes may be newer than this page). */
export const has = (key) => key in dictionaries[current];

/** Starts with the remembered language or the browser's. */
export function startLanguage() {
  apply(choose(navigator.languages, remembered("language")));
}

/** Changes and remembers the language. */
export function setLanguage(next) {
  remember("language", next);
  apply(next);
}

function apply(next) {
  current = next;
  document.documentElement.lang = next;
  for (const node of document.querySelectorAll("[data-t]")) node.textContent = t(node.dataset.t);
  for (const node of document.querySelectorAll("[data-t-label]")) node.setAttribute("aria-label", t(node.dataset.tLabel));
  for (const node of document.querySelectorAll("[data-t-placeholder]")) node.placeholder = t(node.dataset.tPlaceholder);
  for (const listener of listeners) listener(next);
}

const sameDay = (a, b) => a.toDateString() === b.toDateString();

/** A moment: the time today, the date otherwise. */
export function formatMoment(iso, now = new Date()) {
  const date = new Date(iso);
  if (Number.isNaN(date.getTime())) return "";
  if (sameDay(date, now)) return date.toLocaleTimeString(current, { hour: "numeric", minute: "2-digit" });
  const year = date.getFullYear() === now.getFullYear() ? undefined : "numeric";
  return date.toLocaleDateString(current, { month: "short", day: "numeric", year });
}

/** Date and time in full, for tooltips. */
export function formatFull(iso) {
  const date = new Date(iso);
  return Number.isNaN(date.getTime()) ? "" : date.toLocaleString(current, { dateStyle: "long", timeStyle: "medium" });
}

const unit = (value, name, digits = 0) =>
  new Intl.NumberFormat(current, {
    style: "unit", unit: name, unitDisplay: "short", minimumFractionDigits: digits, maximumFractionDigits: digits,
  }).format(value);

/** Whole seconds, for a clock that runs. */
export const formatSeconds = (seconds) => unit(Math.floor(seconds), "second");

/** A duration: "840 ms", "3.2 sec", "2 min 5 sec" in the reader's language. */
export function formatDuration(milliseconds) {
  if (milliseconds < 1000) return unit(Math.round(milliseconds), "millisecond");
  if (milliseconds < 59_950) return unit(milliseconds / 1000, "second", 1);
  const seconds = Math.round(milliseconds / 1000);
  return `${unit(Math.floor(seconds / 60), "minute")} ${unit(seconds % 60, "second")}`;
}
