//! Nothing lost and nothing doubled, whatever the queue delivers and whichever worker dies or freezes.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use futures::{StreamExt, stream};
use quayside_shared::ids::{ConversationId, RunId};
use quayside_shared::queue::{Message, Queue};
use quayside_shared::run::{AttemptOutcome, Run, Status};
use quayside_shared::state::may_become;
use quayside_shared::store::firestore::FirestoreStore;
use quayside_shared::store::{MultitaskStrategy, NewRun, Store};

use super::fleet::{self, Dice, LEASE, Shuffled, Worker, agent};

const USERS: usize = 100;
const RUNS: usize = 2_000;
/// Of a user's runs, so many are alone in their conversation; the others share conversations of [`TALK`].
const ALONE: usize = 8;
const TALK: usize = 4;
/// Submissions at once.
const SUBMITTERS: usize = 6;
const KILLS: usize = 10;
const FREEZES: usize = 2;
/// Reached only when the test fails.
const PATIENCE: Duration = Duration::from_secs(300);
/// How often the test counts what is left: that costs the emulator as much as a run.
const LOOK: Duration = Duration::from_millis(700);
const SEED: u64 = 20_261_123;

/// A run that was accepted.
struct Accepted {
    id: RunId,
    conversation: ConversationId,
    message: String,
}

/// The runs of a user, each with its conversation, in the order they are submitted.
fn plan(user: usize) -> Vec<(ConversationId, String)> {
    let talks: Vec<_> = (0..(RUNS / USERS - ALONE) / TALK).map(|_| ConversationId::random()).collect();
    let together = talks.iter().cycle().take(talks.len() * TALK).cloned();
    let alone = std::iter::repeat_with(ConversationId::random).take(ALONE);
    alone.chain(together).enumerate().map(|(number, conversation)| (conversation, format!("{user}.{number}"))).collect()
}

/// Submits one run as the API does, and announces what may start.
async fn submit(store: &FirestoreStore, queue: &Shuffled, user: usize, number: usize, (conversation, message): (ConversationId, String)) -> Accepted {
    let new = NewRun {
        id: RunId::random(),
        user_id: format!("user-{user}").parse().unwrap(),
        conversation_id: conversation.clone(),
        // Some take their time, so that faults hit a reply in the middle.
        agent: if number.is_multiple_of(4) { "slow" } else { "echo" }.parse().unwrap(),
        message: message.clone(),
        multitask: MultitaskStrategy::Enqueue,
        timeout: Duration::from_secs(60),
        queue_ttl: None,
        metadata: BTreeMap::new(),
        files: Vec::new(),
        idempotency: None,
    };
    let run = store.submit(new).await.unwrap();
    let messages: Vec<Message> = run.wake.into_iter().map(Message::new).collect();
    queue.publish(&messages).await.unwrap();
    Accepted { id: run.run.id, conversation, message }
}

/// One run of each user after the other, so that all are at it all the time.
async fn submit_all(store: Arc<FirestoreStore>, queue: Arc<Shuffled>, submitted: Arc<AtomicUsize>) -> Vec<Accepted> {
    let mut plans: Vec<_> = (0..USERS).map(|user| plan(user).into_iter()).collect();
    let mut accepted = Vec::new();
    for number in 0..RUNS / USERS {
        let next: Vec<_> = plans.iter_mut().map(|plan| plan.next().expect("as many as all have")).enumerate().collect();
        let round = stream::iter(next).map(|(user, planned)| {
            let (store, queue) = (Arc::clone(&store), Arc::clone(&queue));
            async move { submit(&store, &queue, user, number, planned).await }
        });
        for run in round.buffered(SUBMITTERS).collect::<Vec<_>>().await {
            submitted.fetch_add(1, Ordering::SeqCst);
            accepted.push(run);
        }
    }
    accepted
}

async fn unfinished(store: &FirestoreStore) -> usize {
    let depth = store.depth().await.unwrap();
    usize::try_from(depth.queued + depth.leased).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_run_ends_once_whatever_is_delivered() {
    let google = fleet::google().await;
    let store = Arc::new(fleet::store(&google).await);
    let queue = Arc::new(Shuffled::connect(&google, SEED).await);
    let agents = [agent("echo", &["echo"]), agent("slow", &["stdout:>", "sleep:150ms", "echo"])];
    let mut dice = Dice::new(SEED);
    let life = |seed| Worker::start(&google, &agents, SEED + seed);
    let begun = Instant::now();

    let submitted = Arc::new(AtomicUsize::new(0));
    let submitting = tokio::spawn(submit_all(Arc::clone(&store), Arc::clone(&queue), Arc::clone(&submitted)));

    let mut workers = [life(0), life(1)];
    let faults = KILLS + FREEZES;
    let mut told = 0;
    for fault in 0..faults {
        // Spread over the whole of it, each at a moment that nobody chose.
        let due = RUNS * (fault + 1) / (faults + 1) - dice.roll(RUNS / faults / 2);
        while told < due {
            assert!(begun.elapsed() < PATIENCE, "only {told} of {RUNS} runs have ended");
            tokio::time::sleep(LOOK).await;
            told = submitted.load(Ordering::SeqCst).saturating_sub(unfinished(&store).await);
        }
        let place = fault % 2;
        if fault % (faults / FREEZES) == 2 {
            workers[place].freeze(LEASE + Duration::from_millis(700));
        } else {
            std::mem::replace(&mut workers[place], life(2 + fault as u64)).kill();
        }
    }
    let accepted = submitting.await.unwrap();
    assert_eq!(accepted.len(), RUNS);
    while unfinished(&store).await > 0 {
        assert!(begun.elapsed() < PATIENCE, "{} runs have not ended", unfinished(&store).await);
        tokio::time::sleep(LOOK).await;
    }
    let took = begun.elapsed();

    let runs: Vec<Run> = stream::iter(&accepted)
        .map(|accepted| async { store.run(&accepted.id).await.unwrap().expect("it was accepted") })
        .buffered(16)
        .collect()
        .await;
    let again: usize = runs.iter().map(|run| run.attempts.len() - 1).sum();
    println!("{RUNS} runs in {took:.1?} ({:.0} a second), {again} attempts lost and redone", RUNS as f64 / took.as_secs_f64());
    for (run, accepted) in runs.iter().zip(&accepted) {
        assert_ended_once(run, &accepted.message);
    }
    assert!(again > 0, "no fault hit an attempt: the test shows nothing");
    assert_in_order(&accepted, &runs);
}

fn assert_ended_once(run: &Run, message: &str) {
    let reply = if run.agent.as_str() == "slow" { format!(">{message}") } else { message.to_owned() };
    assert_eq!((run.status, run.text.as_str()), (Status::Completed, reply.as_str()), "{run:?}");
    let (last, lost) = run.attempts.split_last().unwrap();
    assert_eq!(last.outcome, Some(AttemptOutcome::Finished), "{run:?}");
    assert!(lost.iter().all(|attempt| attempt.outcome == Some(AttemptOutcome::WorkerLost)), "{run:?}");
    assert!(run.attempts.windows(2).all(|pair| pair[0].ended_at.unwrap() <= pair[1].started_at), "two at once: {run:?}");
    assert!(run.attempts.iter().zip(1..).all(|(attempt, number)| attempt.number == number), "{run:?}");
    let log = &run.status_log;
    assert_eq!(log.iter().filter(|change| change.status.is_terminal()).count(), 1, "one visible end: {run:?}");
    for pair in log.windows(2) {
        let waits = pair[0].status == Status::Queued && pair[1].status == Status::Queued && pair[0].waiting_reason != pair[1].waiting_reason;
        assert!(waits || may_become(pair[0].status, pair[1].status), "{:?} to {:?}: {run:?}", pair[0], pair[1]);
        assert!(pair[0].sequence_number < pair[1].sequence_number, "{run:?}");
    }
    let starts = log.iter().filter(|change| change.status == Status::InProgress).count();
    assert_eq!(starts, run.attempts.len(), "{run:?}");
}

fn assert_in_order(accepted: &[Accepted], runs: &[Run]) {
    let mut talks = BTreeMap::<&str, Vec<&Run>>::new();
    for (accepted, run) in accepted.iter().zip(runs) {
        talks.entry(accepted.conversation.as_str()).or_default().push(run);
    }
    assert_eq!(talks.values().filter(|runs| runs.len() == TALK).count(), USERS * (RUNS / USERS - ALONE) / TALK);
    for runs in talks.values() {
        for pair in runs.windows(2) {
            assert!(pair[0].finished_at.unwrap() <= pair[1].started_at.unwrap(), "out of order: {:?} then {:?}", pair[0], pair[1]);
        }
    }
}
