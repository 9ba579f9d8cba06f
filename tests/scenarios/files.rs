//! Files that come with a message, and files that a run leaves behind.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::support::eventually;
use crate::support::server::{Backend, Options, Server, User, id};

async fn list(user: &User, id: &str) -> Value {
    let answer = user.get(&format!("/api/runs/{id}/files")).send().await.unwrap();
    assert_eq!(answer.status(), 200);
    answer.json().await.unwrap()
}

async fn fetch(user: &User, id: &str, path: &str) -> (u16, Vec<u8>) {
    let answer = user.get(&format!("/api/runs/{id}/files/{path}")).send().await.unwrap();
    (answer.status().as_u16(), answer.bytes().await.unwrap().to_vec())
}

fn paths(list: &Value) -> Vec<&str> {
    list["files"].as_array().unwrap().iter().map(|file| file["path"].as_str().unwrap()).collect()
}

fn file(path: &str, content: &[u8]) -> Value {
    json!({"path": path, "content": STANDARD.encode(content)})
}

async fn a_run_gets_files_and_leaves_files(on: Backend) {
    let mut server = Server::start(on).await;
    let user = server.user("ann");
    let sent = [file("data/in.csv", b"1,2\n"), file("script.sh", b"mkdir out; cat data/in.csv > out/r.txt; head -c 3000000 /dev/zero > out/long\n")];
    let message = "id -u; stat -c %u script.sh data data/in.csv; sh script.sh; ln -s /etc/passwd link; mkfifo pipe; echo here; cat";
    let body = json!({"agent": "sh", "message": message, "files": sent, "conversationId": "c"});
    let run = id(&user.submit(body).await);
    let ended = user.finished(&run).await;
    assert_eq!(ended["status"], "completed", "{ended:#}");
    let text = ended["text"].as_str().unwrap();
    let owners: Vec<&str> = text.lines().take(4).collect();
    assert!(owners.iter().all(|owner| *owner == owners[0]), "what came belongs to the program: {text}");
    let left = list(&user, &run).await;
    assert_eq!(paths(&left), ["out/long", "out/r.txt"], "at once with the end, and without what came: {left:#}");
    assert_eq!(left["skipped"], json!({"special": 1, "symlink": 1}));
    assert_eq!(left["truncated"], false);
    assert_eq!(left["files"][1]["bytes"], 4);
    assert_eq!(fetch(&user, &run, "out/r.txt").await, (200, b"1,2\n".to_vec()));
    assert_eq!(fetch(&user, &run, "out%2Fr.txt").await, (200, b"1,2\n".to_vec()));
    assert!(fetch(&user, &run, "out/long").await == (200, vec![0; 3_000_000]));

    let eve = server.user("eve");
    for path in ["", "/out/r.txt"] {
        let answer = eve.get(&format!("/api/runs/{run}/files{path}")).send().await.unwrap();
        assert_eq!(answer.status(), 404, "another's");
    }
    for path in ["link", "pipe", "out", "data/in.csv", "no/such", "..%2F..%2Fetc%2Fpasswd", "out/%00"] {
        assert_eq!(fetch(&user, &run, path).await.0, 404, "{path}");
    }

    server.terminate().await;
    server.restart().await;
    let user = server.user("ann");
    assert_eq!(list(&user, &run).await, left, "a restart keeps them");
    assert_eq!(fetch(&user, &run, "out/r.txt").await, (200, b"1,2\n".to_vec()));
    let answer = user.request(reqwest::Method::DELETE, "/api/conversations/c").send().await.unwrap();
    assert_eq!(answer.status(), 204);
    assert_eq!(fetch(&user, &run, "out/r.txt").await.0, 404, "a deletion removes them");
    eventually("no workspace", async || server.workspaces().is_empty().then_some(())).await;
}

async fn however_it_ends_its_files_stay(on: Backend) {
    let server = Server::start(on).await;
    let user = server.user("ann");
    let failed = user.say("sh", "echo why > failed; exit 3").await;
    let body = json!({"agent": "sh", "message": "echo why > slow; sleep 600", "timeoutSeconds": 2});
    let slow = id(&user.submit(body).await);
    let cancelled = user.say("sh", "echo why > cancelled; echo here; sleep 600").await;
    user.says(&cancelled, "here").await;
    user.cancel(&cancelled).await;
    for (run, status, path) in [(failed, "failed", "failed"), (slow, "timed_out", "slow"), (cancelled, "cancelled", "cancelled")] {
        assert_eq!(user.finished(&run).await["status"], status);
        assert_eq!(paths(&list(&user, &run).await), [path]);
        assert_eq!(fetch(&user, &run, path).await, (200, b"why\n".to_vec()));
    }
}

async fn a_run_that_leaves_nothing_has_nothing(on: Backend) {
    let extra = "[agents.private]\nimage = \"quayside/agent-python\"\ncommand = [\"sh\", \"-s\"]\ninput = \"text\"\noutput = \"text\"\nfiles = \"0B\"\nworkspace = \"1MiB\"\n";
    let server = Server::start_with(on, Options { extra: extra.to_owned(), ..Options::default() }).await;
    let user = server.user("ann");
    let nothing = json!({"files": [], "skipped": {}, "truncated": false});
    let run = user.say("cat", "hello").await;
    user.finished(&run).await;
    assert_eq!(list(&user, &run).await, nothing);
    let run = user.say("private", "head -c 2000000 /dev/zero > full; stat -c %s full").await;
    let text = user.finished(&run).await["text"].as_str().unwrap().to_owned();
    assert_eq!(text.trim(), (1 << 20).to_string(), "its workspace has the size that was asked for");
    assert_eq!(list(&user, &run).await, nothing, "the agent keeps none");
    // More pages than the workspace has: there is no run without what came with its message.
    let mut files: Vec<Value> = (0..10).map(|number| file(&format!("small/{number}"), b"x")).collect();
    files.push(file("large", &vec![1; (1 << 20) - 10]));
    let run = user.finished(&id(&user.submit(json!({"agent": "private", "message": "echo ran", "files": files})).await)).await;
    assert_eq!((&run["status"], &run["error"]["code"], &run["text"]), (&json!("failed"), &json!("sandbox_error"), &json!("")), "{run:#}");
    assert!(run["error"]["message"].as_str().unwrap().starts_with("the file `small/"), "{run:#}");
}

super::on_both! {
    a_run_gets_files_and_leaves_files,
    however_it_ends_its_files_stay,
    a_run_that_leaves_nothing_has_nothing,
}

#[tokio::test]
async fn a_killed_server_leaves_no_workspace() {
    let mut server = Server::start(Backend::Embedded).await;
    let user = server.user("ann");
    let run = user.say("sh", "echo mine > file; echo here; sleep 5; cat file").await;
    user.says(&run, "here").await;
    let before = server.workspaces();
    assert_eq!(before.len(), 1, "{before:?}");
    server.kill();
    server.restart().await;
    let user = server.user("ann");
    let ended = user.finished(&run).await;
    assert_eq!((&ended["status"], paths(&list(&user, &run).await)), (&json!("completed"), vec!["file"]), "the second attempt's");
    eventually("no workspace", async || server.workspaces().is_empty().then_some(())).await;
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains(before[0].to_str().unwrap()), "it is still mounted");
}
