// Who this browser says it is. The server's "header" mode takes X-User-Id; where people sign in it takes their
// token, and nothing else in the page changes.

import { token, usesTokens } from "./session.js";
import { remember, remembered } from "./settings.js";

const ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

/** `prefix` and 128 random bits in base 62, the shape of every id in the API. */
export function randomId(prefix) {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  let number = bytes.reduce((sum, byte) => (sum << 8n) | BigInt(byte), 0n);
  let text = "";
  for (let i = 0; i < 22; i += 1) {
    text = ALPHABET[Number(number % 62n)] + text;
    number /= 62n;
  }
  return prefix + text;
}

/** Whether the server takes this as an X-User-Id: 1 to 128 visible ASCII characters. */
export function isUserId(text) {
  return /^[\x21-\x7e]{1,128}$/.test(text);
}

/** The current user id, made at first use. */
export function userId() {
  const stored = remembered("userId");
  if (stored !== null && isUserId(stored)) return stored;
  const made = randomId("web-");
  remember("userId", made);
  return made;
}

/** Changes the user id; the caller reloads what the page shows. */
export function setUserId(text) {
  remember("userId", text);
}

/** The headers that tell the server who is calling; `fresh` when it did not believe the last ones. */
export async function headers(fresh = false) {
  if (!usesTokens) return { "X-User-Id": userId() };
  const bearer = await token(fresh);
  return bearer === null ? {} : { Authorization: `Bearer ${bearer}` };
}
