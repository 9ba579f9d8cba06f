//! The command line, as `--help` shows it.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

/// Takes a message over HTTP, runs the agent that answers it in a container of its own, and puts the reply where the
/// page listens.
#[derive(Debug, Parser)]
#[command(name = "quayside", version, arg_required_else_help = true, max_term_width = 100)]
pub(crate) struct Cli {
    /// Configuration file [default: quayside.toml in the working directory, if there is one]
    #[arg(long, global = true, env = "QUAYSIDE_CONFIG", value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    // The Google clients log every retry of theirs as an error; what it comes to, we log ourselves.
    /// What to log, for example `debug` or `info,quayside_worker=debug`
    #[arg(
        long,
        global = true,
        env = "QUAYSIDE_LOG",
        value_name = "FILTER",
        default_value = "info,rusqlite_migration=warn,firestore=off,gcloud_sdk=off"
    )]
    pub(crate) log: String,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run everything on this machine: API, page, queue, store and worker in one process
    Up(ServeArguments),
    /// Run the HTTP API alone (google backend)
    Api(ServeArguments),
    /// Run a worker alone (google backend)
    Worker,
    /// Check configuration, database, container engine, images and every limit, and say what to do
    Doctor(DoctorArguments),
    /// Copy the database to one file, also of a running server (embedded backend)
    Backup(BackupArguments),
    /// Put a copy in the place of the database, and keep what was there (embedded backend, stopped server)
    Restore(RestoreArguments),
    /// Send a message, wait, and print the reply as it comes
    Submit(SubmitArguments),
    /// List what no worker will try again by itself, and try it again
    DeadLetters(DeadLettersArguments),
    /// Print the OpenAPI document
    Openapi,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct DoctorArguments {
    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct DeadLettersArguments {
    #[command(subcommand)]
    pub(crate) command: DeadLetterCommand,
    /// Where the API is
    #[arg(long, global = true, env = "QUAYSIDE_URL", default_value = "http://127.0.0.1:8080")]
    pub(crate) url: String,
    /// The server's admin key [default: api.admin_key of the configuration, or the one beside the embedded data]
    #[arg(long, global = true, env = "QUAYSIDE_ADMIN_KEY", hide_env_values = true, value_name = "KEY")]
    pub(crate) admin_key: Option<String>,
    /// Print JSON, one object a line
    #[arg(long, global = true)]
    pub(crate) json: bool,
}

#[derive(Debug, Clone, Subcommand)]
pub(crate) enum DeadLetterCommand {
    /// List them, the newest first
    List,
    /// Show one
    Show {
        /// The id of its run, or `msg_...`
        #[arg(value_name = "ID")]
        id: String,
    },
    /// Try the runs again: each becomes a new run of the same message
    Redrive {
        /// Ids of runs that were given up
        #[arg(value_name = "RUN_ID", required = true)]
        ids: Vec<String>,
    },
}

#[derive(Debug, Clone, Default, Args)]
pub(crate) struct ServeArguments {
    /// DANGEROUS: listen beyond this machine although anybody can claim to be any user with the X-User-Id header. Only
    /// behind a proxy that sets the header itself
    #[arg(long)]
    pub(crate) dangerously_trust_user_header_from_anyone: bool,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct BackupArguments {
    /// Where the copy goes; must not be there yet
    #[arg(value_name = "FILE")]
    pub(crate) file: PathBuf,
    /// Take what can still be read of a damaged database; the server must be stopped
    #[arg(long)]
    pub(crate) salvage: bool,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct RestoreArguments {
    /// A file that `quayside backup` made
    #[arg(value_name = "FILE")]
    pub(crate) file: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct SubmitArguments {
    /// The message; `-` reads it from standard input
    #[arg(value_name = "MESSAGE")]
    pub(crate) message: String,
    /// Where the API is
    #[arg(long, env = "QUAYSIDE_URL", default_value = "http://127.0.0.1:8080")]
    pub(crate) url: String,
    /// Who you are, in the `header` auth mode
    #[arg(long, env = "QUAYSIDE_USER", default_value = "cli")]
    pub(crate) user: String,
    /// Who shall answer [default: the server's default agent]
    #[arg(long)]
    pub(crate) agent: Option<String>,
    /// The conversation to join or open [default: a new one]
    #[arg(long, value_name = "ID")]
    pub(crate) conversation: Option<String>,
    /// A file for the agent's workspace, under its own name or as NAME; may be there several times
    #[arg(long = "file", value_name = "FILE[=NAME]")]
    pub(crate) files: Vec<String>,
    /// Wall-clock limit in seconds [default: the agent's]
    #[arg(long, value_name = "SECONDS")]
    pub(crate) timeout: Option<u64>,
    /// Print the finished run as JSON instead of streaming its reply
    #[arg(long)]
    pub(crate) json: bool,
    /// Say nothing on standard error but errors
    #[arg(long, short)]
    pub(crate) quiet: bool,
}
