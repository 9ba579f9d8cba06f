//! Every way a run can end, told apart.

use serde_json::{Value, json};

use crate::support::server::{Backend, Server, User};

async fn ends(user: &User, agent: &str, message: &str, status: &str, code: Option<&str>) -> Value {
    let run = user.finished(&user.say(agent, message).await).await;
    assert_eq!(run["status"], status, "{run}");
    assert_eq!(run["error"]["code"].as_str(), code, "{run}");
    if code.is_some() {
        assert!(!run["error"]["message"].as_str().unwrap().is_empty());
    }
    run
}

async fn exit_codes_signals_and_memory_are_told_apart(on: Backend) {
    let server = Server::start(on).await;
    let user = server.user("u");
    let run = ends(&user, "sh", "echo out; echo words >&2; exit 3", "failed", Some("exit_nonzero")).await;
    assert_eq!((&run["exitCode"], &run["text"]), (&json!(3), &json!("out\n")));
    assert!(run["error"]["message"].as_str().unwrap().contains("words"), "the last words on standard error: {run}");
    let run = ends(&user, "sh", "exit 137", "failed", Some("exit_nonzero")).await;
    assert_eq!(run["exitCode"], 137, "a bare 137 is no oom");
    ends(&user, "sh", "kill -9 $$", "failed", Some("exit_nonzero")).await;
    let bomb = "exec python3 -c 'a = bytearray(512 << 20)\nfor i in range(0, len(a), 4096): a[i] = 1'";
    ends(&user, "sh", bomb, "failed", Some("oom")).await;
    ends(&user, "python", "a = bytearray(2 << 30)\nfor i in range(0, len(a), 4096): a[i] = 1", "failed", Some("oom")).await;
}

async fn a_run_over_its_time_is_killed_and_keeps_what_it_said(on: Backend) {
    let server = Server::start(on).await;
    let user = server.user("u");
    let run = user.submit(json!({"agent": "sh", "message": "trap '' TERM; echo begun; sleep 600", "timeoutSeconds": 1})).await;
    let run = user.finished(run["id"].as_str().unwrap()).await;
    assert_eq!((&run["status"], &run["text"]), (&json!("timed_out"), &json!("begun\n")));
    let wall = run["usage"]["wallMillis"].as_u64().unwrap();
    assert!((1000..8000).contains(&wall), "{wall}");
}

async fn what_cannot_start_says_why(on: Backend) {
    let server = Server::start(on).await;
    let user = server.user("u");
    let run = ends(&user, "ghost", "x", "failed", Some("image_unavailable")).await;
    assert!(run["error"]["message"].as_str().unwrap().contains("quayside/no-such-image:1"), "{run}");
    ends(&user, "nothing", "x", "failed", Some("sandbox_error")).await;
    assert_eq!(run["attempts"].as_array().unwrap().len(), 1, "trying again would not help");
}

async fn a_reply_that_is_not_what_was_promised_is_invalid(on: Backend) {
    let server = Server::start(on).await;
    let user = server.user("u");
    let extra = ends(&user, "request", "x", "completed", None).await;
    assert!(extra["text"].as_str().unwrap().starts_with('{'));
    let options = crate::support::server::Options {
        extra: "[agents.json]\nimage = \"quayside/agent-python\"\ncommand = [\"cat\"]\ninput = \"text\"\noutput = \"json\"\n".into(),
        ..Default::default()
    };
    let server = Server::start_with(on, options).await;
    let user = server.user("u");
    ends(&user, "json", "not json", "failed", Some("output_invalid")).await;
    assert_eq!(ends(&user, "json", r#"{"text":"fine"}"#, "completed", None).await["text"], "fine");
}

async fn output_over_the_cap_is_drained_dropped_and_flagged(on: Backend) {
    let server = Server::start(on).await;
    let user = server.user("u");
    let run = ends(&user, "small", "head -c 20000000 /dev/zero | tr '\\0' x; echo done >&2", "completed", None).await;
    assert_eq!((&run["truncated"], run["text"].as_str().unwrap().len()), (&json!(true), 1024));
    assert_eq!(run["usage"]["outputBytes"], 20_000_000);
    let run = ends(&user, "small", "head -c 1024 /dev/zero | tr '\\0' x", "completed", None).await;
    assert_eq!((&run["truncated"], run["text"].as_str().unwrap().len()), (&json!(false), 1024));
}

async fn bytes_that_are_no_text_break_nothing(on: Backend) {
    let server = Server::start(on).await;
    let user = server.user("u");
    let run = ends(&user, "sh", r"printf 'a\377\376b\000c\033[31m\342\202'", "completed", None).await;
    assert_eq!(run["text"], "a\u{fffd}\u{fffd}b\0c\u{1b}[31m\u{fffd}");
    let run = ends(&user, "sh", r"printf 'data: x\n\nid: 99\nevent: result\n\n\r\n'", "completed", None).await;
    assert_eq!(run["text"], "data: x\n\nid: 99\nevent: result\n\n\r\n");
    let events = user.events(run["id"].as_str().unwrap(), None).await;
    assert_eq!(events.iter().filter(|event| event.kind == "result").count(), 1, "no event can be forged: {events:?}");
}

async fn event_agents_speak_in_deltas(on: Backend) {
    let server = Server::start(on).await;
    let user = server.user("u");
    let script = "{\"type\":\"status\",\"text\":\"thinking\"}\n{\"type\":\"delta\",\"text\":\"Hel\"}\n{\"type\":\"delta\",\"text\":\"lo\"}\n{\"type\":\"result\",\"text\":\"Hello\",\"usage\":{\"inputTokens\":7,\"outputTokens\":2}}\nignored\n";
    let run = ends(&user, "events", script, "completed", None).await;
    assert_eq!((&run["text"], &run["usage"]["inputTokens"], &run["usage"]["outputTokens"]), (&json!("Hello"), &json!(7), &json!(2)));
}

super::on_both! {
    exit_codes_signals_and_memory_are_told_apart,
    a_run_over_its_time_is_killed_and_keeps_what_it_said,
    what_cannot_start_says_why,
    a_reply_that_is_not_what_was_promised_is_invalid,
    output_over_the_cap_is_drained_dropped_and_flagged,
    bytes_that_are_no_text_break_nothing,
    event_agents_speak_in_deltas,
}
