// What the rules promise, one case each. Every case runs against the rules as they are and, in weakened.test.js,
// against rules that were made worse on purpose.

import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { firebasePackages, REPOSITORY } from "./emulators.js";

const require = await firebasePackages();
const { assertFails, assertSucceeds, initializeTestEnvironment } = require("@firebase/rules-unit-testing");
const {
  addDoc, collection, collectionGroup, deleteDoc, doc, documentId, endAt, getDoc, getDocs, onSnapshot, orderBy, query, runTransaction,
  setDoc, startAt, updateDoc, where, writeBatch,
} = require("firebase/firestore");
require("firebase/firestore").setLogLevel("silent");

export const RULES = await readFile(join(REPOSITORY, "infra/firestore/firestore.rules"), "utf8");

const OWNER = "ada";
const STRANGER = "eve";
const OWNED = ["runs/run_ada", "conversations/conv_ada", "batches/batch_ada"];
const PIECES = ["runs/run_ada/deltas/000001-000000000001", "runs/run_ada/final/000001-000000000001"];
const VISIBLE = [...OWNED, ...PIECES];
const INTERNAL = [
  "lines/ada", "idempotency/ada", "trash/ada", "settings/ada", "runs/run_ada/notes/1", "conversations/conv_ada/notes/1",
  "runs/run_ada/files/000001", "runs/run_ada/fileParts/000001-0f-0000",
];
const EVERYTHING = [...VISIBLE, ...INTERNAL];
const parent = (path) => path.slice(0, path.lastIndexOf("/"));

/** An environment with `rules` in a project of its own, and a document of each user everywhere. */
export async function withRules(rules, host, projectId) {
  const [name, port] = host.split(":");
  const environment = await initializeTestEnvironment({ projectId, firestore: { host: name, port: Number(port), rules } });
  await environment.withSecurityRulesDisabled(async (context) => {
    const db = context.firestore();
    const writes = writeBatch(db);
    for (const path of EVERYTHING) {
      writes.set(doc(db, path), { userId: OWNER, status: "in_progress", text: "secret" });
      writes.set(doc(db, path.replaceAll("ada", "eve")), { userId: STRANGER, status: "in_progress", text: "other" });
    }
    writes.set(doc(db, "runs/nobodys"), { status: "queued" });
    await writes.commit();
  });
  return {
    owner: environment.authenticatedContext(OWNER).firestore(),
    stranger: environment.authenticatedContext(STRANGER).firestore(),
    nobody: environment.unauthenticatedContext().firestore(),
    // A claim of one's own making is no identity.
    liar: environment.authenticatedContext(STRANGER, { userId: OWNER, name: OWNER, email: "ada@example.org" }).firestore(),
    close: () => environment.cleanup(),
  };
}

const own = (db, path, user = OWNER) => query(collection(db, parent(path)), where("userId", "==", user));

/** A listener's first answer, or its refusal. */
const firstSnapshot = (target) =>
  new Promise((done, failed) => {
    const end = onSnapshot(target, (snapshot) => (end(), done(snapshot)), failed);
  });

async function allFail(attempts) {
  for (const attempt of attempts) await assertFails(attempt());
}

const readers = ({ stranger, nobody, liar }) => [stranger, nobody, liar];

export const cases = {
  "an owner reads and lists what is theirs": async ({ owner }) => {
    for (const path of VISIBLE) await assertSucceeds(getDoc(doc(owner, path)));
    for (const path of OWNED) {
      const found = await assertSucceeds(getDocs(own(owner, path)));
      if (found.size !== 1) throw new Error(`${found.size} documents of ${path}`);
    }
  },

  "an owner listens to a run and to the pieces of its reply in the order of their names": async ({ owner }) => {
    await assertSucceeds(firstSnapshot(doc(owner, "runs/run_ada")));
    for (const path of PIECES) {
      const pieces = query(collection(owner, parent(path)), orderBy(documentId()), startAt("000001-"), endAt("000001-\uf8ff"));
      const found = await assertSucceeds(firstSnapshot(pieces));
      if (found.size !== 1) throw new Error(`${found.size} pieces in ${parent(path)}`);
      await assertSucceeds(getDocs(own(owner, path)));
    }
  },

  "a stranger, a liar and somebody signed out get nothing of it": async (users) => {
    for (const db of readers(users)) await allFail(VISIBLE.map((path) => () => getDoc(doc(db, path))));
  },

  "a stranger's listener is refused": async (users) => {
    for (const db of readers(users)) {
      await allFail([() => firstSnapshot(doc(db, "runs/run_ada")), () => firstSnapshot(own(db, "runs/run_ada"))]);
    }
  },

  "a stranger lists nothing by naming the owner": async (users) => {
    for (const db of readers(users)) await allFail(OWNED.map((path) => () => getDocs(own(db, path))));
  },

  "nobody lists the pieces of a stranger's reply": async (users) => {
    for (const db of readers(users)) {
      await allFail(PIECES.flatMap((path) => [
        () => getDocs(collection(db, parent(path))),
        () => getDocs(own(db, path)),
        () => getDocs(own(db, path, STRANGER)),
      ]));
    }
  },

  "nobody lists without saying whose": async ({ owner, ...others }) => {
    for (const db of [owner, ...readers(others)]) {
      await allFail(OWNED.map((path) => () => getDocs(collection(db, parent(path)))));
      await allFail(OWNED.map((path) => () => getDocs(query(collection(db, parent(path)), where("status", "==", "in_progress")))));
      await allFail(OWNED.map((path) => () => getDocs(query(collection(db, parent(path)), where("userId", "in", [OWNER, STRANGER])))));
    }
  },

  "nobody reads across all runs": async ({ owner, ...others }) => {
    for (const db of [owner, ...readers(others)]) {
      await allFail(["deltas", "final", "notes", "files", "fileParts"].map((name) => () => getDocs(query(collectionGroup(db, name), where("userId", "==", OWNER)))));
    }
  },

  "what belongs to nobody is nobody's": async ({ owner, ...others }) => {
    for (const db of [owner, ...readers(others)]) {
      await allFail(["runs/nobodys", "runs/missing", "runs/missing/deltas/1"].map((path) => () => getDoc(doc(db, path))));
    }
  },

  "the store's own documents are not even their user's": async ({ owner, ...others }) => {
    for (const db of [owner, ...readers(others)]) {
      await allFail(INTERNAL.flatMap((path) => [() => getDoc(doc(db, path)), () => getDocs(own(db, path)), () => getDocs(collection(db, parent(path)))]));
    }
  },

  "nobody creates": async ({ owner, ...others }) => {
    for (const db of [owner, ...readers(others)]) {
      await allFail(EVERYTHING.flatMap((path) => [
        () => setDoc(doc(db, parent(path), "new"), { userId: OWNER, text: "mine" }),
        () => setDoc(doc(db, parent(path), "new"), { userId: STRANGER, text: "mine" }),
        () => addDoc(collection(db, parent(path)), { userId: OWNER, createdAt: new Date() }),
      ]));
    }
  },

  "nobody changes": async ({ owner, ...others }) => {
    for (const db of [owner, ...readers(others)]) {
      await allFail(EVERYTHING.flatMap((path) => [
        () => updateDoc(doc(db, path), { status: "completed" }),
        () => setDoc(doc(db, path), { userId: STRANGER }),
        () => setDoc(doc(db, path), { text: "changed" }, { merge: true }),
        () => runTransaction(db, async (transaction) => transaction.update(doc(db, path), { text: "changed" }), { maxAttempts: 1 }),
        () => writeBatch(db).update(doc(db, path), { text: "changed" }).commit(),
      ]));
    }
  },

  "nobody deletes": async ({ owner, ...others }) => {
    for (const db of [owner, ...readers(others)]) await allFail(EVERYTHING.map((path) => () => deleteDoc(doc(db, path))));
  },
};
