//! Engines that misbehave: dead, deaf, too old, failing. A few lines of HTTP stand in for them.

use std::time::{Duration, Instant};

use quayside_shared::ids::RunId;
use quayside_worker::runner::docker::{DockerOptions, DockerRunner};
use quayside_worker::runner::{ContainerKey, FaultKind, LaunchSpec, Runner};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::within;

fn runner(host: &str) -> DockerRunner {
    let options = DockerOptions { host: host.to_owned(), instance: "test".to_owned(), runtime: None, uid_base: 100_000 };
    DockerRunner::connect(options).expect("valid options")
}

fn spec() -> LaunchSpec {
    let agent = quayside_shared::agent::Agent {
        input: quayside_shared::agent::Input::Text,
        output: quayside_shared::agent::Output::Text,
        memory: 64 << 20,
        pids: 32,
        timeout: Duration::from_secs(60),
        ..quayside_shared::agent::Agent::new("python".parse().unwrap(), "quayside/agent-python".to_owned(), vec!["python3".to_owned()])
    };
    LaunchSpec { agent, key: ContainerKey::Run { run_id: RunId::random(), epoch: 1 }, place: 0 }
}

/// Answers each request with what `answer` says to its first line; `None` hangs up. Returns its address.
async fn engine(answer: impl Fn(&str) -> Option<(u16, String)> + Send + Sync + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let host = format!("tcp://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((mut connection, _)) = listener.accept().await {
            let mut request = vec![0; 64 << 10];
            let read = connection.read(&mut request).await.unwrap_or(0);
            let head = String::from_utf8_lossy(&request[..read]);
            if let Some((status, body)) = answer(head.lines().next().unwrap_or_default()) {
                let head =
                    format!("HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
                let _hung_up = connection.write_all(format!("{head}{body}").as_bytes()).await;
            }
        }
    });
    host
}

fn version(api: &str) -> String {
    format!(r#"{{"Version":"99.0","ApiVersion":"{api}","Components":[{{"Name":"runc","Version":"9.9.9"}}]}}"#)
}

#[tokio::test]
async fn a_dead_socket_is_an_engine_fault_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let absent = format!("unix://{}/no.sock", folder.path().display());
    let refusing = folder.path().join("dead.sock");
    drop(std::os::unix::net::UnixListener::bind(&refusing).unwrap());
    for host in [absent, format!("unix://{}", refusing.display()), "tcp://127.0.0.1:1".to_owned()] {
        let runner = runner(&host);
        let begin = Instant::now();
        assert_eq!(runner.ping().await.unwrap_err().kind(), FaultKind::Engine, "{host}");
        assert_eq!(runner.launch(&spec()).await.unwrap_err().kind(), FaultKind::Engine, "{host}");
        assert_eq!(runner.sweep(&|_| false).await.unwrap_err().kind(), FaultKind::Engine, "{host}");
        assert_eq!(runner.image_digest("x").await.unwrap_err().kind(), FaultKind::Engine, "{host}");
        assert!(begin.elapsed() < Duration::from_secs(2), "{host}: {:?}", begin.elapsed());
    }
}

#[tokio::test]
async fn an_engine_that_never_answers_is_given_up() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let runner = runner(&format!("tcp://{}", listener.local_addr().unwrap()));
    let fault = within(Duration::from_secs(30), "a ping of a deaf engine", runner.ping()).await.unwrap_err();
    assert_eq!(fault.kind(), FaultKind::Engine, "{fault}");
}

#[tokio::test]
async fn the_lower_of_the_two_versions_is_spoken() {
    for (theirs, spoken) in [("1.41", "1.41"), ("1.47", "1.47"), ("1.99", "1.53")] {
        let prefix = format!("/v{spoken}/");
        let host = engine(move |request| {
            let answer = if request.contains("/version") {
                (200, version(theirs))
            } else if request.contains(&prefix) {
                (200, r#"{"Id":"sha256:abc"}"#.to_owned())
            } else {
                (400, r#"{"message":"another version"}"#.to_owned())
            };
            Some(answer)
        })
        .await;
        let runner = runner(&host);
        let description = runner.ping().await.unwrap().description;
        assert_eq!(description, format!("Docker 99.0, API {spoken}, runc 9.9.9"));
        assert_eq!(runner.image_digest("x").await.unwrap().as_deref(), Some("sha256:abc"));
    }
}

#[tokio::test]
async fn an_engine_that_is_too_old_is_refused_in_words() {
    let host = engine(|_| Some((200, version("1.40")))).await;
    let fault = runner(&host).ping().await.unwrap_err();
    assert_eq!(fault.kind(), FaultKind::Refused);
    assert!(fault.to_string().contains("1.40") && fault.to_string().contains("20.10"), "{fault}");
}

#[tokio::test]
async fn the_engines_failures_are_told_from_refusals() {
    let cases = [(500, FaultKind::Engine), (503, FaultKind::Engine), (400, FaultKind::Refused), (404, FaultKind::ImageUnavailable)];
    for (status, kind) in cases {
        let host = engine(move |request| {
            let answer = (status, r#"{"message":"a secret path"}"#.to_owned());
            Some(if request.contains("/version") { (200, version("1.41")) } else { answer })
        })
        .await;
        let fault = runner(&host).launch(&spec()).await.unwrap_err();
        assert_eq!(fault.kind(), kind, "{status}: {fault}");
        assert!(!fault.to_string().contains("secret path"), "what the engine says is for the log only: {fault}");
    }
}

#[tokio::test]
async fn an_image_is_fetched_once_and_only_from_a_registry_it_names() {
    use std::sync::{Arc, Mutex};
    for (image, fetched) in [("registry.example.org/team/agent", 1), ("registry.example.org/team/agent:7", 1), ("team/agent:7", 0), ("agent", 0)] {
        let fetches = Arc::new(Mutex::new(Vec::new()));
        let seen = fetches.clone();
        let host = engine(move |request| {
            Some(if request.contains("/version") {
                (200, version("1.41"))
            } else if request.contains("/images/create") {
                seen.lock().unwrap().push(request.to_owned());
                (200, r#"{"status":"Downloaded"}"#.to_owned())
            } else {
                (404, r#"{"message":"No such image"}"#.to_owned())
            })
        })
        .await;
        let mut spec = spec();
        spec.agent.image = image.to_owned();
        let fault = runner(&host).launch(&spec).await.unwrap_err();
        assert_eq!(fault.kind(), FaultKind::ImageUnavailable, "{fault}");
        assert!(fault.to_string().contains(image), "{fault}");
        let fetches = fetches.lock().unwrap();
        assert_eq!(fetches.len(), fetched, "{image}: {fetches:?}");
        assert!(fetches.iter().all(|request| request.contains("%3A7") || request.contains("%3Alatest")), "every tag was asked for: {fetches:?}");
    }
}

#[tokio::test]
async fn an_engine_that_weakens_a_setting_starts_nothing() {
    use std::sync::atomic::{AtomicUsize, Ordering};
    static STARTED: AtomicUsize = AtomicUsize::new(0);
    static REMOVED: AtomicUsize = AtomicUsize::new(0);
    let host = engine(|request| {
        if request.contains("/start") {
            STARTED.fetch_add(1, Ordering::SeqCst);
        }
        if request.starts_with("DELETE") {
            REMOVED.fetch_add(1, Ordering::SeqCst);
        }
        Some(match request {
            request if request.contains("/version") => (200, version("1.41")),
            request if request.contains("/create") => (201, r#"{"Id":"abc","Warnings":["no swap limit"]}"#.to_owned()),
            request if request.starts_with("GET") => (200, r#"{"Id":"abc","Config":{},"HostConfig":{"Privileged":true}}"#.to_owned()),
            _ => (204, String::new()),
        })
    })
    .await;
    let fault = runner(&host).launch(&spec()).await.unwrap_err();
    assert_eq!(fault.kind(), FaultKind::Refused, "{fault}");
    assert_eq!((STARTED.load(Ordering::SeqCst), REMOVED.load(Ordering::SeqCst)), (0, 1));
}

#[tokio::test]
async fn options_that_cannot_be_right_are_refused() {
    let good = DockerOptions { host: "unix:///x".to_owned(), instance: "test".to_owned(), runtime: None, uid_base: 100_000 };
    for bad in [
        DockerOptions { host: "/var/run/docker.sock".to_owned(), ..good.clone() },
        DockerOptions { host: "https://example.org".to_owned(), ..good.clone() },
        DockerOptions { instance: String::new(), ..good.clone() },
        DockerOptions { uid_base: 0, ..good.clone() },
    ] {
        assert_eq!(DockerRunner::connect(bad).unwrap_err().kind(), FaultKind::Refused);
    }
    assert!(DockerRunner::connect(good).is_ok());
}
