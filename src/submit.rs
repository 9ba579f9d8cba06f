//! `quayside submit`: send a message, wait, print the reply as it comes. The reply goes to standard output, everything
//! else to standard error, and the exit code follows the run.

use std::io::{IsTerminal, Read, Write};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::cli::SubmitArguments;
use crate::client::{Client, ServerEvent};

/// Pauses between attempts to reconnect; after the last the command gives up.
const RECONNECT: [u64; 6] = [250, 500, 1000, 2000, 4000, 8000];

pub(crate) async fn run(arguments: &SubmitArguments) -> anyhow::Result<ExitCode> {
    let client = Client::new(&arguments.url, &arguments.user)?;
    let submitted = client.json(client.post("/api/conversation").header("Idempotency-Key", random_key()).json(&body(arguments)?)).await?;
    let id = submitted["id"].as_str().context("the server's answer has no run id")?.to_owned();
    let mut screen = Screen { json: arguments.json, chatty: !arguments.quiet && std::io::stderr().is_terminal(), ended_line: true };
    screen.say(&format!("{id} in {}", submitted["conversationId"].as_str().unwrap_or("a new conversation")));
    let follow = follow(&client, &id, &mut screen);
    tokio::select! {
        result = follow => finish(&result?, arguments.json),
        signal = tokio::signal::ctrl_c() => {
            signal.context("listening for Ctrl-C")?;
            eprintln!("\nquayside: cancelling {id}");
            client.send(client.post(&format!("/api/runs/{id}/cancel"))).await?;
            Ok(ExitCode::from(130))
        }
    }
}

fn body(arguments: &SubmitArguments) -> anyhow::Result<Value> {
    let message = if arguments.message == "-" {
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text).context("reading the message from standard input (it must be UTF-8 text)")?;
        text
    } else {
        arguments.message.clone()
    };
    let mut body = json!({ "message": message });
    for (key, value) in [
        ("agent", arguments.agent.clone().map(Value::from)),
        ("conversationId", arguments.conversation.clone().map(Value::from)),
        ("timeoutSeconds", arguments.timeout.map(Value::from)),
    ] {
        if let Some(value) = value {
            body[key] = value;
        }
    }
    if !arguments.files.is_empty() {
        body["files"] = arguments.files.iter().map(|argument| file(argument)).collect::<anyhow::Result<_>>()?;
    }
    Ok(body)
}

/// `FILE` or `FILE=NAME`, read now.
fn file(argument: &str) -> anyhow::Result<Value> {
    let (file, name) = match argument.rsplit_once('=') {
        Some((file, name)) => (Path::new(file), Some(name)),
        None => (Path::new(argument), None),
    };
    let name = name.or_else(|| file.file_name()?.to_str());
    let name = name.with_context(|| format!("{} has no name that can be sent; write --file FILE=NAME", file.display()))?;
    let content = std::fs::read(file).with_context(|| format!("reading {}", file.display()))?;
    Ok(json!({ "path": name, "content": STANDARD.encode(content) }))
}

/// A key of its own for each invocation: should the answer get lost on the way, the library's retry doubles nothing.
fn random_key() -> String {
    quayside_shared::ids::RunId::random().as_str().replace("run_", "cli_")
}

/// Follows the run to its result, over lost connections.
async fn follow(client: &Client, id: &str, screen: &mut Screen) -> anyhow::Result<Value> {
    let (mut after, mut failures) = (None, 0);
    loop {
        let mut result = None;
        let mut heard = false;
        let followed = client
            .follow(id, after.clone(), |event| {
                heard = true;
                result = screen.show(&event)?;
                Ok(result.is_some())
            })
            .await;
        if let (Ok(followed), Some(result)) = (&followed, result)
            && followed.ended
        {
            return Ok(result);
        }
        match followed {
            Ok(followed) => after = followed.last,
            Err(error) if failures >= RECONNECT.len() => return Err(error.context(format!("the run goes on; see it later with {id}"))),
            Err(_) => {}
        }
        failures = if heard { 0 } else { failures + 1 };
        let pause = RECONNECT.get(failures).or(RECONNECT.last()).copied().unwrap_or_default();
        screen.say(&format!("connection lost, trying again in {pause} ms"));
        tokio::time::sleep(Duration::from_millis(pause)).await;
    }
}

/// What the user sees.
struct Screen {
    json: bool,
    chatty: bool,
    ended_line: bool,
}

impl Screen {
    fn say(&mut self, what: &str) {
        if self.chatty {
            if !std::mem::replace(&mut self.ended_line, true) {
                eprintln!();
            }
            eprintln!("· {what}");
        }
    }

    /// Shows an event; returns the finished run when it was the last.
    fn show(&mut self, event: &ServerEvent) -> anyhow::Result<Option<Value>> {
        let data: Value = serde_json::from_str(&event.data).context("an event is not JSON")?;
        match event.event.as_str() {
            "delta" if !self.json => {
                let text = data["text"].as_str().unwrap_or_default();
                let mut out = std::io::stdout();
                out.write_all(text.as_bytes()).and_then(|()| out.flush()).context("writing the reply")?;
                self.ended_line = text.ends_with('\n');
            }
            "status" => {
                let reason = data["waiting"]["reason"].as_str().map(|reason| format!(" ({reason})")).unwrap_or_default();
                self.say(&format!("{}{reason}", data["status"].as_str().unwrap_or("?")));
            }
            "result" => {
                if std::io::stdout().is_terminal() && !self.json && !std::mem::replace(&mut self.ended_line, true) {
                    eprintln!();
                }
                return Ok(Some(data));
            }
            _ => {}
        }
        Ok(None)
    }
}

#[expect(clippy::print_stdout, reason = "the run is the command's output")]
fn finish(run: &Value, as_json: bool) -> anyhow::Result<ExitCode> {
    if as_json {
        println!("{}", serde_json::to_string_pretty(run)?);
    }
    let status = run["status"].as_str().unwrap_or("unknown");
    if run["truncated"] == json!(true) {
        eprintln!("quayside: the reply was longer than the agent's output limit and was cut");
    }
    if status == "completed" {
        return Ok(ExitCode::SUCCESS);
    }
    let why = run["error"]["message"].as_str().map(|why| format!(": {why}")).unwrap_or_default();
    eprintln!("quayside: {status}{why}");
    Ok(ExitCode::FAILURE)
}
