//! More submissions than anybody can take, all at once: each is answered, and what is accepted is there.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde_json::{Value, json};
use tokio::sync::Semaphore;

use crate::support::server::{Backend, Options, Server, User};

const FLOOD: usize = 10_000;
const OTHER: usize = 50;
const AT_ONCE: usize = 200;
/// Resident memory may grow by this much while the flood is answered.
const GROWTH: u64 = 64 << 20;

/// Status, `Retry-After`, problem code, run.
type Answer = (u16, Option<u64>, Option<String>, Option<String>);

async fn submit(user: &User, number: usize) -> Answer {
    let body = json!({"agent": "cat", "message": format!("{number}")});
    let answer = user.post("/api/conversation").json(&body).send().await.unwrap();
    let status = answer.status().as_u16();
    let retry = answer.headers().get("Retry-After").map(|value| value.to_str().unwrap().parse().unwrap());
    let body: Value = answer.json().await.unwrap();
    let text = |name: &str| body[name].as_str().map(str::to_owned);
    (status, retry, text("code"), text("id"))
}

async fn flood(user: &User, count: usize, at_once: usize) -> Vec<Answer> {
    let places = Arc::new(Semaphore::new(at_once));
    let mut tasks = Vec::with_capacity(count);
    for number in 0..count {
        let (user, places) = (user.clone(), Arc::clone(&places));
        tasks.push(tokio::spawn(async move {
            let _place = places.acquire().await.unwrap();
            submit(&user, number).await
        }));
    }
    let mut answers = Vec::with_capacity(count);
    for task in tasks {
        answers.push(task.await.unwrap());
    }
    answers
}

fn by_status(answers: &[Answer]) -> BTreeMap<u16, usize> {
    let mut counted = BTreeMap::new();
    for (status, ..) in answers {
        *counted.entry(*status).or_default() += 1;
    }
    counted
}

/// 429 and 503 with `Retry-After` and their code, and nothing else.
fn assert_refusals(answers: &[Answer]) {
    for (status, retry, code, _) in answers.iter().filter(|(status, ..)| *status != 202) {
        let expected = if *status == 429 { "rate_limited" } else { "overloaded" };
        assert!([429, 503].contains(status), "{status} {code:?}");
        assert_eq!(code.as_deref(), Some(expected));
        assert!(retry.is_some_and(|seconds| (1..=60).contains(&seconds)), "{status}: {retry:?}");
    }
}

fn accepted(answers: &[Answer]) -> BTreeSet<String> {
    answers.iter().filter(|(status, ..)| *status == 202).map(|(.., id)| id.clone().unwrap()).collect()
}

fn resident(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
}

/// Nothing runs: there is no engine, so that the limits alone decide.
async fn server(limits: &str) -> Server {
    let folder = tempfile::tempdir().unwrap();
    let extra = format!("[runner]\ndocker_host = \"unix://{}/no.sock\"\n[limits]\n{limits}", folder.path().display());
    Server::start_unready(Backend::Embedded, Options { extra, ..Options::default() }).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_one_user_is_refused_and_another_user_is_not() {
    let server = server("queued_per_user = 60\n").await;
    let (loud, quiet) = (server.user("loud"), server.user("quiet"));
    submit(&server.user("warm"), 0).await;
    let before = resident(server.pid());
    let (flooded, other) = tokio::join!(flood(&loud, FLOOD, AT_ONCE), flood(&quiet, OTHER, 4));
    let grown = resident(server.pid()).saturating_sub(before);
    assert_eq!(by_status(&flooded), BTreeMap::from([(202, 60), (429, FLOOD - 60)]), "all are answered");
    assert_refusals(&flooded);
    assert_eq!(by_status(&other), BTreeMap::from([(202, OTHER)]));
    assert!(grown < GROWTH, "{} MiB", grown >> 20);
    for (user, answers) in [(&loud, &flooded), (&quiet, &other)] {
        for id in accepted(answers) {
            assert_eq!(user.run(&id).await["status"], "queued");
        }
    }
    let metrics = loud.get("/metrics").send().await.unwrap().text().await.unwrap();
    let depth = metrics.lines().find(|line| line.starts_with("quayside_queue_depth ")).map(str::to_owned);
    println!("{:?} and {:?}, grown by {} KiB, {depth:?}", by_status(&flooded), by_status(&other), grown >> 10);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_service_refuses_everybody_and_keeps_what_it_accepted() {
    let server = server("queued = 100\nqueued_per_user = 60\n").await;
    let users: Vec<User> = (0..5).map(|number| server.user(&format!("u{number}"))).collect();
    let floods = users.iter().map(|user| flood(user, 400, 40));
    let mut answers = Vec::new();
    for flooded in futures::future::join_all(floods).await {
        answers.extend(flooded);
    }
    assert_refusals(&answers);
    let counted = by_status(&answers);
    assert_eq!((counted[&202], counted.values().sum::<usize>()), (100, 2000), "{counted:?}");
    assert!(counted[&503] > 0, "{counted:?}");
    assert_eq!(accepted(&answers).len(), 100);
    // One that goes makes room for one.
    let (owner, id) = {
        let mut found = None;
        for user in &users {
            for id in accepted(&answers) {
                if user.get(&format!("/api/runs/{id}")).send().await.unwrap().status() == 200 {
                    found = Some((user, id));
                    break;
                }
            }
        }
        found.unwrap()
    };
    owner.cancel(&id).await;
    assert_eq!([submit(owner, 0).await.0, submit(owner, 1).await.0].iter().filter(|status| **status == 202).count(), 1);
}
