//! What only a hand-written client does.

use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::{PATIENCE, Server, answer, server, server_with};

const HEAD: &str = "POST /api/conversation HTTP/1.1\r\nhost: localhost\r\nx-user-id: ann\r\ncontent-type: application/json\r\n";

/// Reads what is left until the server closes.
async fn rest(stream: &mut TcpStream) -> String {
    let mut read = Vec::new();
    let _ = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut read)).await.expect("the server closes");
    String::from_utf8_lossy(&read).into_owned()
}

#[tokio::test]
async fn a_body_that_is_promised_too_large_is_refused_unread() {
    let server = server().await;
    for length in ["1073741824", "9223372036854775807"] {
        let answered = server.raw(format!("{HEAD}content-length: {length}\r\n\r\n{{").as_bytes()).await;
        assert!(answered.starts_with("HTTP/1.1 413") && answered.contains("body_too_large"), "{answered}");
    }
    let answered = server.raw(format!("{HEAD}content-length: 18446744073709551615\r\n\r\n").as_bytes()).await;
    assert!(answered.starts_with("HTTP/1.1 4"), "{answered}");
    let answered = server.raw(format!("{HEAD}expect: 100-continue\r\ncontent-length: 1073741824\r\n\r\n").as_bytes()).await;
    assert!(answered.starts_with("HTTP/1.1 413"), "{answered}");
}

#[tokio::test]
async fn a_body_without_end_is_cut_at_the_limit() {
    let server = server().await;
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    stream.write_all(format!("{HEAD}transfer-encoding: chunked\r\n\r\n").as_bytes()).await.unwrap();
    let chunk = format!("10000\r\n{}\r\n", "x".repeat(1 << 16));
    let mut sent = 0;
    // The server closes long before a gigabyte; what it has not taken by then lies in the kernel's buffers.
    while sent < 1 << 30 && stream.write_all(chunk.as_bytes()).await.is_ok() {
        sent += 1 << 16;
    }
    assert!(sent < 64 << 20, "{sent}");
    // The answer may be lost with the reset that the unread rest causes; a patient client gets it.
    let mut patient = TcpStream::connect(server.address).await.unwrap();
    let body = "x".repeat(2_032_000);
    patient.write_all(format!("{HEAD}transfer-encoding: chunked\r\n\r\n{:x}\r\n{body}\r\n", body.len()).as_bytes()).await.unwrap();
    let answered = rest(&mut patient).await;
    assert!(answered.starts_with("HTTP/1.1 413"), "{answered}");
}

#[tokio::test]
async fn a_body_shorter_than_promised_stores_nothing() {
    let server = server().await;
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    stream.write_all(format!("{HEAD}content-length: 100\r\n\r\n{{\"message\":\"x\"}}").as_bytes()).await.unwrap();
    stream.shutdown().await.unwrap();
    let answered = rest(&mut stream).await;
    assert!(answered.is_empty() || answered.starts_with("HTTP/1.1 400"), "{answered}");
    for chunks in ["zz\r\n{}\r\n0\r\n\r\n", "ffffffffffffffffff\r\n", "5\r\n{}\r\n0\r\n\r\n"] {
        let answered = server.raw(format!("{HEAD}transfer-encoding: chunked\r\n\r\n{chunks}").as_bytes()).await;
        assert!(answered.starts_with("HTTP/1.1 400"), "{chunks}: {answered}");
    }
    assert_eq!(server.stored().await, 0);
}

/// Sends `beginning`, then `drop` again and again, and reads what comes until the server closes, and after how long.
async fn drip(server: &Server, beginning: String, drop: &'static [u8], every: Duration) -> (String, Duration) {
    let begun = Instant::now();
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    stream.write_all(beginning.as_bytes()).await.unwrap();
    let (mut reader, mut writer) = stream.into_split();
    let dripping = tokio::spawn(async move {
        let mut every = tokio::time::interval(every);
        loop {
            every.tick().await;
            if writer.write_all(drop).await.is_err() {
                return;
            }
        }
    });
    let mut read = Vec::new();
    let _ = tokio::time::timeout(PATIENCE, reader.read_to_end(&mut read)).await.expect("the server closes");
    dripping.abort();
    (String::from_utf8_lossy(&read).into_owned(), begun.elapsed())
}

#[tokio::test]
async fn what_drips_is_cut_off() {
    let server = server().await;
    let half_second = Duration::from_millis(500);
    // Nothing at all, a greeting that could be either protocol's, a request line, a header, and a body of a byte a second.
    let (silent, half, line, header, body) = tokio::join!(
        drip(&server, String::new(), b"", half_second),
        drip(&server, "PRI * HT".to_owned(), b"", half_second),
        drip(&server, "GET /".to_owned(), b"x", half_second),
        drip(&server, "GET / HTTP/1.1\r\nhost: localhost\r\nx: ".to_owned(), b"x", half_second),
        drip(&server, format!("{HEAD}content-length: 1000\r\n\r\n"), b" ", Duration::from_secs(1)),
    );
    for (what, (_, after)) in [("silent", &silent), ("half", &half), ("line", &line), ("header", &header)] {
        assert!((8.0..16.0).contains(&after.as_secs_f32()), "{what}: {after:?}");
    }
    let (answered, after) = body;
    assert!(answered.starts_with("HTTP/1.1 408") && answered.contains("request_timeout"), "{answered}");
    assert!((14.0..20.0).contains(&after.as_secs_f32()), "{after:?}");
    assert_eq!(server.stored().await, 0);
}

#[tokio::test]
async fn idle_connections_leave_the_neighbour_alone() {
    let server = server().await;
    let mut idle = Vec::new();
    for _ in 0..200 {
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        stream.write_all(b"GET / HTTP/1.1\r\n").await.unwrap();
        idle.push(stream);
    }
    for _ in 0..20 {
        let begun = Instant::now();
        server.accepted("ann").await;
        assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
    }
}

#[tokio::test]
async fn two_lengths_are_one_request_or_none() {
    let server = server().await;
    let hidden = "GET /livez HTTP/1.1\r\nhost: localhost\r\n\r\n";
    let body = "{\"message\":\"x\"}";
    // Both framings: the chunks count (RFC 9112), the connection is closed, and what follows is no request.
    for framing in ["content-length: 4\r\ntransfer-encoding: chunked\r\n", "transfer-encoding: chunked\r\ncontent-length: 4\r\n"] {
        let request = format!("{HEAD}{framing}\r\n{:x}\r\n{body}\r\n0\r\n\r\n{hidden}", body.len());
        let answered = server.raw(request.as_bytes()).await;
        assert_eq!(answered.matches("HTTP/1.1 ").count(), 1, "{answered}");
        assert!(answered.contains("connection: close") || answered.starts_with("HTTP/1.1 400"), "{answered}");
    }
    for framing in [
        "content-length: 15\r\ncontent-length: 16\r\n",
        "content-length: 15, 16\r\n",
        "content-length: +15\r\n",
        "content-length: -1\r\n",
        "content-length: 0xf\r\n",
        "transfer-encoding: xchunked\r\n",
        "transfer-encoding: chunked, identity\r\n",
        "transfer-encoding: gzip\r\n",
        "transfer-encoding : chunked\r\n",
        "x: 1\r\n folded\r\n",
        "x: 1\r\n\tfolded\r\n",
        "x\0y: 1\r\n",
        "x y: 1\r\n",
        ": 1\r\n",
        "x: \0\r\n",
        "x: a\rb\r\n",
    ] {
        let request = format!("{HEAD}{framing}\r\n{body}{hidden}");
        let answered = server.raw(request.as_bytes()).await;
        assert!(answered.starts_with("HTTP/1.1 400"), "{framing:?}: {answered}");
        assert_eq!(answered.matches("HTTP/1.1 ").count(), 1, "{framing:?}: {answered}");
    }
    let old = server.raw(format!("POST /api/conversation HTTP/1.0\r\ntransfer-encoding: chunked\r\n\r\n{body}").as_bytes()).await;
    assert!(old.starts_with("HTTP/1.0 400") || old.starts_with("HTTP/1.1 400"), "{old}");
}

#[tokio::test]
async fn only_requests_for_this_machine_are_answered() {
    let server = server().await;
    let port = server.address.port();
    let get = async |lines: &str| server.raw(format!("{lines}x-user-id: ann\r\nconnection: close\r\n\r\n").as_bytes()).await;
    for good in [
        format!("GET /api/agents HTTP/1.1\r\nhost: localhost:{port}\r\n"),
        format!("GET /api/agents HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\n"),
        format!("GET /api/agents HTTP/1.1\r\nhost: [::1]:{port}\r\n"),
        "GET http://localhost/api/agents HTTP/1.1\r\nhost: localhost\r\n".to_owned(),
    ] {
        let answered = get(&good).await;
        assert!(answered.starts_with("HTTP/1.1 200"), "{good}{answered}");
    }
    for bad in [
        "GET /api/agents HTTP/1.1\r\n",
        "GET /api/agents HTTP/1.1\r\nhost:\r\n",
        "GET /api/agents HTTP/1.1\r\nhost: evil.example\r\n",
        "GET /api/agents HTTP/1.1\r\nhost: localhost.evil.example\r\n",
        "GET /api/agents HTTP/1.1\r\nhost: localhost\r\nhost: localhost\r\n",
        "GET /api/agents HTTP/1.1\r\nhost: localhost\r\nhost: evil.example\r\n",
        "GET http://evil.example/api/agents HTTP/1.1\r\nhost: localhost\r\n",
        "GET http://localhost/api/agents HTTP/1.1\r\nhost: evil.example\r\n",
        "GET / HTTP/1.1\r\nhost: evil.example\r\naccept: text/html\r\n",
        "GET /api/agents HTTP/1.0\r\n",
    ] {
        let answered = get(bad).await;
        assert!(answered.contains(" 400 Bad Request\r\n"), "{bad}{answered}");
        assert!(answered.contains("\"field\":\"Host\""), "{bad}{answered}");
    }
    // Bound to the world, any name may be ours; one that is two is still refused.
    let public = server_with(|setup| setup.loopback_hosts_only = false).await;
    let answered = answer(public.request("GET", "ann", "/api/agents").header("host", "api.example.org")).await;
    assert_eq!(answered.status, 200);
    let answered = public.raw(b"GET /api/agents HTTP/1.1\r\nhost: a.example\r\nhost: b.example\r\nconnection: close\r\n\r\n").await;
    assert!(answered.starts_with("HTTP/1.1 400"), "{answered}");
}

#[tokio::test]
async fn what_is_no_http_is_dropped() {
    let server = server().await;
    for noise in [
        &b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"[..],
        b"\r\n\r\n\r\n\r\nnonsense\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        &[0; 512],
    ] {
        let answered = server.raw(noise).await;
        assert!(answered.is_empty() || answered.starts_with("HTTP/1.1 400"), "{answered}");
    }
    // The odd methods that name no resource.
    for request in [
        "CONNECT evil.example:443 HTTP/1.1\r\nhost: evil.example:443\r\n",
        "CONNECT localhost:443 HTTP/1.1\r\nhost: localhost:443\r\n",
        "OPTIONS * HTTP/1.1\r\nhost: localhost\r\n",
    ] {
        let answered = server.raw(format!("{request}connection: close\r\n\r\n").as_bytes()).await;
        assert!(["400", "404", "405"].iter().any(|status| answered.starts_with(&format!("HTTP/1.1 {status}"))), "{request}{answered}");
    }
    let trace = server.raw(b"TRACE /api/agents HTTP/1.1\r\nhost: localhost\r\nx-secret: s3cret\r\nconnection: close\r\n\r\n").await;
    assert!(trace.starts_with("HTTP/1.1 405") && !trace.contains("s3cret"), "{trace}");
    // Heads that are too large or too many.
    let huge = format!("GET / HTTP/1.1\r\nhost: localhost\r\nx: {}\r\n\r\n", "x".repeat(1 << 20));
    assert!(server.raw(huge.as_bytes()).await.starts_with("HTTP/1.1 431"));
    let many = format!("GET / HTTP/1.1\r\nhost: localhost\r\n{}\r\n", "x: 1\r\n".repeat(1000));
    assert!(server.raw(many.as_bytes()).await.starts_with("HTTP/1.1 431"));
    let long = format!("GET /{} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n", "x".repeat(40_000));
    let answered = server.raw(long.as_bytes()).await;
    assert!(answered.starts_with("HTTP/1.1 404"), "{answered}");
    // And it is still there.
    server.accepted("ann").await;
}

#[tokio::test]
async fn nothing_that_a_client_sends_comes_back_as_a_header_or_a_page() {
    let server = server().await;
    let evil = "%0d%0aset-cookie:%20x=1%0d%0a%0d%0a<script>alert(1)</script>";
    for path in [format!("/{evil}"), format!("/api/runs/{evil}"), format!("/api/conversations?after={evil}"), format!("/api/runs/x?wait={evil}")] {
        let answered = server.get("ann", &path).await;
        assert!(answered.status >= 400 && answered.status < 500);
        assert_eq!((answered.header("set-cookie"), answered.header("x-content-type-options")), ("", "nosniff"));
        assert!(answered.header("content-type").starts_with("application/problem+json"));
        assert!(!answered.text.contains("<script>"), "{}", answered.text);
    }
    let answered =
        server.raw("GET / HTTP/1.1\r\nhost: localhost\r\nx-user-id: ann\r\naccept: text/html\u{1f}\r\nconnection: close\r\n\r\n".as_bytes()).await;
    assert!(answered.starts_with("HTTP/1.1 400"), "{answered}");
}

/// A frame of HTTP/2: its type and its payload.
type Frame = (u8, Vec<u8>);

fn frames(mut bytes: &[u8]) -> Vec<Frame> {
    let mut frames = Vec::new();
    while let Some((head, rest)) = bytes.split_at_checked(9) {
        let length = usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2]);
        let Some((payload, rest)) = rest.split_at_checked(length) else { break };
        frames.push((head[3], payload.to_vec()));
        bytes = rest;
    }
    frames
}

#[tokio::test]
async fn http_2_is_spoken_and_its_rapid_reset_is_cut_off() {
    const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00";
    // GET http://localhost/, the names from HPACK's static table.
    const HEADERS: &[u8] = b"\x82\x86\x84\x01\x09localhost";
    const GOAWAY: u8 = 7;
    const ENHANCE_YOUR_CALM: u8 = 11;
    let server = server().await;
    let open = |id: u32| [&[0, 0, u8::try_from(HEADERS.len()).unwrap(), 1, 5][..], &id.to_be_bytes(), HEADERS].concat();
    let reset = |id: u32| [&[0, 0, 4, 3, 0][..], &id.to_be_bytes(), &[0, 0, 0, 8]].concat();

    let mut polite = TcpStream::connect(server.address).await.unwrap();
    polite.write_all(&[PREFACE, &open(1)].concat()).await.unwrap();
    let mut read = Vec::new();
    let answered = async {
        while !String::from_utf8_lossy(&read).contains("api-server") {
            let mut buffer = [0; 4096];
            let count = polite.read(&mut buffer).await.unwrap();
            assert_ne!(count, 0);
            read.extend_from_slice(&buffer[..count]);
        }
    };
    tokio::time::timeout(PATIENCE, answered).await.expect("HTTP/2 is answered");

    // Streams opened and reset as fast as they can be written (CVE-2023-44487).
    let mut flood = PREFACE.to_vec();
    for number in 0..20_000 {
        flood.extend(open(number * 2 + 1));
        flood.extend(reset(number * 2 + 1));
    }
    let (mut reader, mut writer) = TcpStream::connect(server.address).await.unwrap().into_split();
    let sending = tokio::spawn(async move { writer.write_all(&flood).await.is_err() });
    let mut read = Vec::new();
    let _ = tokio::time::timeout(PATIENCE, reader.read_to_end(&mut read)).await.expect("the server hangs up");
    let cut = sending.await.unwrap();
    let told = frames(&read).iter().any(|(kind, payload)| *kind == GOAWAY && payload.get(7) == Some(&ENHANCE_YOUR_CALM));
    assert!(told || cut, "{:?}", frames(&read).last());
    server.accepted("ann").await;
}
