//! Backup and restore, and the runbook: its commands are run as they stand in docs/operations.md.

use std::process::Output;

use serde_json::Value;

use crate::support::server::{Backend, Options, Server, is_terminal};

/// The commands of the block that follows the line `<!-- test: NAME -->`.
fn runbook(name: &str) -> String {
    let text = include_str!("../../docs/operations.md");
    let (_, after) = text.split_once(&format!("<!-- test: {name} -->\n```sh\n")).unwrap_or_else(|| panic!("docs/operations.md has no block {name}"));
    after.split_once("```").unwrap().0.to_owned()
}

/// Runs a block in the folder of the server's configuration, where `quayside` is our program.
fn follow(server: &Server, name: &str) -> Output {
    let program = std::path::Path::new(env!("CARGO_BIN_EXE_quayside")).parent().unwrap();
    let commands = format!("PATH={}:$PATH\n{}", program.display(), runbook(name));
    let mut shell = std::process::Command::new("sh");
    shell.args(["-euc", &commands]).current_dir(server.command().get_current_dir().unwrap());
    shell.env_remove("QUAYSIDE_CONFIG").env("QUAYSIDE_LOG", "warn").output().unwrap()
}

fn words(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[track_caller]
fn done(output: &Output) -> String {
    assert!(output.status.success(), "{}", words(output));
    words(output)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_under_load_brings_back_every_run_of_before() {
    let mut server = Server::start(Backend::Embedded).await;
    let user = server.user("u");
    let ended = user.finished(&user.say("cat", "ended").await).await;
    let running = user.say("sh", "echo begun; sleep 5; echo ended").await;
    user.says(&running, "begun").await;
    let mut accepted: Vec<String> = Vec::new();
    for number in 0..10 {
        accepted.push(user.say_in(&format!("c{number}"), "cat", &number.to_string()).await);
    }
    // Others go on submitting while the copy is made.
    let load = tokio::spawn({
        let user = server.user("v");
        async move {
            for number in 0..40 {
                user.say("cat", &number.to_string()).await;
            }
        }
    });
    let mut command = server.command();
    command.args(["backup", "copy.db"]);
    let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    assert!(!is_terminal(&user.run(&running).await), "the copy has it in progress");
    assert!(done(&output).contains("wrote copy.db"), "{}", words(&output));
    load.await.unwrap();
    server.terminate().await;

    let mut second = Server::prepared("", Options::default());
    let copy = server.command().get_current_dir().unwrap().join("copy.db");
    let output = second.command().arg("restore").arg(&copy).output().unwrap();
    assert!(done(&output).contains("there was no database before"), "{}", words(&output));
    second.restart().await;
    let user = second.user("u");
    assert_eq!(user.run(ended["id"].as_str().unwrap()).await, ended, "what had ended is as it was");
    for (number, id) in accepted.iter().enumerate() {
        let run = user.finished(id).await;
        assert_eq!((run["status"].as_str(), run["text"].as_str()), (Some("completed"), Some(number.to_string().as_str())), "{run}");
    }
    let run = user.finished(&running).await;
    assert_eq!((run["status"].as_str(), run["text"].as_str()), (Some("completed"), Some("begun\nended\n")), "it goes on: {run}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_runbook_works_as_it_is_written() {
    let mut server = Server::start(Backend::Embedded).await;
    let user = server.user("u");
    let kept = user.finished(&user.say("cat", "kept").await).await;
    let told = done(&follow(&server, "backup"));
    assert!(told.contains("1 run, 0 of them unfinished"), "{told}");
    let again = follow(&server, "backup");
    assert!(!again.status.success() && words(&again).contains("not overwritten"), "{}", words(&again));
    let told = words(&follow(&server, "doctor"));
    assert!(!told.contains("FAIL  database") && told.contains("a server is running on it") && told.contains("every page and index fits"), "{told}");
    let late = user.finished(&user.say("cat", "late").await).await;
    let refused = follow(&server, "restore");
    assert!(!refused.status.success() && words(&refused).contains("another Quayside process"), "{}", words(&refused));

    // The log is damaged in its middle, as by a bad disk.
    server.kill();
    let log = server.data_dir().join("quayside.db-wal");
    let mut bytes = std::fs::read(&log).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&log, bytes).unwrap();
    let refused = server.command().arg("up").output().unwrap();
    assert!(refused.status.code() == Some(1) && words(&refused).contains("its log can be read for"), "{}", words(&refused));
    let refused = follow(&server, "doctor");
    assert!(refused.status.code() == Some(1) && words(&refused).contains("FAIL  database"), "{}", words(&refused));

    // What is left of it first, then the backup: both start, and the damaged files are kept.
    done(&follow(&server, "salvage"));
    let told = done(&follow(&server, "restore"));
    assert!(told.contains("what was there is kept as"), "{told}");
    server.restart().await;
    let user = server.user("u");
    assert_eq!(user.run(kept["id"].as_str().unwrap()).await, kept);
    let gone = user.get(&format!("/api/runs/{}", late["id"].as_str().unwrap())).send().await.unwrap();
    assert_eq!(gone.status(), 404, "it came after the backup");
    assert_eq!(user.finished(&user.say("cat", "after").await).await["text"], "after");
    let names: Vec<String> = std::fs::read_dir(server.data_dir()).unwrap().map(|file| file.unwrap().file_name().into_string().unwrap()).collect();
    assert_eq!(names.iter().filter(|name| name.contains("before-restore")).count(), 3, "database, log and index: {names:?}");

    // The salvaged file can be put in its place in the same way.
    assert_eq!(server.terminate().await, 0);
    done(&follow(&server, "restore-salvaged"));
    server.restart().await;
    let ready: Value = server.user("u").get("/readyz").send().await.unwrap().json().await.unwrap();
    assert_eq!(ready["status"], "ok");
}

#[test]
fn on_google_they_say_what_to_use_instead() {
    let server = Server::prepared("", Options::default());
    for command in ["backup", "restore"] {
        let mut command_line = server.command();
        command_line.args([command, "x.db"]).env("QUAYSIDE__BACKEND__KIND", "google").env("QUAYSIDE__GOOGLE__PROJECT_ID", "p");
        let output = command_line.output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{}", words(&output));
        assert!(words(&output).contains("gcloud firestore"), "{}", words(&output));
    }
}
