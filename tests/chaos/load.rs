//! What users do during a round: they talk in conversations, repeat what was not answered, cancel, and watch.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::task::JoinSet;

use super::client::{Clients, Request};
use super::dice::Dice;

pub const USERS: usize = 4;
const CONVERSATIONS: usize = 4;

/// How much, and how fast.
#[derive(Debug, Clone, Copy)]
pub struct Load {
    pub runs: usize,
    /// The longest rest between two messages of a conversation.
    pub rest: Duration,
}

/// Who talks where.
pub fn conversations() -> impl Iterator<Item = (String, String)> {
    (0..USERS).flat_map(|user| (0..CONVERSATIONS).map(move |talk| (format!("user-{user}"), format!("talk-{user}-{talk}"))))
}

/// Submits everything and watches it to the end. `done` counts the runs that ended.
pub async fn run(clients: &Arc<Clients>, load: Load, dice: &Dice, done: &Arc<AtomicUsize>) {
    let mut talks = JoinSet::new();
    for (number, (user, conversation)) in conversations().enumerate() {
        let each = USERS * CONVERSATIONS;
        let runs = load.runs / each + usize::from(number < load.runs % each);
        let dice = dice.fork(&conversation);
        talks.spawn(talk(clients.clone(), user, conversation, runs, load.rest, dice, done.clone()));
    }
    while let Some(ended) = talks.join_next().await {
        ended.expect("a user was surprised");
    }
}

async fn talk(clients: Arc<Clients>, user: String, conversation: String, runs: usize, rest: Duration, mut dice: Dice, done: Arc<AtomicUsize>) {
    let mut watching = JoinSet::new();
    for number in 0..runs {
        let (request, is_cancelled) = request(&user, &conversation, number, &mut dice);
        let run = clients.submit(&request).await;
        if dice.percent(10) {
            // The same key again: the same run, whatever happens to the answer.
            clients.submit_once(&request).await;
        }
        watching.spawn(watch(clients.clone(), user.clone(), run.clone(), is_cancelled, dice.fork(&run), done.clone()));
        tokio::time::sleep(rest.mul_f64(f64::from(u32::try_from(dice.below(100)).unwrap()) / 100.0)).await;
    }
    while let Some(ended) = watching.join_next().await {
        ended.expect("an observer was surprised");
    }
}

fn request(user: &str, conversation: &str, number: usize, dice: &mut Dice) -> (Request, bool) {
    let token = format!("{user} {conversation} {number}");
    let kind = dice.below(100);
    let (agent, message, reply) = match kind {
        0..44 => ("cat", format!("{token}: äöü\n\0end"), format!("{token}: äöü\n\0end")),
        44..88 => ("sh", format!("echo {token}; sleep {}.{}; echo done", dice.below(3), dice.below(10)), format!("{token}\ndone\n")),
        _ => ("sh", format!("echo {token}; sleep 12; echo late"), format!("{token}\nlate\n")),
    };
    let key = format!("{conversation}-{number}");
    let request = Request { user: user.to_owned(), conversation: conversation.to_owned(), key, agent, message, reply };
    (request, kind >= 88)
}

async fn watch(clients: Arc<Clients>, user: String, run: String, is_cancelled: bool, mut dice: Dice, done: Arc<AtomicUsize>) {
    let (kind, pause) = (dice.below(3), dice.millis(100..700));
    let observe = async {
        match kind {
            0 => clients.follow(&user, &run).await,
            kind => clients.poll(&user, &run, pause, kind == 1).await,
        }
    };
    let cancel = async {
        if is_cancelled {
            tokio::time::sleep(dice.millis(200..4000)).await;
            clients.cancel(&user, &run).await;
        }
    };
    tokio::join!(observe, cancel);
    done.fetch_add(1, Ordering::SeqCst);
}
