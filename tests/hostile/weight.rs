//! CPU between containers, and between them and the server: a hog slows its neighbour little, and the API less.

use std::time::{Duration, Instant};

use super::stage;
use crate::support::eventually;
use crate::support::server::User;

/// Longer than any of this takes; each hog is cancelled.
const HOLD: &str = "env = { HOLD = \"50\" }";
/// Beside a hog against alone.
const SLOWER_AT_MOST: f64 = 1.5;

#[tokio::test]
async fn a_hog_slows_its_neighbour_little() {
    let server = stage::server(stage::agent("cpu_hog.py", "", HOLD) + &stage::agent("neighbour_probe.py", "", "")).await;
    let (mallory, bob) = (server.user("mallory"), server.user("bob"));
    let (mut alone, mut beside) = (Vec::new(), Vec::new());
    for _ in 0..4 {
        alone.push(work(&bob).await);
        let hog = mallory.say("cpu_hog", "hello").await;
        busy(&mallory, &hog).await;
        beside.push(work(&bob).await);
        beside.push(work(&bob).await);
        mallory.cancel(&hog).await;
        mallory.finished(&hog).await;
    }
    // What else this machine does makes a figure larger and never smaller, so the smallest of each are compared.
    let (quickest_alone, quickest_beside) = (quickest(&alone), quickest(&beside));
    let told = format!("alone {alone:?} ms, beside eight busy processes {beside:?} ms");
    assert!(quickest_beside <= quickest_alone * SLOWER_AT_MOST, "{told}");
}

#[tokio::test]
async fn the_api_answers_beside_as_many_hogs_as_there_are_places() {
    let server = stage::server(stage::agent("cpu_hog.py", "", HOLD)).await;
    let users = [server.user("a"), server.user("b")];
    let mut hogs = Vec::new();
    for user in users.iter().cycle().take(4) {
        hogs.push((user, user.say("cpu_hog", "hello").await));
    }
    for (user, hog) in &hogs {
        busy(user, hog).await;
    }
    let mut answers = Vec::new();
    while answers.len() < 200 {
        let asked = Instant::now();
        assert_eq!(users[0].get(&format!("/api/runs/{}", hogs[0].1)).send().await.unwrap().status(), 200);
        answers.push(asked.elapsed());
    }
    answers.sort();
    let late = answers[answers.len() * 99 / 100];
    assert!(late < Duration::from_millis(250), "1 of 100 answers took {late:?} or longer");
    for (user, hog) in hogs {
        user.cancel(&hog).await;
        user.finished(&hog).await;
    }
}

/// Milliseconds for a fixed amount of CPU work, as the program measures it.
async fn work(user: &User) -> f64 {
    let run = user.finished(&user.say("neighbour_probe", "hello").await).await;
    let text = run["text"].as_str().unwrap_or_default();
    text.trim().strip_prefix("ms ").and_then(|figure| figure.parse().ok()).unwrap_or_else(|| panic!("no figure: {run:#}"))
}

/// Waits until a hog has had time to take all that it can get.
async fn busy(user: &User, hog: &str) {
    user.reaches(hog, "in_progress").await;
    let label = format!("label=dev.quayside.run={hog}");
    eventually("a busy hog", || async {
        let id = crate::support::server::docker(&["ps", "-q", "--no-trunc", "--filter", &label]);
        let used = super::host::figure(id.trim(), "cpuacct.usage").map(Duration::from_nanos);
        (used? > Duration::from_millis(300)).then_some(())
    })
    .await;
}

fn quickest(figures: &[f64]) -> f64 {
    figures.iter().copied().fold(f64::INFINITY, f64::min)
}
