//! Server-Sent Events: nothing missing, nothing twice, whatever the client or the agent does.

use std::time::Duration;

use quayside_shared::ids::RunId;
use quayside_shared::run::AttemptOutcome;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::{PATIENCE, Server, answer, server, server_with, until};

/// An event as the WHATWG algorithm would dispatch it.
#[derive(Debug, Clone, PartialEq)]
struct Event {
    id: u64,
    name: String,
    data: Value,
}

/// A client that reads event by event.
struct Reader {
    response: reqwest::Response,
    text: String,
    comments: usize,
}

impl Reader {
    async fn open(server: &Server, user: &str, id: &RunId, after: Option<u64>) -> Self {
        let mut request = server.request("GET", user, &format!("/api/runs/{id}/events"));
        if let Some(after) = after {
            request = request.header("last-event-id", after);
        }
        let response = request.send().await.unwrap();
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        assert_eq!(response.headers()["cache-control"], "no-store");
        Self { response, text: String::new(), comments: 0 }
    }

    /// The next event; `None` at the end of the stream.
    async fn next(&mut self) -> Option<Event> {
        let next = async {
            loop {
                while let Some((block, rest)) = self.text.split_once("\n\n") {
                    let (block, rest) = (block.to_owned(), rest.to_owned());
                    self.text = rest;
                    if block.starts_with(':') {
                        self.comments += 1;
                        continue;
                    }
                    let lines: Vec<&str> = block.split('\n').collect();
                    let [id, name, data] = lines[..] else { panic!("{block}") };
                    return Some(Event {
                        id: id.strip_prefix("id: ").unwrap().parse().unwrap(),
                        name: name.strip_prefix("event: ").unwrap().to_owned(),
                        data: serde_json::from_str(data.strip_prefix("data: ").unwrap()).unwrap(),
                    });
                }
                match self.response.chunk().await.unwrap() {
                    Some(chunk) => self.text.push_str(std::str::from_utf8(&chunk).unwrap()),
                    None => return None,
                }
            }
        };
        tokio::time::timeout(PATIENCE, next).await.expect("an event comes")
    }

    async fn rest(mut self) -> Vec<Event> {
        let mut events = Vec::new();
        while let Some(event) = self.next().await {
            events.push(event);
        }
        events
    }
}

#[tokio::test]
async fn a_stream_shows_a_run_as_it_happens() {
    let server = server().await;
    let id = server.accepted("ann").await;
    let mut reader = Reader::open(&server, "ann", &id, None).await;
    let event = reader.next().await.unwrap();
    assert_eq!((event.id, event.name.as_str()), (1, "status"));
    assert_eq!(event.data, json!({"sequenceNumber": 1, "status": "queued", "waiting": {"reason": "no_capacity", "position": null}}));
    let lease = server.claim(&id).await;
    let event = reader.next().await.unwrap();
    assert_eq!(event.data, json!({"sequenceNumber": 2, "status": "in_progress", "waiting": null}));
    server.append(&lease, "he").await;
    let event = reader.next().await.unwrap();
    assert_eq!((event.name.as_str(), event.data), ("delta", json!({"sequenceNumber": 3, "text": "he"})));
    server.append(&lease, "llo").await;
    assert_eq!(reader.next().await.unwrap().data["text"], "llo");
    server.finish(&lease).await;
    let result = reader.next().await.unwrap();
    assert_eq!((result.id, result.name.as_str()), (5, "result"));
    assert_eq!(result.data, server.get("ann", &format!("/api/runs/{id}")).await.json());
    assert_eq!((&result.data["text"], &result.data["sequenceNumber"]), (&json!("hello"), &json!(5)));
    assert_eq!(reader.next().await, None);
}

#[tokio::test]
async fn every_outcome_ends_with_the_result() {
    let server = server().await;
    for outcome in [AttemptOutcome::Finished, AttemptOutcome::ExitNonzero, AttemptOutcome::TimedOut, AttemptOutcome::Cancelled] {
        let id = server.accepted("ann").await;
        let reader = Reader::open(&server, "ann", &id, None).await;
        let lease = server.claim(&id).await;
        if outcome == AttemptOutcome::Cancelled {
            server.post("ann", &format!("/api/runs/{id}/cancel")).await;
        }
        server.end(&lease, outcome).await;
        let events = reader.rest().await;
        let last = events.last().unwrap();
        assert_eq!(last.name, "result");
        assert_eq!(last.data["status"], server.get("ann", &format!("/api/runs/{id}")).await.json()["status"]);
        assert!(events.iter().filter(|event| event.name == "result").count() == 1);
    }
    // Cancelled before it began.
    let id = server.accepted("ann").await;
    let reader = Reader::open(&server, "ann", &id, None).await;
    server.post("ann", &format!("/api/runs/{id}/cancel")).await;
    assert_eq!(reader.rest().await.last().unwrap().data["status"], "cancelled");
}

#[tokio::test]
async fn a_stream_resumed_anywhere_has_no_gap_and_no_repeat() {
    let server = server().await;
    let id = server.accepted("ann").await;
    let lease = server.claim(&id).await;
    for n in 0..20 {
        server.append(&lease, &format!("{n},")).await;
    }
    server.finish(&lease).await;
    let whole = Reader::open(&server, "ann", &id, None).await.rest().await;
    assert_eq!(whole.len(), 23);
    assert!(whole.windows(2).all(|pair| pair[0].id < pair[1].id));
    let last = whole.last().unwrap().id;
    for after in 0..last {
        let expected: Vec<&Event> = whole.iter().filter(|event| event.id > after).collect();
        let resumed = Reader::open(&server, "ann", &id, Some(after)).await.rest().await;
        // The same to the byte, whoever reads it whenever.
        assert_eq!(resumed.iter().collect::<Vec<_>>(), expected);
        let by_query = server.get("ann", &format!("/api/runs/{id}/events?after={after}")).await.text;
        assert_eq!(by_query.matches("event: ").count(), expected.len());
    }
    // Nothing will ever follow: 204 keeps an EventSource from coming back.
    for after in [last, last + 1, i64::MAX as u64] {
        let done = server.get("ann", &format!("/api/runs/{id}/events?after={after}")).await;
        assert_eq!((done.status, done.text.as_str()), (204, ""));
    }
    // The header is what a browser sends on its own when it comes back; it knows better than the address.
    let both = server.request("GET", "ann", &format!("/api/runs/{id}/events?after=0")).header("last-event-id", last);
    assert_eq!(answer(both).await.status, 204);
}

#[tokio::test]
async fn a_long_reply_comes_whole() {
    let server = server().await;
    let id = server.accepted("ann").await;
    let lease = server.claim(&id).await;
    let piece = "0123456789abcdef".repeat(256);
    for _ in 0..300 {
        server.append(&lease, &piece).await;
    }
    server.finish(&lease).await;
    let events = Reader::open(&server, "ann", &id, None).await.rest().await;
    assert!(events.windows(2).all(|pair| pair[0].id + 1 == pair[1].id));
    let text: String = events.iter().filter_map(|event| event.data["text"].as_str().filter(|_| event.name == "delta")).collect();
    assert!(text == piece.repeat(300) && events.last().unwrap().data["text"] == text.as_str());
}

#[tokio::test]
async fn readers_that_come_and_go_while_it_runs_miss_nothing() {
    let server = server().await;
    let id = server.accepted("ann").await;
    let lease = server.claim(&id).await;
    let reading = async {
        let (mut seen, mut after) = (Vec::<Event>::new(), None);
        // Every connection is dropped after three events.
        loop {
            let mut reader = Reader::open(&server, "ann", &id, after).await;
            for _ in 0..3 {
                let Some(event) = reader.next().await else { break };
                after = Some(event.id);
                seen.push(event);
            }
            if seen.last().is_some_and(|event| event.name == "result") {
                return seen;
            }
        }
    };
    let writing = async {
        for n in 0..50 {
            server.append(&lease, &format!("{n} ")).await;
        }
        server.finish(&lease).await;
    };
    let (seen, ()) = tokio::join!(reading, writing);
    let text: String = seen.iter().filter(|event| event.name == "delta").map(|event| event.data["text"].as_str().unwrap()).collect();
    assert_eq!(text, seen.last().unwrap().data["text"]);
    assert!(seen.windows(2).all(|pair| pair[0].id < pair[1].id));
}

#[tokio::test]
async fn a_lost_attempt_begins_the_reply_again() {
    let server = server().await;
    let id = server.accepted("ann").await;
    let lease = server.claim(&id).await;
    server.append(&lease, "first try").await;
    let mut reader = Reader::open(&server, "ann", &id, Some(2)).await;
    assert_eq!(reader.next().await.unwrap().data["text"], "first try");
    server.store.release(&lease, AttemptOutcome::Drained).await.unwrap().unwrap();
    let event = reader.next().await.unwrap();
    assert_eq!((&event.data["status"], event.name.as_str()), (&json!("queued"), "status"));
    let lease = server.claim(&id).await;
    server.append(&lease, "second try").await;
    server.finish(&lease).await;
    assert_eq!(reader.rest().await.last().unwrap().data["text"], "second try");
}

#[tokio::test]
async fn no_text_can_break_the_stream() {
    let server = server().await;
    let id = server.accepted("ann").await;
    let lease = server.claim(&id).await;
    let texts = [
        "\r\n\r\nevent: result\r\ndata: {}\r\n\r\n",
        "\n\n",
        "\r",
        "\u{0}",
        "\u{2028}\u{2029}\u{85}",
        "data: x\n:\n",
        "\u{feff}",
        "</script>",
        "\u{1b}[2J",
    ];
    for text in texts {
        server.append(&lease, text).await;
    }
    server.finish(&lease).await;
    let events = Reader::open(&server, "ann", &id, Some(2)).await.rest().await;
    let seen: Vec<&str> = events.iter().filter(|event| event.name == "delta").map(|event| event.data["text"].as_str().unwrap()).collect();
    assert_eq!(seen, texts);
    assert_eq!((events.len(), &events.last().unwrap().data["text"]), (texts.len() + 1, &json!(texts.concat())));
}

#[tokio::test]
async fn a_bogus_place_to_resume_from_is_refused_by_name() {
    let server = server().await;
    let id = server.accepted("ann").await;
    let path = format!("/api/runs/{id}/events");
    for bogus in ["-1", "1.5", "x", "1e3", "0x10", "9223372036854775808", "18446744073709551616", "1 2", "", "\u{fc}"] {
        let value = reqwest::header::HeaderValue::from_bytes(bogus.as_bytes()).unwrap();
        answer(server.request("GET", "ann", &path).header("last-event-id", value)).await.refused(400, "invalid_header", Some("Last-Event-ID"));
    }
    let twice = server.request("GET", "ann", &path).header("last-event-id", "1").header("last-event-id", "2");
    answer(twice).await.refused(400, "invalid_header", Some("Last-Event-ID"));
    for bogus in ["-1", "1.5", "x", "", "%2B1", "%00", "18446744073709551616", "1&after=2"] {
        server.get("ann", &format!("{path}?after={bogus}")).await.refused(400, "invalid_header", Some("after"));
        let both = server.request("GET", "ann", &format!("{path}?after={bogus}")).header("last-event-id", "0");
        answer(both).await.refused(400, "invalid_header", Some("after"));
    }
}

#[tokio::test]
async fn streams_of_one_user_are_capped_and_closing_one_makes_room() {
    let server = server_with(|setup| setup.config.limits.streams_per_user = 3).await;
    let id = server.accepted("ann").await;
    let mut open = Vec::new();
    for _ in 0..3 {
        open.push(Reader::open(&server, "ann", &id, None).await);
    }
    let path = format!("/api/runs/{id}/events");
    for _ in 0..50 {
        let refused = server.get("ann", &path).await;
        refused.refused(429, "rate_limited", None);
        assert!(refused.header("retry-after").parse::<u64>().unwrap() > 0);
    }
    let theirs = server.accepted("bob").await;
    let _bobs = Reader::open(&server, "bob", &theirs, None).await;
    drop(open.pop());
    until("the closed stream's place is free", || async {
        let answered = server.request("GET", "ann", &path).send().await.unwrap();
        answered.status() == 200
    })
    .await;
}

#[tokio::test]
async fn a_deleted_run_ends_its_streams() {
    let server = server().await;
    let id = server.accepted_in("ann", Some("c")).await;
    let mut reader = Reader::open(&server, "ann", &id, None).await;
    assert!(reader.next().await.is_some());
    assert_eq!(answer(server.request("DELETE", "ann", "/api/conversations/c")).await.status, 204);
    assert_eq!(reader.next().await, None);
}

#[tokio::test]
async fn silence_is_broken_by_comments() {
    let server = server().await;
    let id = server.accepted("ann").await;
    let mut reader = Reader::open(&server, "ann", &id, None).await;
    assert!(reader.next().await.is_some());
    let begun = std::time::Instant::now();
    let comment = tokio::time::timeout(PATIENCE, reader.response.chunk()).await.expect("a comment comes").unwrap().unwrap();
    assert_eq!(&comment[..], b":\n\n");
    assert!((14..=17).contains(&begun.elapsed().as_secs()), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn a_reader_that_does_not_read_holds_nobody_up() {
    let server = server().await;
    let id = server.accepted("ann").await;
    let lease = server.claim(&id).await;
    // More than the kernel buffers for a connection.
    let (chunk, count) = ("x".repeat(1 << 20), 32);
    let mut lazy = TcpStream::connect(server.address).await.unwrap();
    lazy.write_all(format!("GET /api/runs/{id}/events HTTP/1.1\r\nhost: localhost\r\nx-user-id: ann\r\n\r\n").as_bytes()).await.unwrap();
    let mut first = [0; 15];
    lazy.read_exact(&mut first).await.unwrap();
    let reader = Reader::open(&server, "ann", &id, None).await;
    let writing = async {
        for _ in 0..count {
            server.append(&lease, &chunk).await;
        }
        server.finish(&lease).await;
    };
    let (events, ()) = tokio::join!(reader.rest(), writing);
    assert_eq!(events.last().unwrap().data["text"].as_str().unwrap().len(), count << 20);
    // The lazy one still gets everything, in its own time.
    let mut rest = Vec::new();
    let read = async {
        let mut buffer = vec![0; 1 << 16];
        while !String::from_utf8_lossy(&rest[rest.len().saturating_sub(64)..]).contains("0\r\n\r\n") {
            let count = lazy.read(&mut buffer).await.unwrap();
            assert_ne!(count, 0);
            rest.extend_from_slice(&buffer[..count]);
        }
    };
    tokio::time::timeout(Duration::from_secs(30), read).await.expect("the stream ends");
    assert!(rest.len() > 2 * (count << 20) && String::from_utf8_lossy(&rest).contains("event: result"));
}
