//! Tells where the server listens: words at a terminal, one JSON object a line otherwise.

use std::io::{IsTerminal, Write};
use std::net::SocketAddr;

use quayside_shared::clock::{Clock, SystemClock};
use quayside_shared::config::Config;

/// Prints the bound address on standard output, and logs it. An unwritable standard output is no reason not to serve.
pub(crate) fn announce(address: SocketAddr, config: &Config) {
    let host = if address.ip().is_unspecified() { format!("127.0.0.1:{}", address.port()) } else { address.to_string() };
    let url = format!("http://{host}");
    let mut out = std::io::stdout();
    let _ = if out.is_terminal() {
        writeln!(out, "{}", welcome(&url, config))
    } else {
        let line = serde_json::json!({
            "severity": "INFO",
            "time": SystemClock.now(),
            "message": format!("listening on {url}"),
            "url": url,
            "address": address.to_string(),
        });
        writeln!(out, "{line}")
    };
    let _ = out.flush();
    tracing::info!(address = %address, url, "listening");
}

fn welcome(url: &str, config: &Config) -> String {
    let body = r#"{"message":"print(6 * 7)"}"#;
    format!(
        "\n  Quayside is ready.\n\n  Page   {url}/\n  Docs   {url}/docs\n  Data   {}\n\n  Try it:\n\n  curl '{url}/api/conversation?wait=30' -H 'X-User-Id: me' \\\n       -H 'Content-Type: application/json' -d '{body}'\n\n  Ctrl-C drains and stops; a second one stops at once.\n",
        config.backend.data_dir.display()
    )
}
