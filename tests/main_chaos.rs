//! `make chaos`: the long form of `tests/chaos.rs`, with figures.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "it stops at the first surprise")]
#![allow(clippy::print_stdout, reason = "its figures are what it is for")]
#![allow(missing_docs, unreachable_pub, reason = "nothing here is anybody's interface")]
#![allow(dead_code, unused_imports, reason = "the supports are those of tests/main.rs, and much of them is for other tests")]

mod chaos;
mod checker;
#[path = "chaos/long.rs"]
mod long;
#[path = "chaos/recovery.rs"]
mod recovery;
#[path = "chaos/soak.rs"]
mod soak;
mod support;

use std::process::ExitCode;

use clap::Parser as _;

fn main() -> ExitCode {
    let arguments = long::Arguments::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let good = runtime.block_on(async {
        tokio::select! {
            good = long::run(&arguments) => good,
            // Everything that was started ends with what is dropped here.
            _ = tokio::signal::ctrl_c() => {
                eprintln!("stopped");
                false
            }
        }
    });
    if good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
