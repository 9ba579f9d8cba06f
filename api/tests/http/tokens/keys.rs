//! Keys that come, grow old, go, or cannot be had.

use std::time::Duration;

use quayside_shared::config::Auth;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::mint::{FIRST, KeyServer, PROJECT, Published, SECOND, stage, stage_with};
use super::refused;
use crate::support::{answer, server_with, until};

const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);
/// What [`Published::keys`] promises.
const FRESH: Duration = Duration::from_secs(6 * 3600);

fn failing() -> Published {
    Published { status: 503, headers: Vec::new(), body: "try later".to_owned(), hold: None }
}

#[track_caller]
fn reachable(ready: &(u16, serde_json::Value)) {
    assert_eq!((ready.0, &ready.1["ok"]), (200, &true.into()), "{ready:?}");
}

#[tokio::test]
async fn keys_are_fetched_once_however_many_ask() {
    let hold = CancellationToken::new();
    let stage = stage_with(Published { hold: Some(hold.clone()), ..Published::keys(&[&FIRST]) }, |_| {}).await;
    let good = stage.good(&FIRST);
    let all = async { futures::future::join_all((0..50).map(|_| stage.ask(&good))).await };
    let release = async {
        until("the fetch has begun", || async { stage.keys.fetches() == 1 }).await;
        hold.cancel();
    };
    let (answers, ()) = tokio::join!(all, release);
    assert!(answers.iter().all(|answered| answered.status == 200));
    for _ in 0..50 {
        assert_eq!(stage.ask(&good).await.status, 200);
    }
    assert_eq!(stage.keys.fetches(), 1);
}

#[tokio::test]
async fn keys_are_renewed_ahead_of_time_and_nobody_waits() {
    let stage = stage().await;
    assert_eq!(stage.ask(&stage.good(&FIRST)).await.status, 200);
    stage.pass(FRESH - FRESH / 10 - MINUTE);
    assert_eq!((stage.ask(&stage.good(&FIRST)).await.status, stage.keys.fetches()), (200, 1));
    let hold = CancellationToken::new();
    stage.keys.publish(Published { hold: Some(hold.clone()), ..Published::keys(&[&SECOND]) });
    stage.pass(2 * MINUTE);
    // Answered although the new keys are not there yet.
    assert_eq!(stage.ask(&stage.good(&FIRST)).await.status, 200);
    until("new keys are asked for", || async { stage.keys.fetches() == 2 }).await;
    assert_eq!(stage.ask(&stage.good(&FIRST)).await.status, 200);
    hold.cancel();
    until("the new keys are here", || async { stage.ask(&stage.good(&FIRST)).await.status == 401 }).await;
    assert_eq!((stage.ask(&stage.good(&SECOND)).await.status, stage.keys.fetches()), (200, 2));
}

#[tokio::test]
async fn a_key_that_was_withdrawn_is_refused_once_the_keys_are_not_fresh() {
    let stage = stage_with(Published::keys(&[&FIRST, &SECOND]), |_| {}).await;
    assert_eq!(stage.ask(&stage.good(&FIRST)).await.status, 200);
    assert_eq!(stage.ask(&stage.good(&SECOND)).await.status, 200);
    stage.keys.publish(Published::keys(&[&SECOND]));
    stage.pass(FRESH);
    // The very first token after that waits for the new keys.
    refused(&stage.ask(&stage.good(&FIRST)).await, "withdrawn");
    assert_eq!(stage.ask(&stage.good(&SECOND)).await.status, 200);
}

#[tokio::test]
async fn a_new_key_is_found_and_an_unknown_one_is_not_looked_for_again_within_a_minute() {
    let stage = stage().await;
    assert_eq!(stage.ask(&stage.good(&FIRST)).await.status, 200);
    stage.keys.publish(Published::keys(&[&FIRST, &SECOND]));
    for passed in [0, 30, 29] {
        stage.pass(Duration::from_secs(passed));
        for _ in 0..5 {
            refused(&stage.ask(&stage.good(&SECOND)).await, "within the first minute");
        }
    }
    assert_eq!(stage.keys.fetches(), 1);
    stage.pass(Duration::from_secs(1));
    assert_eq!((stage.ask(&stage.good(&SECOND)).await.status, stage.keys.fetches()), (200, 2));
    for number in 0..20 {
        refused(&stage.ask(&stage.headed(|header| header["kid"] = format!("made-up-{number}").into())).await, "made up");
    }
    assert_eq!(stage.keys.fetches(), 2);
    stage.pass(MINUTE);
    let unknown = (0..20).map(|number| stage.headed(|header| header["kid"] = format!("made-up-{number}").into())).collect::<Vec<_>>();
    for answered in futures::future::join_all(unknown.iter().map(|token| stage.ask(token))).await {
        refused(&answered, "made up");
    }
    assert_eq!(stage.keys.fetches(), 3);
    assert_eq!(stage.ask(&stage.good(&FIRST)).await.status, 200);
}

#[tokio::test]
async fn old_keys_serve_on_while_no_new_ones_can_be_had_but_not_for_ever() {
    let stage = stage().await;
    assert_eq!(stage.ask(&stage.good(&FIRST)).await.status, 200);
    stage.keys.publish(failing());
    stage.pass(FRESH + MINUTE);
    for _ in 0..5 {
        assert_eq!(stage.ask(&stage.good(&FIRST)).await.status, 200);
    }
    // Asked once, and again only a while later.
    assert_eq!(stage.keys.fetches(), 2);
    stage.pass(Duration::from_secs(11));
    assert_eq!((stage.ask(&stage.good(&FIRST)).await.status, stage.keys.fetches()), (200, 3));
    reachable(&stage.ready().await);

    stage.pass(30 * HOUR);
    refused(&stage.ask(&stage.good(&FIRST)).await, "too old");
    let (status, check) = stage.ready().await;
    assert_eq!((status, &check["ok"]), (503, &false.into()));
    let detail = check["detail"].as_str().unwrap();
    assert!(detail.contains(&stage.keys.address.to_string()), "{detail}");

    stage.keys.publish(Published::keys(&[&FIRST]));
    stage.pass(Duration::from_secs(11));
    assert_eq!(stage.ask(&stage.good(&FIRST)).await.status, 200);
    reachable(&stage.ready().await);
}

#[tokio::test]
async fn answers_that_are_no_keys_let_nobody_in_and_the_readiness_check_says_so() {
    let endless = "x".repeat(1 << 20);
    let keys = |text: String| Published { body: text, ..Published::keys(&[]) };
    let jwk = |name: &str, value: &str| {
        let mut jwk = FIRST.jwk();
        jwk[name] = value.into();
        keys(serde_json::json!({"keys": [jwk]}).to_string())
    };
    let evil = KeyServer::start(Published::keys(&[&FIRST])).await;
    let elsewhere = vec![("location", format!("http://{}/keys", evil.address))];
    // The keys are right, but there is more than anybody should send.
    let long = Published::keys(&[&FIRST]).body.replacen('{', &format!("{{\"pad\":\"{endless}\","), 1);
    for (what, published) in [
        ("503", failing()),
        ("404 with keys", Published { status: 404, ..Published::keys(&[&FIRST]) }),
        ("no JSON", keys("<html>".to_owned())),
        ("too long", keys(long)),
        ("no keys", Published::keys(&[])),
        ("a redirect", Published { status: 302, headers: elsewhere, ..Published::keys(&[&FIRST]) }),
        ("keys to encrypt with", jwk("use", "enc")),
        ("keys for another algorithm", jwk("alg", "RS512")),
        ("keys of another kind", jwk("kty", "EC")),
    ] {
        let stage = stage_with(published, |_| {}).await;
        refused(&stage.ask(&stage.good(&FIRST)).await, what);
        let (status, check) = stage.ready().await;
        assert_eq!((status, &check["ok"]), (503, &false.into()), "{what}");
        // As soon as there are keys, tokens are good.
        stage.keys.publish(Published::keys(&[&FIRST]));
        stage.pass(MINUTE);
        assert_eq!(stage.ask(&stage.good(&FIRST)).await.status, 200, "{what}");
        reachable(&stage.ready().await);
    }
    assert_eq!(evil.fetches(), 0);
}

#[tokio::test]
async fn a_publisher_that_never_answers_holds_nobody_up_for_ever() {
    let never = CancellationToken::new();
    let stage = stage_with(Published { hold: Some(never), ..Published::keys(&[&FIRST]) }, |_| {}).await;
    let (status, check) = stage.ready().await;
    assert_eq!((status, &check["ok"]), (503, &false.into()));
    assert!(check["detail"].as_str().unwrap().contains("/keys"), "{check}");
    // The client's own patience would end this with an error.
    refused(&stage.ask(&stage.good(&FIRST)).await, "no answer");
    assert_eq!(stage.keys.fetches(), 1);
}

#[tokio::test]
async fn without_a_publisher_nobody_comes_in_but_the_server_is_there() {
    let stage = stage_with(Published::keys(&[&FIRST]), |_| {}).await;
    // A port where nobody listens any more.
    let gone = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let server = server_with(|setup| {
        setup.config.api.auth = Auth::Tokens;
        setup.config.google.project_id = PROJECT.to_owned();
        setup.keys.url = format!("http://{gone}/keys");
    })
    .await;
    let agents = server.client.get(server.url("/api/agents")).header("authorization", format!("Bearer {}", stage.good(&FIRST)));
    refused(&answer(agents).await, "nobody listens");
    assert_eq!(answer(server.client.get(server.url("/readyz"))).await.status, 503);
    assert_eq!(answer(server.client.get(server.url("/livez"))).await.status, 200);
}
