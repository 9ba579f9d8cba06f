-- Runs, their reply deltas, conversations, idempotency keys, and the queue's messages.
--
-- `doc` is the run as JSON (shared::run::Run without message and reply). The other columns exist to be found by, and
-- are written together with it; `sequence_number` and `lease_expires_at` change alone with a delta or a heartbeat and
-- are the ones that count. Indexes are partial where they can be: what is finished costs nothing.
--
-- `final_text` is a reply that the agent stated as a whole at its end and that differs from what it streamed.

CREATE TABLE conversations (
    pk           INTEGER PRIMARY KEY,
    user_id      TEXT    NOT NULL,
    id           TEXT    NOT NULL,
    title        TEXT    NOT NULL,
    created_at   INTEGER NOT NULL,
    updated_at   INTEGER NOT NULL,
    next_ordinal INTEGER NOT NULL,
    deleted      INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE UNIQUE INDEX conversations_of_user ON conversations (user_id, id) WHERE deleted = 0;
CREATE INDEX conversations_deleted ON conversations (pk) WHERE deleted = 1;

CREATE TABLE runs (
    pk               INTEGER PRIMARY KEY,
    id               TEXT    NOT NULL,
    user_id          TEXT    NOT NULL,
    conversation     INTEGER NOT NULL REFERENCES conversations (pk),
    ordinal          INTEGER NOT NULL,
    status           TEXT    NOT NULL,
    rolled_back      INTEGER NOT NULL DEFAULT 0,
    not_before       INTEGER,
    start_by         INTEGER,
    lease_expires_at INTEGER,
    expire_at        INTEGER,
    published_at     INTEGER NOT NULL,
    sequence_number  INTEGER NOT NULL,
    doc              TEXT    NOT NULL,
    message          BLOB    NOT NULL,
    final_text       BLOB
) STRICT;
CREATE UNIQUE INDEX runs_id ON runs (id);
CREATE INDEX runs_of_conversation ON runs (conversation, ordinal);
CREATE INDEX runs_active_of_conversation ON runs (conversation, ordinal) WHERE status IN ('queued', 'in_progress', 'cancelling');
CREATE INDEX runs_active_of_user ON runs (user_id, status) WHERE status IN ('queued', 'in_progress', 'cancelling');
CREATE INDEX runs_queued ON runs (status) WHERE status = 'queued';
CREATE INDEX runs_published ON runs (published_at) WHERE status = 'queued';
CREATE INDEX runs_start_by ON runs (start_by) WHERE start_by IS NOT NULL AND status = 'queued';
CREATE INDEX runs_not_before ON runs (not_before) WHERE not_before IS NOT NULL AND status = 'queued';
CREATE INDEX runs_leased ON runs (lease_expires_at) WHERE lease_expires_at IS NOT NULL;
CREATE INDEX runs_expire ON runs (expire_at) WHERE expire_at IS NOT NULL;

-- How many runs wait. Counting them would cost every submission the length of the line.
CREATE TABLE queue_length (queued INTEGER NOT NULL) STRICT;
INSERT INTO queue_length VALUES (0);

CREATE TABLE deltas (
    run             INTEGER NOT NULL REFERENCES runs (pk) ON DELETE CASCADE,
    sequence_number INTEGER NOT NULL,
    text            BLOB    NOT NULL,
    PRIMARY KEY (run, sequence_number)
) STRICT, WITHOUT ROWID;

CREATE TABLE idempotency_keys (
    user_id    TEXT    NOT NULL,
    key        TEXT    NOT NULL,
    body_hash  BLOB    NOT NULL,
    run_id     TEXT    NOT NULL,
    expires_at INTEGER NOT NULL,
    PRIMARY KEY (user_id, key)
) STRICT, WITHOUT ROWID;
CREATE INDEX idempotency_keys_expire ON idempotency_keys (expires_at);

CREATE TABLE messages (
    pk     INTEGER PRIMARY KEY,
    run_id TEXT NOT NULL,
    trace  TEXT NOT NULL
) STRICT;
