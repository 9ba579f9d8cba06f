//! The command line: words that help, streams that can be piped, exit codes that follow.

use std::io::{BufRead, Write};
use std::process::{Command, Output, Stdio};

use crate::support::server::{Backend, Server};
use crate::support::{emulators, eventually};

fn quayside() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_quayside"));
    command.env_remove("QUAYSIDE_URL").env("QUAYSIDE_LOG", "warn").current_dir(std::env::temp_dir());
    command
}

fn words(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

async fn submit(server: &Server, arguments: &[&str]) -> Output {
    let mut command = quayside();
    command.arg("submit").args(["--url", &server.url]).args(arguments);
    tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn submit_prints_the_reply_and_follows_the_run() {
    let server = Server::start(Backend::Embedded).await;
    let output = submit(&server, &["print('hello'); print('there', end='')"]).await;
    assert_eq!((output.status.code(), String::from_utf8_lossy(&output.stdout).as_ref()), (Some(0), "hello\nthere"));
    assert_eq!(words(&output), "", "quiet when piped");
    let output = submit(&server, &["--agent", "sh", "echo partly; exit 4"]).await;
    assert_eq!((output.status.code(), String::from_utf8_lossy(&output.stdout).as_ref()), (Some(1), "partly\n"));
    assert!(words(&output).contains("code 4"), "{}", words(&output));
    let output = submit(&server, &["--json", "--agent", "cat", "x"]).await;
    let run: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((run["status"].as_str(), run["text"].as_str()), (Some("completed"), Some("x")));
    let output = submit(&server, &["--agent", "nobody", "x"]).await;
    assert_eq!(output.status.code(), Some(1));
    assert!(words(&output).contains("nobody") || words(&output).contains("agent"), "{}", words(&output));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn submit_sends_files() {
    let server = Server::start(Backend::Embedded).await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("in.txt");
    std::fs::write(&file, "from here").unwrap();
    let file = file.to_str().unwrap();
    let output = submit(&server, &["--agent", "sh", "--file", file, "--file", &format!("{file}=deep/too.txt"), "cat in.txt deep/too.txt"]).await;
    assert_eq!((output.status.code(), String::from_utf8_lossy(&output.stdout).as_ref()), (Some(0), "from herefrom here"), "{}", words(&output));
    let output = submit(&server, &["--file", "/no/such/file", "x"]).await;
    assert!(output.status.code() == Some(1) && words(&output).contains("/no/such/file"), "{}", words(&output));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn submit_reads_standard_input() {
    let server = Server::start(Backend::Embedded).await;
    let url = server.url.clone();
    let output = tokio::task::spawn_blocking(move || {
        let mut child =
            quayside().args(["submit", "--url", &url, "--agent", "cat", "-"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all("한국어\n".as_bytes()).unwrap();
        child.wait_with_output().unwrap()
    })
    .await
    .unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "한국어\n");
}

#[test]
fn usage_and_configuration_mistakes_say_what_to_write() {
    let run = |arguments: &[&str]| quayside().args(arguments).output().unwrap();
    let output = run(&["submitt"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(words(&output).contains("submit"), "{}", words(&output));
    assert_eq!(run(&["up", "--prot", "1"]).status.code(), Some(2));
    for command in ["api", "worker"] {
        let output = run(&[command]);
        assert_eq!(output.status.code(), Some(2));
        assert!(words(&output).contains("quayside up"), "{}", words(&output));
    }
    let output = quayside().arg("up").env("QUAYSIDE__API__BIND", "0.0.0.0:0").output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(words(&output).contains("127.0.0.1"), "{}", words(&output));
    let output = quayside().arg("up").env("QUAYSIDE__API__BNID", "x").output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(words(&output).contains("QUAYSIDE__API__BNID") && words(&output).contains("bind"), "{}", words(&output));
    let output = run(&["submit", "--url", "http://127.0.0.1:1", "x"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(words(&output).contains("quayside up"), "{}", words(&output));
    assert!(String::from_utf8_lossy(&run(&["--help"]).stdout).contains("submit"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn doctor_names_what_is_wrong() {
    let folder = tempfile::tempdir().unwrap();
    let healthy = quayside().arg("doctor").env("QUAYSIDE__BACKEND__DATA_DIR", folder.path()).output().unwrap();
    assert_eq!(healthy.status.code(), Some(0), "{}{}", String::from_utf8_lossy(&healthy.stdout), words(&healthy));
    let sick = quayside()
        .arg("doctor")
        .env("QUAYSIDE__BACKEND__DATA_DIR", folder.path())
        .env("QUAYSIDE__RUNNER__DOCKER_HOST", "unix:///nonexistent/docker.sock")
        .output()
        .unwrap();
    assert_eq!(sick.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&sick.stdout).contains("FAIL  engine"), "{}", String::from_utf8_lossy(&sick.stdout));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_of_its_own_tells_how_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let mut worker = quayside()
        .arg("worker")
        .env("QUAYSIDE_LOG", "info")
        .env("QUAYSIDE__BACKEND__KIND", "google")
        .env("QUAYSIDE__BACKEND__DATA_DIR", folder.path())
        .env("QUAYSIDE__GOOGLE__PROJECT_ID", emulators::project())
        .env("QUAYSIDE__WORKER__PROBES", "127.0.0.1:0")
        .env("PUBSUB_EMULATOR_HOST", emulators::pubsub().await.host())
        .env("FIRESTORE_EMULATOR_HOST", emulators::firestore().await.host())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = std::io::BufReader::new(worker.stderr.take().unwrap()).lines();
    let address = lines
        .by_ref()
        .map_while(Result::ok)
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(&line).ok())
        .find(|line| line["message"] == "probes and metrics")
        .map(|line| line["address"].as_str().unwrap().to_owned())
        .expect("it says where");
    std::thread::spawn(move || lines.for_each(drop));
    let get = |path: &'static str| reqwest::get(format!("http://{address}{path}"));
    eventually("readiness", || async { get("/readyz").await.ok().filter(|answer| answer.status() == 200) }).await;
    assert_eq!(get("/livez").await.unwrap().status(), 200);
    let metrics =
        eventually("its slots", || async { get("/metrics").await.unwrap().text().await.ok().filter(|text| text.contains("quayside_slots")) }).await;
    assert!(metrics.contains("# HELP"), "{metrics}");
    assert_eq!(get("/api/agents").await.unwrap().status(), 404, "it is no API");
    Command::new("kill").args(["-TERM", &worker.id().to_string()]).status().unwrap();
    let status = tokio::task::spawn_blocking(move || worker.wait().unwrap()).await.unwrap();
    assert_eq!(status.code(), Some(0), "drained");
}
