use std::time::Duration;

use super::*;

fn agent(output: Output, output_limit: u64) -> Agent {
    Agent {
        input: Input::Json,
        output,
        pids: 64,
        timeout: Duration::from_secs(10),
        output_limit,
        ..Agent::new("x".parse().unwrap(), "x".into(), Vec::new())
    }
}

/// Feeds `bytes` in pieces of `cut` and returns the whole reply with its ending.
fn reply(output: Output, limit: u64, bytes: &[u8], cut: usize) -> (String, Result<Ending, InvalidReply>) {
    let mut reader = ReplyReader::new(&agent(output, limit));
    let mut text: String = bytes.chunks(cut).map(|chunk| reader.read(chunk)).collect();
    let ending = reader.end();
    if let Ok(ending) = &ending {
        text.push_str(&ending.rest);
        if let Some(stated) = &ending.stated {
            text.clone_from(stated);
        }
    }
    (text, ending)
}

fn at_every_cut(output: Output, bytes: &[u8], expected: &str) {
    for cut in 1..=bytes.len() {
        assert_eq!(reply(output, 1 << 20, bytes, cut).0, expected, "cut at {cut}");
    }
}

#[test]
fn deltas_are_the_reply_and_a_line_that_is_no_event_is_text() {
    let bytes = b"{\"type\":\"delta\",\"text\":\"a\\u0000b\"}\n{\"type\":\"status\",\"text\":\"thinking\"}\nplain {\"type\":\"delta\"}\n{\"no\":\"event\"}\n{\"type\":\"delta\"}\ntail";
    at_every_cut(Output::Events, bytes, "a\0bplain {\"type\":\"delta\"}\n{\"no\":\"event\"}\n{\"type\":\"delta\"}\ntail");
}

#[test]
fn nothing_counts_after_the_result() {
    let bytes = b"{\"type\":\"delta\",\"text\":\"x\"}\n{\"type\":\"result\",\"usage\":{\"inputTokens\":3,\"outputTokens\":5}}\n{\"type\":\"delta\",\"text\":\"y\"}\nz\n";
    at_every_cut(Output::Events, bytes, "x");
    let (_, ending) = reply(Output::Events, 100, bytes, 7);
    let ending = ending.unwrap();
    assert_eq!(ending.tokens, Tokens { input_tokens: Some(3), output_tokens: Some(5) });
    assert_eq!(ending.bytes, bytes.len() as u64);
}

#[test]
fn a_stated_reply_is_not_doubled() {
    at_every_cut(
        Output::Events,
        b"{\"type\":\"delta\",\"text\":\"Hel\"}\n{\"type\":\"delta\",\"text\":\"lo\"}\n{\"type\":\"result\",\"text\":\"Hello\"}\n",
        "Hello",
    );
    at_every_cut(Output::Events, b"{\"type\":\"delta\",\"text\":\"Hel\"}\n{\"type\":\"result\",\"text\":\"Hello\"}", "Hello");
    at_every_cut(Output::Events, b"{\"type\":\"result\",\"text\":\"alone\"}\n", "alone");
    at_every_cut(Output::Events, b"{\"type\":\"delta\",\"text\":\"draft\"}\n{\"type\":\"result\",\"text\":\"final\"}\n", "final");
}

#[test]
fn text_without_a_newline_is_streamed_at_once() {
    let mut reader = ReplyReader::new(&agent(Output::Events, 100));
    assert_eq!(reader.read(b"50 %"), "50 %");
    assert_eq!(reader.read(b"{"), "{");
    assert_eq!(reader.read(b"\n{\"type\""), "\n");
}

#[test]
fn the_cap_cuts_at_a_character_and_says_so() {
    for (limit, expected) in [(4, "äx"), (3, "äx"), (2, "ä"), (1, "")] {
        let (text, ending) = reply(Output::Text, limit, "äxé".as_bytes(), 2);
        assert_eq!(text, expected, "limit {limit}");
        let ending = ending.unwrap();
        assert!(ending.truncated);
        assert_eq!(ending.bytes, 5);
    }
    let (text, ending) = reply(Output::Text, 5, "äxé".as_bytes(), 2);
    assert_eq!((text.as_str(), ending.unwrap().truncated), ("äxé", false));
}

#[test]
fn a_huge_line_is_bounded() {
    let mut reader = ReplyReader::new(&agent(Output::Events, 1000));
    let mut text = reader.read(b"{");
    for _ in 0..200 {
        text.push_str(&reader.read(&[b'x'; 10_000]));
    }
    assert_eq!(text.len(), 1000);
    let ending = reader.end().unwrap();
    assert!(ending.truncated);
    assert_eq!(ending.bytes, 2_000_001);
}

#[test]
fn invalid_utf8_is_replaced() {
    let (text, _) = reply(Output::Text, 100, b"a\xff\xfeb\xe2\x82", 1);
    assert_eq!(text, "a\u{fffd}\u{fffd}b\u{fffd}");
}

#[test]
fn json_takes_result_or_text_and_refuses_the_rest() {
    at_every_cut(Output::Json, b"{\"type\":\"result\",\"result\":\"hi\",\"usage\":{\"input_tokens\":1}}\n", "hi");
    at_every_cut(Output::Json, b"warming up\n{\"text\":\"hi\"}\n", "hi");
    for bad in [&b""[..], b"hi", b"{\"foo\":1}", b"{\"result\":1}", b"[\"a\"]"] {
        assert!(reply(Output::Json, 100, bad, 3).1.is_err());
    }
    assert!(reply(Output::Json, 10, &vec![b' '; 100_000], 1000).1.is_err(), "over the bound");
}
