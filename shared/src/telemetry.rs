//! Logs and metrics: set up once, named once.
//!
//! Logging rules: log once, at the boundary where something is decided; ids and units in field names
//! (`run_id`, `duration_ms`); never a message's text, a reply, an environment value or a token. Messages are lower-case
//! sentences without a full stop.

use std::fmt;
use std::io::IsTerminal;

/// Renders the process's metrics.
pub use metrics_exporter_prometheus::PrometheusHandle as MetricsHandle;
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder};
use serde_json::{Map, Value};
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

use crate::clock::{Clock, SystemClock};

/// Metric names. A histogram's unit is in its name.
pub mod names {
    /// Accepted runs, by `agent`.
    pub const RUNS_SUBMITTED: &str = "quayside_runs_submitted_total";
    /// Ended runs, by `agent` and `status`.
    pub const RUNS_ENDED: &str = "quayside_runs_ended_total";
    /// Ended attempts, by `agent` and `outcome`.
    pub const ATTEMPTS_ENDED: &str = "quayside_attempts_ended_total";
    /// From acceptance to the claim.
    pub const PICKUP_SECONDS: &str = "quayside_pickup_seconds";
    /// From the claim to the started program.
    pub const START_SECONDS: &str = "quayside_container_start_seconds";
    /// From acceptance to the terminal state.
    pub const RUN_SECONDS: &str = "quayside_run_seconds";
    /// Leases that this worker lost.
    pub const LEASES_LOST: &str = "quayside_leases_lost_total";
    /// Containers running in this worker.
    pub const SLOTS_BUSY: &str = "quayside_slots_busy";
    /// Containers this worker may run.
    pub const SLOTS: &str = "quayside_slots";
    /// Runs that wait.
    pub const QUEUE_DEPTH: &str = "quayside_queue_depth";
    /// Age of the oldest waiting run.
    pub const QUEUE_AGE_SECONDS: &str = "quayside_queue_age_seconds";
    /// Answered requests, by `route`, `method` and `status`.
    pub const HTTP_REQUESTS: &str = "quayside_http_requests_total";
    /// Time to the response's head, by `route`.
    pub const HTTP_SECONDS: &str = "quayside_http_request_seconds";
    /// Containers that the sweeper removed.
    pub const LEFTOVERS_REMOVED: &str = "quayside_leftovers_removed_total";
    /// Containers that wait for a request, by `agent`.
    pub const WARM_IDLE: &str = "quayside_warm_idle";
    /// Runs that got a container that had waited, by `agent`.
    pub const WARM_TAKEN: &str = "quayside_warm_taken_total";
    /// Runs of agents with warm containers that found none, by `agent`.
    pub const WARM_MISSED: &str = "quayside_warm_missed_total";
    /// Containers that died while they waited, by `agent`.
    pub const WARM_DIED: &str = "quayside_warm_died_total";
    /// Containers of kept sessions that are frozen between two runs.
    pub const SESSIONS_FROZEN: &str = "quayside_sessions_frozen";
    /// Messages that named no run of ours and went to the dead letters.
    pub const STRAY_MESSAGES: &str = "quayside_stray_messages_total";
}

/// Installs the metrics recorder of this process and describes every metric.
///
/// # Errors
/// When a recorder is installed already.
pub fn install_metrics() -> Result<MetricsHandle, metrics_exporter_prometheus::BuildError> {
    const SECONDS: [f64; 14] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0, 600.0];
    let handle = PrometheusBuilder::new().set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), &SECONDS)?.install_recorder()?;
    metrics::describe_counter!(names::RUNS_SUBMITTED, "Accepted runs");
    metrics::describe_counter!(names::RUNS_ENDED, "Runs that reached a terminal state");
    metrics::describe_counter!(names::ATTEMPTS_ENDED, "Attempts that ended, by cause");
    metrics::describe_histogram!(names::PICKUP_SECONDS, "From acceptance to the claim");
    metrics::describe_histogram!(names::START_SECONDS, "From the claim to the started program");
    metrics::describe_histogram!(names::RUN_SECONDS, "From acceptance to the terminal state");
    metrics::describe_counter!(names::LEASES_LOST, "Leases that this worker lost");
    metrics::describe_gauge!(names::SLOTS_BUSY, "Containers running in this worker");
    metrics::describe_gauge!(names::SLOTS, "Containers this worker may run");
    metrics::describe_gauge!(names::QUEUE_DEPTH, "Runs that wait");
    metrics::describe_gauge!(names::QUEUE_AGE_SECONDS, "Age of the oldest waiting run");
    metrics::describe_counter!(names::HTTP_REQUESTS, "Answered requests");
    metrics::describe_histogram!(names::HTTP_SECONDS, "Time to the response's head");
    metrics::describe_counter!(names::LEFTOVERS_REMOVED, "Containers that the sweeper removed");
    metrics::describe_gauge!(names::WARM_IDLE, "Containers that wait for a request");
    metrics::describe_counter!(names::WARM_TAKEN, "Runs that got a container that had waited");
    metrics::describe_counter!(names::WARM_MISSED, "Runs of agents with warm containers that found none");
    metrics::describe_counter!(names::WARM_DIED, "Containers that died while they waited");
    metrics::describe_gauge!(names::SESSIONS_FROZEN, "Containers of kept sessions that are frozen between two runs");
    metrics::describe_counter!(names::STRAY_MESSAGES, "Messages that named no run of ours and went to the dead letters");
    Ok(handle)
}

/// Starts logging to standard error: for people at a terminal, one JSON object a line in Cloud Logging's fields
/// otherwise. `filter` is in the syntax of `RUST_LOG`.
pub fn init_logs(filter: &str) {
    let filter = EnvFilter::try_new(filter).unwrap_or_else(|_| EnvFilter::new("info"));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    if std::io::stderr().is_terminal() {
        builder.with_target(false).init();
    } else {
        builder.event_format(CloudLogging).init();
    }
}

/// One JSON object a line, with the field names that Cloud Logging understands.
struct CloudLogging;

impl<S, N> FormatEvent<S, N> for CloudLogging
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, _context: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let severity = match *event.metadata().level() {
            Level::ERROR => "ERROR",
            Level::WARN => "WARNING",
            Level::INFO => "INFO",
            Level::DEBUG | Level::TRACE => "DEBUG",
        };
        let mut fields = Fields(Map::new());
        fields.0.insert("severity".to_owned(), severity.into());
        fields.0.insert("time".to_owned(), SystemClock.now().to_string().into());
        event.record(&mut fields);
        fields.0.insert("target".to_owned(), event.metadata().target().into());
        writeln!(writer, "{}", Value::Object(fields.0))
    }
}

struct Fields(Map<String, Value>);

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.0.insert(field.name().to_owned(), format!("{value:?}").into());
    }
    fn record_str(&mut self, field: &Field, value: &str) {
        self.0.insert(field.name().to_owned(), value.into());
    }
    fn record_u64(&mut self, field: &Field, value: u64) {
        self.0.insert(field.name().to_owned(), value.into());
    }
    fn record_i64(&mut self, field: &Field, value: i64) {
        self.0.insert(field.name().to_owned(), value.into());
    }
    fn record_f64(&mut self, field: &Field, value: f64) {
        self.0.insert(field.name().to_owned(), value.into());
    }
    fn record_bool(&mut self, field: &Field, value: bool) {
        self.0.insert(field.name().to_owned(), value.into());
    }
}
