// The few calls that the page makes on Firestore's SDK. It only ever reads: the rules let nobody write.

/**
 * Listens to runs of the signed-in user. Returns what follow-firestore.js takes as its source. The SDK is loaded
 * at once, and what is listened to before it is there waits for it.
 */
export function openDocuments(app, sdk, { database, emulator }) {
  const loading = open();
  loading.catch(() => {}); // Said to each listener below.

  async function open() {
    const firestore = await import(`${sdk}/firebase-firestore.js`);
    const db = firestore.getFirestore(app, database);
    if (emulator) {
      const { hostname, port } = new URL(emulator);
      firestore.connectFirestoreEmulator(db, hostname, Number(port));
    }
    return { ...firestore, db };
  }

  /** Starts what `begin(firestore)` returns the end of, as soon as the SDK is there. */
  function listening(begin, onRefused) {
    let ended = false;
    let end = () => {};
    loading.then((firestore) => {
      if (!ended) end = begin(firestore);
    }).catch((error) => {
      if (!ended) onRefused(error);
    });
    return () => {
      ended = true;
      end();
    };
  }

  return {
    /** `onData(data)` with each version of the document (null: there is none), `onLost()` without a connection. */
    listenRun(runId, { onData, onLost, onRefused }) {
      return listening(({ db, doc, onSnapshot }) => onSnapshot(doc(db, "runs", runId), { includeMetadataChanges: true }, (snapshot) => {
        // What the cache says may be of any age, and without a connection it says that nothing exists.
        if (snapshot.metadata.fromCache) onLost();
        else onData(snapshot.exists() ? snapshot.data() : null);
      }, onRefused), onRefused);
    },

    /** The reply of one attempt: `onWhole(text)` first and after any gap, `onMore(piece)` for what comes after it. */
    listenDeltas(runId, epoch, { onWhole, onMore, onRefused }) {
      return listening(({ db, collection, documentId, endAt, onSnapshot, orderBy, query, startAt }) => {
        // Names begin with the epoch, so this needs no index of its own.
        const prefix = `${String(epoch).padStart(6, "0")}-`;
        const deltas = query(collection(db, "runs", runId, "deltas"), orderBy(documentId()), startAt(prefix), endAt(`${prefix}\uf8ff`));
        const textOf = (documents) => documents.map((delta) => delta.data().text).join("");
        let known = 0;
        return onSnapshot(deltas, (snapshot) => {
          if (snapshot.metadata.fromCache) return;
          const changes = snapshot.docChanges();
          const continues = known > 0 && changes.every(({ type, newIndex }) => type === "added" && newIndex >= known);
          known = snapshot.size;
          if (!continues) onWhole(textOf(snapshot.docs));
          else if (changes.length > 0) onMore(textOf(changes.map((change) => change.doc)));
        }, onRefused);
      }, onRefused);
    },
  };
}
