// Who is signed in, where the server wants tokens: Firebase Auth, loaded from the address the server names. In the
// other mode nothing is loaded and nobody is asked.

import { config } from "./config.js";
import { openDocuments } from "./firestore.js";
import { remember, remembered } from "./settings.js";

/** Whether people sign in here. */
export const usesTokens = config.auth === "tokens";

let sdk = null;       // the module firebase-auth.js
let app = null;
let auth = null;
let user = null;
let source = null;    // the Firestore of the user, where the page may listen to it

/** Who is signed in as `{id, name}`, or null. */
export const account = () =>
  user === null ? null : { id: user.uid, name: user.email || user.displayName || user.uid };

/** What to listen to for runs instead of the event stream, or null. */
export const documents = () => source;

/** A token that is good for some minutes; `fresh` asks for a new one whatever the clock says. */
export async function token(fresh = false) {
  return user === null ? null : user.getIdToken(fresh);
}

/** Whether somebody was signed in here when the page was last open. A guess for the first paint, no more. */
export const wasSignedIn = () => remembered("signedIn") !== null;

/** Whether sign-in with a Google account is offered. */
export const offersGoogle = () => Boolean(config.firebase?.authDomain);

const { firebase } = config;

/**
 * Loads Firebase Auth and calls `onUser()` whenever another user, or nobody, is signed in, the first time as soon as
 * that is known. Throws when Firebase cannot be loaded.
 */
export async function startSession(onUser) {
  const [core, loaded] = await Promise.all([import(`${firebase.sdk}/firebase-app.js`), import(`${firebase.sdk}/firebase-auth.js`)]);
  sdk = loaded;
  app = core.initializeApp({
    apiKey: firebase.apiKey, projectId: firebase.projectId, ...(firebase.authDomain && { authDomain: firebase.authDomain }),
  });
  auth = sdk.initializeAuth(app, {
    persistence: [sdk.indexedDBLocalPersistence, sdk.browserLocalPersistence, sdk.inMemoryPersistence],
    // Without an address for it the resolver would still load Google's script on some browsers.
    ...(offersGoogle() && { popupRedirectResolver: sdk.browserPopupRedirectResolver }),
  });
  if (firebase.emulator) sdk.connectAuthEmulator(auth, firebase.emulator, { disableWarnings: true });
  sdk.onAuthStateChanged(auth, (next) => {
    user = next;
    remember("signedIn", next === null ? null : "yes");
    if (next !== null && config.firestore !== null) source ??= openDocuments(app, firebase.sdk, config.firestore);
    onUser();
  });
}

/** Each of these throws Firebase's error, whose `code` says what was wrong. */
export const signIn = (email, password) => sdk.signInWithEmailAndPassword(auth, email, password);
export const createAccount = (email, password) => sdk.createUserWithEmailAndPassword(auth, email, password);
export const signInWithGoogle = () => sdk.signInWithPopup(auth, new sdk.GoogleAuthProvider());
export const signOut = () => sdk.signOut(auth);
export function resetPassword(email, language) {
  auth.languageCode = language;
  return sdk.sendPasswordResetEmail(auth, email);
}
