//! The script of a program, read from the words of an agent's command.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;
use quayside_shared::agent::Agent;

use super::super::{Fault, FaultKind, OutputChunk};

/// Long output comes in pieces of this many bytes.
const PIECE: usize = 64 * 1024;

/// The word of a launch that never returns, though its container is there.
pub(super) const LAUNCH_HANG: &str = "launch-hang";

/// The word, with a time behind it, of a launch that takes as long.
pub(super) const LAUNCH_SLEEP: &str = "launch-sleep";

/// How long a launch of `agent` takes.
pub(super) fn launch_time(agent: &Agent) -> Duration {
    let times = agent.command.iter().filter_map(|word| word.strip_prefix(LAUNCH_SLEEP)?.strip_prefix(':'));
    times.filter_map(duration).sum()
}

/// One thing that a program does.
#[derive(Debug, Clone)]
pub(super) enum Step {
    Write(OutputChunk),
    Echo,
    /// Writes each request back as it comes, until standard input ends.
    EchoLines,
    /// Answers each request with a result event, until standard input ends.
    Answers,
    /// Writes a piece again and again.
    Ticks(Duration),
    Sleep(Duration),
    Close,
    End {
        code: i64,
        oom: bool,
    },
    Hang,
}

/// What a program still has to do.
#[derive(Debug)]
pub(super) struct Program(VecDeque<Step>);

impl Program {
    /// The one image that no scripted engine has.
    pub(super) const MISSING_IMAGE: &'static str = "missing";

    /// Reads the agent's command; a launch that the script forbids is the fault it names.
    pub(super) fn parse(agent: &Agent) -> Result<Self, Fault> {
        if agent.image == Self::MISSING_IMAGE {
            let sentence = format!("the image `{}` of agent `{}` is not on this machine", agent.image, agent.name);
            return Err(Fault::new(FaultKind::ImageUnavailable, sentence));
        }
        let mut steps = VecDeque::new();
        for word in &agent.command {
            parse_word(word, &mut steps)?;
        }
        Ok(Self(steps))
    }

    /// What it does now.
    pub(super) fn next(&self) -> Step {
        self.0.front().cloned().unwrap_or(Step::End { code: 0, oom: false })
    }

    /// It has done that.
    pub(super) fn done(&mut self) {
        self.0.pop_front();
    }

    /// It does `step` instead of what it would do now.
    pub(super) fn replace(&mut self, step: Step) {
        if let Some(now) = self.0.front_mut() {
            *now = step;
        }
    }
}

fn parse_word(word: &str, steps: &mut VecDeque<Step>) -> Result<(), Fault> {
    let (verb, value) = word.split_once(':').unwrap_or((word, ""));
    let unknown = || Fault::new(FaultKind::Refused, format!("the script does not know the word `{word}`"));
    let stdout = |bytes: Bytes| Step::Write(OutputChunk::Stdout(bytes));
    match verb {
        "echo-lines" => steps.push_back(Step::EchoLines),
        "answers" => steps.push_back(Step::Answers),
        "ticks" => steps.push_back(Step::Ticks(duration(value).ok_or_else(unknown)?)),
        "echo" => steps.push_back(Step::Echo),
        "stdout" => steps.push_back(stdout(Bytes::copy_from_slice(value.as_bytes()))),
        "stderr" => steps.push_back(Step::Write(OutputChunk::Stderr(Bytes::copy_from_slice(value.as_bytes())))),
        "stdout-hex" => steps.push_back(stdout(unhex(value).ok_or_else(unknown)?)),
        "stdout-bytes" => {
            let count: usize = value.parse().map_err(|_| unknown())?;
            let piece = Bytes::from(vec![b'x'; PIECE.min(count)]);
            steps.extend((0..count / PIECE).map(|_| stdout(piece.clone())));
            steps.push_back(stdout(piece.slice(..count % PIECE)));
        }
        "sleep" => steps.push_back(Step::Sleep(duration(value).ok_or_else(unknown)?)),
        "close" => steps.push_back(Step::Close),
        "exit" => steps.push_back(Step::End { code: value.parse().map_err(|_| unknown())?, oom: false }),
        "signal" => steps.push_back(Step::End { code: 128 + value.parse::<i64>().map_err(|_| unknown())?, oom: false }),
        "oom" => steps.push_back(Step::End { code: 128 + 9, oom: true }),
        "hang" => steps.push_back(Step::Hang),
        "ignore-stdin" | LAUNCH_HANG | LAUNCH_SLEEP => {}
        "launch-fault" => {
            let kind = match value {
                "engine" => FaultKind::Engine,
                "image" => FaultKind::ImageUnavailable,
                "refused" => FaultKind::Refused,
                _ => return Err(unknown()),
            };
            return Err(Fault::new(kind, "the script forbids this launch"));
        }
        _ => return Err(unknown()),
    }
    Ok(())
}

fn duration(text: &str) -> Option<Duration> {
    if let Some(millis) = text.strip_suffix("ms") {
        return millis.parse().ok().map(Duration::from_millis);
    }
    text.strip_suffix('s')?.parse().ok().map(Duration::from_secs)
}

fn unhex(text: &str) -> Option<Bytes> {
    let digits: Option<Vec<u8>> = text.chars().map(|digit| digit.to_digit(16).and_then(|digit| u8::try_from(digit).ok())).collect();
    let digits = digits?;
    (digits.len() % 2 == 0).then(|| digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect())
}
