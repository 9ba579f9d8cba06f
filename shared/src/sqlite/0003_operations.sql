-- What an operator looks at. `doc` is the record as JSON (shared::store::{DeadLetter, WorkerReport}).
CREATE TABLE dead_letters (
    pk        INTEGER PRIMARY KEY,
    id        TEXT    NOT NULL,
    open      INTEGER NOT NULL,
    expire_at INTEGER NOT NULL,
    doc       TEXT    NOT NULL
) STRICT;
CREATE UNIQUE INDEX dead_letters_id ON dead_letters (id);
CREATE INDEX dead_letters_open ON dead_letters (pk) WHERE open = 1;
CREATE INDEX dead_letters_expire ON dead_letters (expire_at);

CREATE TABLE workers (
    id      TEXT    PRIMARY KEY,
    seen_at INTEGER NOT NULL,
    doc     TEXT    NOT NULL
) STRICT, WITHOUT ROWID;

-- Runs that were removed: a late message for one of them is no stray.
CREATE TABLE removed_runs (
    id        TEXT    PRIMARY KEY,
    expire_at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX removed_runs_expire ON removed_runs (expire_at);

-- Conversations without a run go when their time is over.
CREATE INDEX conversations_updated ON conversations (updated_at);
