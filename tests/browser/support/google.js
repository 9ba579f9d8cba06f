// What the tests of the signed-in page add: the emulators, accounts, people who sign in, and a hand that writes into
// Firestore as a worker does.

import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { REPOSITORY, startFirebase, startFirestore, startPubsub } from "../../rules/support/emulators.js";
import { openPage } from "./browser.js";

export const PASSWORD = "correct horse";

/** Makes an account as somebody did earlier, somewhere else. Returns `{email, id, token}`. */
export async function makeAccount(firebase, email) {
  const response = await fetch(`http://${firebase.auth}/identitytoolkit.googleapis.com/v1/accounts:signUp?key=emulator`, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ email, password: PASSWORD, returnSecureToken: true }),
  });
  if (!response.ok) throw new Error(`the Auth emulator made no account: ${await response.text()}`);
  const { localId, idToken } = await response.json();
  return { email, id: localId, token: idToken };
}

/** The page as somebody sees it who is not signed in. */
export async function openGate(browser, url, options = {}) {
  const at = await openPage(browser, url, options);
  await at.page.locator("#gate-form").waitFor();
  return Object.assign(at, {
    gate: at.page.locator("#gate"),
    email: at.page.locator("#gate-email"),
    password: at.page.locator("#gate-password"),
    /** Signs in with the keyboard and waits for the page behind. */
    async signIn(email, password = PASSWORD) {
      await this.email.fill(email);
      await this.password.fill(password);
      await this.password.press("Enter");
      await this.box.waitFor();
    },
  });
}

/** Everything of Google's that a server on the `google` backend stands on, for one project, with our rules. */
export async function startGoogle(project) {
  const started = await Promise.allSettled([startFirebase(project), startFirestore(), startPubsub()]);
  const stop = () => Promise.all(started.map(({ value }) => value?.stop()));
  const failed = started.find(({ status }) => status === "rejected");
  if (failed) {
    await stop();
    throw failed.reason;
  }
  const [firebase, firestore, pubsub] = started.map(({ value }) => value);
  const documents = `http://${firestore.host}/v1/projects/${project}/databases/(default)/documents`;

  async function ask(address, init = {}) {
    const response = await fetch(address, { ...init, headers: { Authorization: "Bearer owner", "Content-Type": "application/json" } });
    if (!response.ok) throw new Error(`${address}: ${response.status} ${await response.text()}`);
    return response.json();
  }

  const google = {
    firebase,
    firestore,
    /** What `startServer` needs for a server on these. */
    options: {
      auth: "tokens",
      backend: "google",
      google: { project_id: project, firebase_sdk: firebase.sdk },
      env: { FIREBASE_AUTH_EMULATOR_HOST: firebase.auth, FIRESTORE_EMULATOR_HOST: firestore.host, PUBSUB_EMULATOR_HOST: pubsub.host },
    },
    stop,
    /** Puts rules in force: ours, or the ones given. */
    async deployRules(rules = null) {
      const content = rules ?? (await readFile(join(REPOSITORY, "infra/firestore/firestore.rules"), "utf8"));
      await ask(`http://${firestore.host}/emulator/v1/projects/${project}:securityRules`, {
        method: "PUT", body: JSON.stringify({ rules: { files: [{ name: "firestore.rules", content }] } }),
      });
    },
    read: (path) => ask(`${documents}/${path}`),
    remove: (path) => ask(`${documents}/${path}`, { method: "DELETE" }),
    /** Sets these fields of a document, and makes it when it is not there. */
    async write(path, fields) {
      const mask = Object.keys(fields).map((field) => `updateMask.fieldPaths=${field}`).join("&");
      const body = { fields: Object.fromEntries(Object.entries(fields).map(([key, value]) => [key, valueOf(value)])) };
      await ask(`${documents}/${path}?${mask}`, { method: "PATCH", body: JSON.stringify(body) });
    },
  };
  await google.deployRules();
  return google;
}

function valueOf(value) {
  if (value === null) return { nullValue: null };
  if (value instanceof Date) return { timestampValue: value.toISOString() };
  if (typeof value === "boolean") return { booleanValue: value };
  if (typeof value === "number") return { integerValue: String(value) };
  if (Array.isArray(value)) return { arrayValue: { values: value.map(valueOf) } };
  if (typeof value === "object") return { mapValue: { fields: Object.fromEntries(Object.entries(value).map(([key, inner]) => [key, valueOf(inner)])) } };
  return { stringValue: value };
}
