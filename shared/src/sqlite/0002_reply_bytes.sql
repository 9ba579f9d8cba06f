-- How much of its reply the current attempt has written: a delta that is there already is not added a second time.
ALTER TABLE runs ADD COLUMN reply_bytes INTEGER NOT NULL DEFAULT 0;
