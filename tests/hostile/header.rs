//! The header of a hostile program: how it is run, and what must come of it.

use regex::Regex;
use serde_json::Value;

/// One way in which a run may end.
#[derive(Debug, PartialEq)]
enum Status {
    Exit(i64),
    ExitAny,
    Signal(i64),
    Oom,
    Timeout,
    OutputLimit,
}

/// The value of a line of the header.
fn line<'a>(source: &'a str, name: &str) -> Option<&'a str> {
    source.lines().find_map(|line| line.strip_prefix("# ")?.strip_prefix(name)?.strip_prefix(": "))
}

/// What the header asks for.
#[derive(Debug)]
pub struct Header {
    statuses: Vec<Status>,
    output: Option<Regex>,
    not_output: Option<Regex>,
    /// Seconds, when the header sets a limit.
    pub timeout: Option<u32>,
}

impl Header {
    /// Reads the header of a program's source. Panics on one that cannot be read: nothing would be checked.
    pub fn parse(source: &str) -> Self {
        Self::read(source, line(source, "EXPECT").expect("an EXPECT line"))
    }

    /// The same for a run under gVisor. What its own line says, up to the reasons in brackets, is all that is asked then.
    pub fn parse_for_gvisor(source: &str) -> Self {
        match line(source, "EXPECT-GVISOR") {
            Some(expected) => Self::read(source, expected.split(" (").next().unwrap_or_default()),
            None => Self::parse(source),
        }
    }

    fn read(source: &str, expected: &str) -> Self {
        let mut parts = expected.split(" | ");
        let statuses = parts.next().unwrap_or_default().split(',').map(|status| Status::parse(status.trim())).collect();
        let mut header = Self { statuses, output: None, not_output: None, timeout: None };
        for part in parts {
            let (name, pattern) = part.split_once('~').expect("NAME~REGEX");
            let pattern = Some(Regex::new(&format!("(?m){pattern}")).expect("a regular expression"));
            match name.trim() {
                "out" => header.output = pattern,
                "not" => header.not_output = pattern,
                other => panic!("`{other}` is neither `out` nor `not`"),
            }
        }
        let timeout = line(source, "PREP").and_then(|prep| prep.split(',').find_map(|item| item.trim().strip_prefix("timeout=")));
        header.timeout = timeout.map(|seconds| seconds.parse().expect("seconds"));
        header
    }

    /// What is wrong with a finished run, if anything is.
    pub fn objection(&self, run: &Value) -> Option<String> {
        if !self.statuses.iter().any(|status| status.is(run)) {
            return Some(format!("it ended otherwise than {:?}", self.statuses));
        }
        let text = run["text"].as_str().unwrap_or_default();
        if let Some(output) = &self.output
            && !output.is_match(text)
        {
            return Some(format!("its output does not match {output}"));
        }
        if let Some(output) = &self.not_output
            && output.is_match(text)
        {
            return Some(format!("its output matches {output}"));
        }
        None
    }
}

impl Status {
    fn parse(text: &str) -> Self {
        match text.split_once(':').unwrap_or((text, "")) {
            ("exit", "any") => Self::ExitAny,
            ("exit", code) => Self::Exit(code.parse().expect("an exit code")),
            ("signal", number) => Self::Signal(number.parse().expect("a signal")),
            ("oom", "") => Self::Oom,
            ("timeout", "") => Self::Timeout,
            ("output_limit", "") => Self::OutputLimit,
            _ => panic!("`{text}` is no status"),
        }
    }

    fn is(&self, run: &Value) -> bool {
        let exited = |code: i64| match code {
            0 => run["status"] == "completed" && run["exitCode"] == 0,
            _ => run["status"] == "failed" && run["error"]["code"] == "exit_nonzero" && run["exitCode"] == code,
        };
        match self {
            Self::Exit(code) => exited(*code),
            Self::ExitAny => run["exitCode"].as_i64().is_some_and(exited),
            Self::Signal(number) => exited(128 + number),
            Self::Oom => run["status"] == "failed" && run["error"]["code"] == "oom",
            Self::Timeout => run["status"] == "timed_out",
            Self::OutputLimit => run["truncated"] == true,
        }
    }
}

#[test]
fn a_verdict_can_be_wrong() {
    let header = Header::parse("#!/bin/sh\n# EXPECT: exit:3,oom | out~^good|^$ | not~BAD\n# PREP: timeout=5\n");
    assert_eq!(header.timeout, Some(5));
    let run = |code: i64, text: &str| serde_json::json!({ "status": "failed", "error": { "code": "exit_nonzero" }, "exitCode": code, "text": text });
    assert_eq!(header.objection(&run(3, "x\ngood")), None);
    assert!(header.objection(&run(4, "good")).is_some());
    assert!(header.objection(&run(3, "neither")).is_some());
    assert!(header.objection(&run(3, "good BAD")).is_some());
    assert_eq!(header.objection(&serde_json::json!({ "status": "failed", "error": { "code": "oom" }, "exitCode": 137, "text": "" })), None);
    // A bare 137 is a signal and no lack of memory.
    let killed = Header::parse("# EXPECT: signal:9");
    assert_eq!(killed.objection(&run(137, "")), None);
    assert!(killed.objection(&serde_json::json!({ "status": "failed", "error": { "code": "oom" }, "exitCode": 137, "text": "" })).is_some());
}
