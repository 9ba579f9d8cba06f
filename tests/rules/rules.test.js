// The rules of infra/firestore against Google's Firestore emulator, and the check of this check: each way to weaken
// them turns a case red.

import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { startFirestore } from "./support/emulators.js";
import { cases, RULES, withRules } from "./support/suite.js";

let firestore;
let projects = 0;

before(async () => {
  firestore = await startFirestore();
});

after(() => firestore?.stop());

/** The names of the cases that do not hold for `rules`. */
async function broken(rules, names = Object.keys(cases)) {
  projects += 1;
  const users = await withRules(rules, firestore.host, `demo-rules-${projects}`);
  const failed = [];
  for (const name of names) await cases[name](users).catch(() => failed.push(name));
  await users.close();
  return failed;
}

for (const name of Object.keys(cases)) {
  test(name, async () => {
    projects += 1;
    const users = await withRules(RULES, firestore.host, `demo-rules-${projects}`);
    await cases[name](users);
    await users.close();
  });
}

const OWNER_ONLY = "request.auth != null && data.userId == request.auth.uid";
const RUN = "match /runs/{run} {\n      allow read: if owns(resource.data);";
const PIECE = "allow read: if ofOwnRun();";

/** What is replaced by what, and a case that must notice. */
const WEAKER = {
  "the owner is not compared": [OWNER_ONLY, "request.auth != null", "a stranger, a liar and somebody signed out get nothing of it"],
  "signed out is as good": [OWNER_ONLY, `request.auth == null || ${OWNER_ONLY}`, "a stranger, a liar and somebody signed out get nothing of it"],
  "a claim is believed": ["data.userId == request.auth.uid", "(data.userId == request.auth.uid || data.userId == request.auth.token.get('userId', ''))",
    "a stranger, a liar and somebody signed out get nothing of it"],
  "everybody lists": [RUN, "match /runs/{run} {\n      allow get: if owns(resource.data);\n      allow list: if request.auth != null;", "nobody lists without saying whose"],
  "what belongs to nobody is everybody's": [OWNER_ONLY, `(request.auth != null && (!('userId' in data) || data.userId == request.auth.uid))`, "what belongs to nobody is nobody's"],
  "pieces are open to whoever is signed in": [PIECE, "allow read: if request.auth != null;", "nobody lists the pieces of a stranger's reply"],
  "pieces are found across runs": ["match /batches", "match /{path=**}/deltas/{delta} {\n      allow read: if owns(resource.data);\n    }\n\n    match /batches", "nobody reads across all runs"],
  "conversations are open": ["match /conversations/{conversation} {\n      allow read: if owns(resource.data);", "match /conversations/{conversation} {\n      allow read;", "nobody lists without saying whose"],
  "batches are open to whoever is signed in": ["match /batches/{batch} {\n      allow read: if owns(resource.data);", "match /batches/{batch} {\n      allow read: if request.auth != null;", "nobody lists without saying whose"],
  "owners write their runs": [RUN, `${RUN}\n      allow write: if owns(resource.data);`, "nobody changes"],
  "owners create runs": [RUN, `${RUN}\n      allow create: if owns(request.resource.data);`, "nobody creates"],
  "owners delete conversations": ["match /conversations/{conversation} {\n", "match /conversations/{conversation} {\n      allow delete: if owns(resource.data);\n", "nobody deletes"],
  "owners add deltas": [PIECE, `${PIECE}\n        allow create: if ofOwnRun();`, "nobody creates"],
  "owners change deltas": [PIECE, `${PIECE}\n        allow update: if ofOwnRun();`, "nobody changes"],
  "lines are open": ["match /batches", "match /lines/{line} {\n      allow read: if owns(resource.data);\n    }\n\n    match /batches", "the store's own documents are not even their user's"],
  "files are open to their owner": ["match /deltas/{delta}", "match /files/{list} {\n        allow read: if ofOwnRun();\n      }\n\n      match /deltas/{delta}", "the store's own documents are not even their user's"],
  "what is in files is open to their owner": ["match /deltas/{delta}", "match /fileParts/{part} {\n        allow read: if ofOwnRun();\n      }\n\n      match /deltas/{delta}", "the store's own documents are not even their user's"],
  "every document with an owner is open": ["match /batches", "match /{path=**} {\n      allow read: if owns(resource.data);\n    }\n\n    match /batches", "the store's own documents are not even their user's"],
};

for (const [what, [from, to, noticed]] of Object.entries(WEAKER)) {
  test(`weakened rules turn a case red: ${what}`, async () => {
    const weaker = RULES.replace(from, () => to);
    assert.notEqual(weaker, RULES, "the rules do not hold what this weakens");
    assert.deepEqual(await broken(weaker, [noticed]), [noticed]);
  });
}

test("rules that let nobody read turn a case red", async () => {
  assert.ok((await broken(RULES.replaceAll("allow read", "allow update"))).includes("an owner reads and lists what is theirs"));
});
