//! What a worker cannot enforce it does not run: refused, told, looked at again, and recorded.

use serde_json::{Value, json};

use crate::support::liar::Liar;
use crate::support::server::{Backend, Options, Server};
use crate::support::{emulators, eventually};

/// A quota that is asked for and not set, of the same length.
const NO_QUOTA: (&str, &str) = ("\"NanoCpus\":200000000,", "\"NanoCpus\":999000000,");
const NO_PIDS: (&str, &str) = ("\"PidsLimit\":32,", "\"PidsLimit\":99,");

on_both! {
    what_held_an_attempt_in_is_told,
    an_agent_whose_limit_is_not_enforced_waits_until_it_is,
}

async fn readyz(url: &str) -> (u16, Value) {
    let answer = reqwest::get(format!("{url}/readyz")).await.unwrap();
    (answer.status().as_u16(), answer.json().await.unwrap())
}

fn sandbox(ready: &Value) -> Value {
    ready["checks"].as_array().unwrap().iter().find(|check| check["name"] == "sandbox").cloned().unwrap_or_default()
}

async fn what_held_an_attempt_in_is_told(on: Backend) {
    let server = Server::start_with(on, Options { prove_limits: true, ..Options::default() }).await;
    let user = server.user("u");
    let run = user.finished(&user.say("sh", "echo hi").await).await;
    let sandbox = &run["attempts"][0]["sandbox"];
    assert_eq!(sandbox["limits"], json!({ "memoryBytes": 256 << 20, "cpus": 1.0, "pids": 128, "network": "none" }), "{run:#}");
    assert_eq!((sandbox["runner"].as_str(), sandbox["proven"].as_bool()), (Some("docker"), Some(true)), "{run:#}");
    assert!(sandbox["runtime"].as_str().is_some_and(|runtime| runtime.starts_with("runc ")), "{run:#}");
    assert!(sandbox["kernel"].is_string() && sandbox["provenAt"].is_string(), "{run:#}");
    // Without a container there is nothing to record.
    let refused = user.finished(&user.say("nothing", "x").await).await;
    assert_eq!((refused["error"]["code"].as_str(), &refused["attempts"][0]["sandbox"]), (Some("sandbox_error"), &Value::Null), "{refused:#}");
}

async fn an_agent_whose_limit_is_not_enforced_waits_until_it_is(on: Backend) {
    let cpus = std::thread::available_parallelism().unwrap();
    let liar = Liar::start(&[NO_QUOTA]).await;
    // A quota of the whole machine is none: who has it is promised nothing about CPUs.
    let extra = format!(
        "[runner]\ndocker_host = \"{}\"\n[agents.wide]\nimage = \"quayside/agent-python\"\ncommand = [\"sh\", \"-s\"]\ninput = \"text\"\n\
         output = \"text\"\ncpus = {cpus}.0\n",
        liar.host()
    );
    let server = Server::start_with(on, Options { extra, prove_limits: true, ..Options::default() }).await;
    let user = server.user("u");
    let waiting = user.say("cat", "hello").await;
    let is_told = || async { (user.run(&waiting).await["waiting"]["reason"] == "sandbox_not_enforced").then_some(()) };
    eventually("the reason", is_told).await;
    // Once more, for a run and its place in the line are not read at one moment.
    let told = user.run(&waiting).await;
    assert_eq!((told["status"].as_str(), &told["attempts"]), (Some("queued"), &json!([])), "neither claimed nor failed: {told:#}");
    // Who is not promised it runs meanwhile.
    let wide = user.finished(&user.say("wide", "echo wide").await).await;
    assert_eq!((wide["status"].as_str(), wide["text"].as_str()), (Some("completed"), Some("wide\n")), "{wide:#}");
    if on == Backend::Embedded {
        let (status, ready) = readyz(&server.url).await;
        let check = sandbox(&ready);
        assert_eq!((status, check["ok"].as_bool()), (200, Some(true)), "{ready:#}");
        let detail = check["detail"].as_str().unwrap();
        assert!(detail.contains("cat is refused (not enforced here: cpus)") && !detail.contains("wide"), "{detail}");
    }
    // Looked at again, and not in a hot loop: each look is a line of the log.
    let looks = || std::fs::read_to_string(&server.log).unwrap().matches("its agent is refused here").count();
    eventually("a second look", || async { (looks() >= 2).then_some(()) }).await;
    assert!(looks() <= 4, "{} looks", looks());
    assert_eq!(user.run(&waiting).await["sequenceNumber"], told["sequenceNumber"], "the same reason is told once");

    // Another engine, after a fault: its limits are tried anew, and the run goes on.
    let held = user.say("wide", "echo held; sleep 3600").await;
    user.says(&held, "held").await;
    liar.reform(("20.10.24", "20.10.99"));
    let run = user.finished(&waiting).await;
    assert_eq!((run["status"].as_str(), run["text"].as_str()), (Some("completed"), Some("hello")), "{run:#}");
    assert_eq!(run["attempts"].as_array().unwrap().len(), 1, "{run:#}");
    user.cancel(&held).await;
    user.finished(&held).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_may_run_nobody_is_not_ready() {
    let liar = Liar::start(&[NO_PIDS]).await;
    let extra = format!("[runner]\ndocker_host = \"{}\"\n", liar.host());
    let server = Server::start_unready(Backend::Embedded, Options { extra, prove_limits: true, ..Options::default() }).await;
    let ready = eventually("a worker that refuses everybody", || async {
        let (status, ready) = readyz(&server.url).await;
        (status == 503).then_some(ready)
    })
    .await;
    let check = sandbox(&ready);
    assert!(check["ok"] == false && check["detail"].as_str().is_some_and(|detail| detail.contains("pids")), "{ready:#}");
    let user = server.user("u");
    let id = user.say("cat", "x").await;
    eventually("the reason", || async { (user.run(&id).await["waiting"]["reason"] == "sandbox_not_enforced").then_some(()) }).await;
    assert_eq!(user.cancel(&id).await["status"], "cancelled", "who waits can be cancelled");

    let doctor = server.command().args(["--config", server.config.to_str().unwrap(), "doctor", "--json"]).output().unwrap();
    let told: Value = serde_json::from_slice(&doctor.stdout).unwrap();
    assert_eq!((doctor.status.code(), told["healthy"].as_bool()), (Some(1), Some(false)), "{told:#}");
    assert!(told["sandbox"]["refused"]["cat"].as_array().is_some_and(|limits| limits.contains(&json!("pids"))), "{told:#}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn doctor_shows_every_limit() {
    let folder = tempfile::tempdir().unwrap();
    let doctor = |arguments: &[&str]| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_quayside"));
        command.args(arguments).env("QUAYSIDE_LOG", "warn").env("QUAYSIDE__BACKEND__DATA_DIR", folder.path()).current_dir(folder.path());
        command.output().unwrap()
    };
    let output = doctor(&["doctor", "--json"]);
    let told: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(0), "{told:#}");
    let rows = told["sandbox"]["proof"]["rows"].as_array().unwrap();
    assert_eq!(rows.len(), 14);
    assert!(rows.iter().all(|row| row["verdict"] == "enforced"), "{told:#}");
    assert_eq!(told["sandbox"]["refused"], json!({}));
    let table = String::from_utf8(doctor(&["doctor"]).stdout).unwrap();
    for word in ["enforced", "memory", "no_new_privileges", "verdict oom", "14 of 14 limits hold"] {
        assert!(table.contains(word), "{word}: {table}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_of_its_own_names_what_it_refuses() {
    let liar = Liar::start(&[NO_PIDS]).await;
    let extra = format!("[runner]\ndocker_host = \"{}\"\n", liar.host());
    // The API of a fleet is ready without a worker; what a worker refuses is told by its own probes.
    let options = Options { extra, worker: "probes = \"127.0.0.1:0\"".to_owned(), prove_limits: true, ..Options::default() };
    let hosts = (emulators::pubsub().await.host(), emulators::firestore().await.host());
    let server = Server::start_on_emulators(hosts, &emulators::project(), options).await;
    let probes = server.probes().await;
    let ready = eventually("a worker that refuses everybody", || async {
        let (status, ready) = readyz(&probes).await;
        (status == 503).then_some(ready)
    })
    .await;
    assert!(sandbox(&ready)["detail"].as_str().is_some_and(|detail| detail.contains("pids")), "{ready:#}");
}
