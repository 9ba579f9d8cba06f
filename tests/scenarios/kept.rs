//! Kept sessions: one container for the consecutive runs of one conversation of one user.

use serde_json::{Value, json};

use crate::support::eventually;
use crate::support::server::{Backend, Options, Server, User, docker};

const LIST: &str = "import os; print(sorted(os.listdir('/workspace')))";

async fn server(idle: &str) -> Server {
    // Says more than its reply after its reply.
    let chatty = "import sys, json\nfor line in sys.stdin:\n  say = lambda **event: print(json.dumps(event), flush=True)\n  say(type='result', text=json.loads(line)['message'])\n  say(type='delta', text='late')\n  say(type='result', text='stale')\n";
    let extra = format!(
        "[agents.python]\nsession = \"conversation\"\nidle = \"{idle}\"\n\
         [agents.chatty]\nimage = \"quayside/agent-python\"\nsession = \"conversation\"\ncommand = [\"python3\", \"-c\", {}]\n",
        json!(chatty)
    );
    Server::start_with(Backend::Embedded, Options { extra, worker: "session_memory = \"512MiB\"\n".to_owned(), ..Options::default() }).await
}

async fn ask(user: &User, conversation: &str, message: &str) -> Value {
    user.finished(&user.say_in(conversation, "python", message).await).await
}

async fn answer(user: &User, conversation: &str, message: &str) -> String {
    let ended = ask(user, conversation, message).await;
    assert_eq!(ended["status"], "completed", "{ended}");
    ended["text"].as_str().unwrap().to_owned()
}

fn state(container: &str) -> String {
    docker(&["inspect", "-f", "{{.State.Status}}", container]).trim().to_owned()
}

/// The only container, when it is frozen.
async fn frozen(server: &Server) -> String {
    eventually("one frozen container", || async {
        match server.containers().as_slice() {
            [only] if state(only) == "paused" => Some(only.clone()),
            _ => None,
        }
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_conversation_keeps_its_container_and_its_files() {
    let server = server("10min").await;
    let user = server.user("u");
    answer(&user, "c", "open('/workspace/kept', 'w').write('from before')").await;
    let container = frozen(&server).await;
    for _ in 0..2 {
        let ended = ask(&user, "c", "print(open('/workspace/kept').read())").await;
        assert_eq!(ended["text"], "from before\n", "{ended}");
        assert!(ended["usage"]["startMillis"].as_u64().unwrap() < 2000, "{ended}");
        assert_eq!(frozen(&server).await, container, "the same one, and frozen again");
    }
    // What the first run used is not the second's.
    let first = ask(&user, "c", "x = sum(range(10_000_000))").await["usage"]["cpuMillis"].as_u64().unwrap();
    let second = ask(&user, "c", "pass").await["usage"]["cpuMillis"].as_u64().unwrap();
    assert!(second < first, "{second} after {first}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_two_conversations_and_no_two_users_share_one() {
    let server = server("10min").await;
    let (ann, bob) = (server.user("ann"), server.user("bob"));
    answer(&ann, "c", "open('/workspace/secret', 'w').write('mine')").await;
    assert_eq!(answer(&ann, "d", LIST).await, "[]\n");
    assert_eq!(answer(&bob, "c", LIST).await, "[]\n");
    assert_eq!(answer(&ann, "c", LIST).await, "['secret']\n");
    eventually("three frozen containers", || async {
        let all = server.containers();
        (all.len() == 3 && all.iter().all(|container| state(container) == "paused")).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_that_is_lost_is_made_anew() {
    let mut server = server("10min").await;
    let user = server.user("u");
    answer(&user, "c", "open('/workspace/kept', 'w').write('x')").await;
    docker(&["rm", "-f", &frozen(&server).await]);
    let ended = ask(&user, "c", LIST).await;
    assert_eq!((&ended["status"], &ended["text"]), (&json!("completed"), &json!("[]\n")), "{ended}");
    assert_eq!(ended["attempts"].as_array().unwrap().len(), 1, "{ended}");
    // A program that fails takes its container with it.
    answer(&user, "c", "open('/workspace/kept', 'w').write('x')").await;
    assert_eq!(ask(&user, "c", "raise SystemExit(3)").await["exitCode"], 3);
    assert_eq!(answer(&user, "c", LIST).await, "[]\n");
    let kept = frozen(&server).await;
    // So does a worker, whichever way it ends.
    assert_eq!(server.terminate().await, 0);
    assert!(server.containers().is_empty(), "a drain leaves nothing");
    server.restart().await;
    let user = server.user("u");
    assert_eq!(answer(&user, "c", LIST).await, "[]\n");
    assert_ne!(frozen(&server).await, kept);
    server.kill();
    server.restart().await;
    eventually("an empty host", || async { server.containers().is_empty().then_some(()) }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_ends_after_its_idle_time() {
    let server = server("2s").await;
    let user = server.user("u");
    answer(&user, "c", "pass").await;
    eventually("an empty host", || async { server.containers().is_empty().then_some(()) }).await;
    assert_eq!(answer(&user, "c", LIST).await, "[]\n");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_said_after_a_reply_is_not_in_the_next() {
    let server = server("10min").await;
    let user = server.user("u");
    let mut container = None;
    for number in 0..5 {
        let message = format!("message {number}");
        let ended = user.finished(&user.say_in("c", "chatty", &message).await).await;
        assert_eq!((&ended["status"], &ended["text"]), (&json!("completed"), &json!(message)), "{ended}");
        if number == 2 {
            // Also without a pause between the replies, as in all other rounds.
            container = Some(frozen(&server).await);
        }
    }
    assert_eq!(container, Some(frozen(&server).await), "one container served them all");
}
