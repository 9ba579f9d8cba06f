//! Two users at once: neither sees or starves the other.

use super::stage;
use crate::support::PATIENCE;

const CANARY: &str = "canary-5f0c1d77";

#[tokio::test]
async fn nobody_reads_a_neighbours_data() {
    let server = stage::server(stage::agent("leak_env.sh", "", "") + &stage::agent("priv_pid_view.py", "", "")).await;
    let (alice, bob) = (server.user("alice"), server.user("bob"));
    let hide = format!("for d in /tmp /workspace /dev/shm; do echo {CANARY} > $d/secret; done; export SECRET={CANARY}; echo hidden; sleep 50");
    let hers = alice.say("sh", &hide).await;
    alice.says(&hers, "hidden").await;

    let search = "cat /tmp/* /workspace/* /dev/shm/* /proc/[0-9]*/environ /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' '\\n'; env; ls -la /tmp /workspace; true";
    let searched = bob.finished(&bob.say("sh", search).await).await;
    assert_eq!(searched["status"], "completed", "{searched:#}");
    let leaked = bob.finished(&bob.say("leak_env", "hello").await).await;
    let watched = bob.finished(&bob.say("priv_pid_view", "hello").await).await;
    for run in [&searched, &leaked, &watched] {
        let text = run["text"].as_str().unwrap_or_default();
        assert!(!text.contains(CANARY) && !text.contains("alice") && !text.contains(&hers), "{run:#}");
        assert!(!text.contains("QUAYSIDE"), "the server's own environment is visible: {run:#}");
    }
    assert_eq!(alice.run(&hers).await["status"], "in_progress", "she was not there any more while he searched");
    for path in ["", "/events"] {
        let answer = bob.get(&format!("/api/runs/{hers}{path}")).send().await.unwrap();
        assert_eq!(answer.status(), 404);
    }
    alice.cancel(&hers).await;
    alice.finished(&hers).await;
}

#[tokio::test]
async fn one_users_kernel_quotas_are_not_anothers() {
    let held = format!("env = {{ HOLD = \"{}\" }}", PATIENCE.as_secs() - 10);
    let server = stage::server(stage::agent("inotify_exhaust.py", "", "") + &stage::agent("inotify_exhaust.py", "_held", &held)).await;
    let (alice, bob) = (server.user("alice"), server.user("bob"));
    let hers = alice.say("inotify_exhaust_held", "hello").await;
    let took = alice.says(&hers, "instances").await;
    let his = bob.finished(&bob.say("inotify_exhaust", "hello").await).await;
    assert_eq!(alice.run(&hers).await["status"], "in_progress", "she held nothing any more");
    assert_ne!(instances(&took), 0, "{took:#}");
    assert_ne!(instances(&his), 0, "alice left bob nothing: {his:#}");
    assert!(his["text"].as_str().is_some_and(|text| text.contains("ok")), "{his:#}");
    alice.cancel(&hers).await;
    alice.finished(&hers).await;
}

fn instances(run: &serde_json::Value) -> u32 {
    let text = run["text"].as_str().unwrap_or_default();
    let number = text.strip_prefix("instances ").and_then(|rest| rest.split(' ').next()).and_then(|number| number.parse().ok());
    number.unwrap_or_else(|| panic!("no figure in {text:?}"))
}
