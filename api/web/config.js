// What the page has to know about its server before it asks it anything. The server answers this file's address
// with the same shape, filled from its configuration, unless `X-User-Id` is all it needs: then this file stands.
//
// `firebase` is `{sdk, projectId, apiKey, authDomain, emulator}`, or null when nobody can sign in;
// `firestore` is `{database, emulator}` when the page may listen to it, else null. Emulators are addresses or null.

export const config = { auth: "header", firebase: null, firestore: null };
