-- Files of runs: those that came with the message under epoch 0, those that an attempt left behind under its own. `doc` is
-- the list as JSON (shared::store::files::FileList); its rows are in `file_parts`, each up to 512 KiB.
CREATE TABLE file_lists (
    run   INTEGER NOT NULL REFERENCES runs (pk) ON DELETE CASCADE,
    epoch INTEGER NOT NULL,
    doc   TEXT    NOT NULL,
    PRIMARY KEY (run, epoch)
) STRICT, WITHOUT ROWID;

CREATE TABLE file_parts (
    pk     INTEGER PRIMARY KEY,
    run    INTEGER NOT NULL REFERENCES runs (pk) ON DELETE CASCADE,
    epoch  INTEGER NOT NULL,
    path   TEXT    NOT NULL,
    number INTEGER NOT NULL,
    data   BLOB    NOT NULL
) STRICT;
CREATE UNIQUE INDEX file_parts_of_run ON file_parts (run, epoch, path, number);
