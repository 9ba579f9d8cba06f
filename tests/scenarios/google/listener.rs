//! How soon another process hears of a change.

use std::time::{Duration, Instant};

use quayside_shared::ids::{RunId, WorkerId};
use quayside_shared::run::AttemptOutcome;
use quayside_shared::store::{Claim, Lease, Store};

use super::fleet;

const CHANGES: usize = 200;
/// Ten times what is promised, for a machine that compiles at the same time.
const FAR_TOO_LATE: Duration = Duration::from_millis(600);

async fn claim(store: &dyn Store, id: &RunId) -> Lease {
    match store.claim(id, &WorkerId::random(), Duration::from_secs(60)).await.unwrap() {
        Claim::Claimed(lease, _) => lease,
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_process_hears_of_a_change_at_once() {
    let google = fleet::google().await;
    let (writer, reader) = (fleet::store(&google).await, fleet::store(&google).await);
    let id = writer.submit(fleet::new_run()).await.unwrap().run.id;
    let mut watch = reader.watch(&id);
    // The listener stands when it has told of the document as it is.
    watch.changed().await;
    let (mut lease, mut writes, mut late) = (None, Vec::new(), Vec::new());
    for _ in 0..CHANGES {
        let before = reader.run(&id).await.unwrap().unwrap().sequence_number;
        let write = async {
            let begun = Instant::now();
            lease = match lease.take() {
                None => Some(claim(&writer, &id).await),
                Some(lease) => {
                    writer.release(&lease, AttemptOutcome::Drained).await.unwrap().unwrap();
                    None
                }
            };
            (begun.elapsed(), Instant::now())
        };
        let hear = async {
            loop {
                watch.changed().await;
                let heard = Instant::now();
                // The safety net wakes every few seconds, whether there is something new or not.
                if reader.run(&id).await.unwrap().unwrap().sequence_number > before {
                    return heard;
                }
            }
        };
        let ((took, written), heard) = tokio::join!(write, hear);
        writes.push(took);
        late.push(heard.saturating_duration_since(written));
    }
    let (write, heard) = (Quantiles::of(writes), Quantiles::of(late));
    println!("write: {write:?}; heard after it: {heard:?}");
    assert!(heard.p95 < FAR_TOO_LATE, "{heard:?} after the write");
}

#[derive(Debug)]
struct Quantiles {
    #[expect(dead_code, reason = "printed")]
    p50: Duration,
    p95: Duration,
    #[expect(dead_code, reason = "printed")]
    max: Duration,
}

impl Quantiles {
    fn of(mut times: Vec<Duration>) -> Self {
        times.sort_unstable();
        let at = |percent: usize| times[(times.len() * percent / 100).min(times.len() - 1)];
        Self { p50: at(50), p95: at(95), max: at(100) }
    }
}
