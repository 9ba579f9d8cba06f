//! What every store must do. The suite's parts are modules; each test is a function over a fixture.

mod accept;
mod ends;
mod files;
mod leases;
mod lists;
mod operations;
mod sandbox;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use quayside_shared::clock::{ManualClock, Timestamp};
use quayside_shared::config::Google;
use quayside_shared::ids::{ConversationId, RunId, UserId, WorkerId};
use quayside_shared::run::{AttemptOutcome, Run, Usage};
use quayside_shared::sqlite::Database;
use quayside_shared::state::Finished;
use quayside_shared::store::firestore::FirestoreStore;
use quayside_shared::store::sqlite::SqliteStore;
use quayside_shared::store::{Changed, Claim, Fenced, Idempotency, Lease, MultitaskStrategy, NewRun, Standing, Store, StoreOptions};

use crate::support::emulators;

const LEASE: Duration = Duration::from_secs(30);

/// Opens an adapter on a clock that the test moves, and opens it again as a restarted process would.
pub(crate) trait Fixture: Sized {
    async fn open() -> Self;
    /// With a bound on the waiting runs of all users.
    async fn open_bounded(queued: u64) -> Self;
    fn store(&self) -> Arc<dyn Store>;
    fn advance(&self, by: Duration);
    async fn restart(self) -> Self;
}

pub(crate) struct Sqlite {
    folder: tempfile::TempDir,
    clock: Arc<ManualClock>,
    store: Arc<SqliteStore>,
}

impl Sqlite {
    async fn open_in(folder: tempfile::TempDir, clock: Arc<ManualClock>) -> Self {
        Self::open_with(folder, clock, StoreOptions { queued_per_user: 10, ..StoreOptions::default() }).await
    }

    async fn open_with(folder: tempfile::TempDir, clock: Arc<ManualClock>, options: StoreOptions) -> Self {
        let database = crate::support::eventually("the database", || async { Database::open(folder.path()).ok() }).await;
        let store = Arc::new(SqliteStore::open(database, clock.clone(), options).await.unwrap());
        Self { folder, clock, store }
    }
}

impl Fixture for Sqlite {
    async fn open() -> Self {
        let start = Timestamp::from_millis(1_700_000_000_000);
        Self::open_in(tempfile::tempdir().unwrap(), Arc::new(ManualClock::new(start))).await
    }
    async fn open_bounded(queued: u64) -> Self {
        let clock = Arc::new(ManualClock::new(Timestamp::from_millis(1_700_000_000_000)));
        Self::open_with(tempfile::tempdir().unwrap(), clock, StoreOptions { queued, ..StoreOptions::default() }).await
    }
    fn store(&self) -> Arc<dyn Store> {
        self.store.clone()
    }
    fn advance(&self, by: Duration) {
        self.clock.advance(by);
    }
    async fn restart(self) -> Self {
        let Self { folder, clock, store } = self;
        drop(store);
        Self::open_in(folder, clock).await
    }
}

/// Firestore's emulator, a project for each test.
pub(crate) struct Firestore {
    google: Google,
    clock: Arc<ManualClock>,
    store: Arc<FirestoreStore>,
}

impl Firestore {
    async fn open_as(google: Google, clock: Arc<ManualClock>) -> Self {
        Self::open_with(google, clock, StoreOptions { queued_per_user: 10, ..StoreOptions::default() }).await
    }

    async fn open_with(google: Google, clock: Arc<ManualClock>, options: StoreOptions) -> Self {
        let store = Arc::new(FirestoreStore::connect(&google, clock.clone(), options).await.unwrap());
        Self { google, clock, store }
    }
}

impl Firestore {
    async fn google() -> Google {
        let host = emulators::firestore().await.host().to_owned();
        Google { project_id: emulators::project(), firestore_emulator: Some(host), ..Google::default() }
    }
}

impl Fixture for Firestore {
    async fn open() -> Self {
        Self::open_as(Self::google().await, Arc::new(ManualClock::new(Timestamp::from_millis(1_700_000_000_000)))).await
    }
    async fn open_bounded(queued: u64) -> Self {
        let clock = Arc::new(ManualClock::new(Timestamp::from_millis(1_700_000_000_000)));
        Self::open_with(Self::google().await, clock, StoreOptions { queued, ..StoreOptions::default() }).await
    }
    fn store(&self) -> Arc<dyn Store> {
        self.store.clone()
    }
    fn advance(&self, by: Duration) {
        self.clock.advance(by);
    }
    async fn restart(self) -> Self {
        let Self { google, clock, store } = self;
        drop(store);
        Self::open_as(google, clock).await
    }
}

pub(crate) fn user(name: &str) -> UserId {
    name.parse().unwrap()
}

pub(crate) fn new_run(user_name: &str, conversation: &str) -> NewRun {
    NewRun {
        id: RunId::random(),
        user_id: user(user_name),
        conversation_id: conversation.parse().unwrap(),
        agent: "python".parse().unwrap(),
        message: "hello".into(),
        multitask: MultitaskStrategy::Enqueue,
        timeout: Duration::from_secs(10),
        queue_ttl: None,
        metadata: BTreeMap::new(),
        files: Vec::new(),
        idempotency: None,
    }
}

/// A run in a conversation of its own.
pub(crate) fn alone(user_name: &str) -> NewRun {
    new_run(user_name, ConversationId::random().as_str())
}

pub(crate) fn with_key(mut new: NewRun, key: &str, body: u8) -> NewRun {
    new.idempotency = Some(Idempotency { key: key.into(), body_hash: [body; 32] });
    new
}

pub(crate) async fn submit(store: &dyn Store, new: NewRun) -> RunId {
    store.submit(new).await.unwrap().run.id
}

pub(crate) async fn claim(store: &dyn Store, id: &RunId) -> Lease {
    match store.claim(id, &WorkerId::random(), LEASE).await.unwrap() {
        Claim::Claimed(lease, _) => lease,
        other => panic!("{id} should have been claimed: {other:?}"),
    }
}

pub(crate) async fn get(store: &dyn Store, id: &RunId) -> Run {
    store.run(id).await.unwrap().expect("the run")
}

/// Adds to the end of the reply as it is.
pub(crate) async fn append(store: &dyn Store, lease: &Lease, text: &str) -> Fenced<Standing> {
    let offset = get(store, &lease.run_id).await.text.len() as u64;
    store.append(lease, offset, text).await.unwrap()
}

pub(crate) fn ended(outcome: AttemptOutcome) -> Finished {
    Finished { outcome, error: None, exit_code: Some(0), truncated: false, usage: Usage::default(), lives: false, sandbox: None }
}

pub(crate) async fn finish(store: &dyn Store, lease: &Lease) -> Changed {
    store.finish(lease, ended(AttemptOutcome::Finished), None).await.unwrap().expect("the lease")
}

macro_rules! store_suite {
    ($module:ident, $fixture:ty) => {
        mod $module {
            store_suite!(@tests $fixture; accept:
                an_accepted_run_reads_back_as_it_was_sent,
                a_key_stands_for_its_run,
                a_hundred_repeats_at_once_are_one_run,
                a_key_is_free_again_after_a_day,
                the_queue_of_a_user_is_bounded,
                the_queue_of_all_is_bounded,
                reject_refuses_a_busy_conversation,
                interrupt_cancels_and_keeps,
                rollback_cancels_and_forgets,
                what_was_accepted_survives_a_restart,
            );
            store_suite!(@tests $fixture; leases:
                only_one_of_many_claims_wins,
                a_conversation_keeps_its_order,
                a_user_at_the_quota_waits_and_is_woken,
                a_heartbeat_keeps_the_lease,
                a_lost_lease_is_fenced_everywhere,
                three_lost_workers_are_poison,
                a_drained_run_goes_on_at_once_and_starts_over,
                a_delayed_retry_is_woken_when_it_is_due,
                a_lost_publish_is_repaired,
                leases_of_a_dead_process_are_taken_back,
                waiting_tells_reason_and_position,
            );
            store_suite!(@tests $fixture; ends:
                a_reply_is_assembled_from_its_deltas,
                a_delta_is_added_once_however_often_it_is_sent,
                events_resume_after_any_number,
                a_stated_reply_replaces_the_streamed_one,
                a_run_ends_once,
                a_run_is_not_cancelled_beside_its_container,
                cancelling_a_queued_run_is_immediate,
                cancelling_a_running_run_waits_for_its_worker,
                a_result_that_came_first_stands,
                watchers_hear_of_every_change,
                a_run_that_waits_too_long_expires,
                finished_runs_are_removed_after_their_time,
            );
            store_suite!(@tests $fixture; files:
                files_read_back_as_they_were_left,
                files_are_put_again_as_a_whole,
                files_of_a_lost_attempt_are_never_shown,
                a_failed_run_keeps_its_files,
                inputs_come_with_their_run,
                files_go_with_their_run,
            );
            store_suite!(@tests $fixture; lists:
                history_is_what_was_said_before,
                history_is_bounded_from_the_new_end,
                conversations_are_listed_by_use_in_pages,
                runs_of_a_conversation_are_listed_in_order_in_pages,
                nothing_is_seen_of_another_user,
                a_deleted_conversation_is_gone_at_once,
                a_cursor_of_another_hand_is_refused,
                depth_counts_what_waits_and_what_runs,
            );
            store_suite!(@tests $fixture; sandbox:
                a_run_that_is_put_off_waits_and_is_announced_again,
                only_what_is_queued_is_put_off,
                what_held_an_attempt_in_is_kept,
            );
            store_suite!(@tests $fixture; operations:
                a_run_that_was_given_up_is_a_dead_letter,
                engine_faults_in_a_row_are_given_up,
                a_stray_message_is_put_aside_once,
                a_late_message_of_a_removed_run_is_no_stray,
                a_conversation_goes_with_the_last_of_its_runs,
                workers_are_listed_while_they_are_heard_of,
            );
        }
    };
    (@tests $fixture:ty; $part:ident: $($name:ident,)*) => {
        mod $part {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                super::super::$part::$name::<$fixture>().await;
            })*
        }
    };
}

store_suite!(sqlite, super::super::Sqlite);
store_suite!(firestore, super::super::Firestore);
