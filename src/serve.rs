//! The three ways to serve: everything in one process (`up`), or the API and the worker apart (`api`, `worker`).

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use quayside_api::{Check, Deps, ImageDigests};
use quayside_shared::config::{Auth, BackendKind, Config};
use quayside_shared::connect::{Connected, connect};
use quayside_shared::shutdown::Shutdown;
use quayside_shared::telemetry::MetricsHandle;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::admin_key;
use crate::cli::ServeArguments;
use crate::instance::Instance;
use crate::listening::announce;
use crate::work::{Sandboxes, follow_digests, slots, work};

const METRICS_UPKEEP: Duration = Duration::from_secs(5);

/// `quayside up`
pub(crate) async fn up(config: Config, arguments: ServeArguments) -> anyhow::Result<ExitCode> {
    if config.backend.kind == BackendKind::Google {
        return usage("`quayside up` is for [backend] kind = \"embedded\"; with \"google\" start `quayside api` and `quayside worker`");
    }
    if let Some(sentence) = anybody_could_be_anybody(&config, &arguments) {
        return usage(&sentence);
    }
    let (config, shutdown, metrics) = begin(config)?;
    let connected = connect(&config, None).await.with_context(|| format!("opening the data in {}", config.backend.data_dir.display()))?;
    let instance = Instance::take(&config.backend.data_dir, config.runner.uid_base)?;
    let sandboxes = Sandboxes::of(&config, &instance)?;
    let listener = listen(config.api.bind).await?;
    let address = listener.local_addr().context("asking for the bound address")?;
    let digests = ImageDigests::default();
    let deps = deps(&connected, &config, &metrics, sandboxes.checks(), &digests, &shutdown)?;
    // Up to the end of the drain, so that readiness is seen to go red and clients can read what running attempts say.
    let drained = CancellationToken::new();
    let api = quayside_api::serve(listener, quayside_api::router(deps), drained.clone(), shutdown.stop.clone());
    tokio::spawn(follow_digests(Arc::clone(&sandboxes.runner), Arc::clone(&config), digests));
    let worker = tokio::spawn(work(connected, sandboxes, Arc::clone(&config), shutdown.clone()));
    announce(address, &config);
    until_drained(&shutdown, async {
        let worked = async {
            let worked = worker.await;
            drained.cancel();
            worked
        };
        let (served, worked) = tokio::join!(api, worked);
        worked.context("the worker panicked")?;
        served.context("serving HTTP")
    })
    .await
}

/// `quayside api`
pub(crate) async fn api(config: Config, arguments: ServeArguments) -> anyhow::Result<ExitCode> {
    if config.backend.kind == BackendKind::Embedded {
        return usage(APART);
    }
    if let Some(sentence) = anybody_could_be_anybody(&config, &arguments) {
        return usage(&sentence);
    }
    let (config, shutdown, metrics) = begin(config)?;
    let connected = connect(&config, None).await?;
    let listener = listen(config.api.bind).await?;
    let address = listener.local_addr().context("asking for the bound address")?;
    let deps = deps(&connected, &config, &metrics, Vec::new(), &ImageDigests::default(), &shutdown)?;
    let api = quayside_api::serve(listener, quayside_api::router(deps), shutdown.drain.clone(), shutdown.stop.clone());
    announce(address, &config);
    until_drained(&shutdown, async { api.await.context("serving HTTP") }).await
}

/// `quayside worker`
pub(crate) async fn worker(config: Config) -> anyhow::Result<ExitCode> {
    if config.backend.kind == BackendKind::Embedded {
        return usage(APART);
    }
    let (config, shutdown, metrics) = begin(config)?;
    let connected = connect(&config, Some(slots(&config))).await?;
    let instance = Instance::take(&config.backend.data_dir, config.runner.uid_base)?;
    let sandboxes = Sandboxes::of(&config, &instance)?;
    let probes = match config.worker.probes {
        None => None,
        Some(bind) => {
            let listener = listen(bind).await?;
            tracing::info!(address = %listener.local_addr().context("asking for the bound address")?, "probes and metrics");
            let deps = deps(&connected, &config, &metrics, sandboxes.checks(), &ImageDigests::default(), &shutdown)?;
            // Up to the end of the drain, so that readiness is seen to go red.
            let drained = CancellationToken::new();
            let serving = quayside_api::serve(listener, quayside_api::probes(deps), drained.clone(), shutdown.stop.clone());
            Some((tokio::spawn(serving), drained))
        }
    };
    until_drained(&shutdown, async {
        tokio::spawn(work(connected, sandboxes, Arc::clone(&config), shutdown.clone())).await.context("the worker panicked")?;
        if let Some((serving, drained)) = probes {
            drained.cancel();
            serving.await.context("the probes panicked")?.context("serving probes")?;
        }
        Ok(())
    })
    .await
}

const APART: &str =
    "`quayside api` and `quayside worker` need [backend] kind = \"google\"; with the embedded backend both run in one process: use `quayside up`";

fn usage(sentence: &str) -> anyhow::Result<ExitCode> {
    eprintln!("quayside: {sentence}");
    Ok(ExitCode::from(crate::EXIT_USAGE))
}

fn anybody_could_be_anybody(config: &Config, arguments: &ServeArguments) -> Option<String> {
    let open = config.api.auth == Auth::Header && !config.api.bind.ip().is_loopback();
    (open && !arguments.dangerously_trust_user_header_from_anyone).then(|| {
        format!(
            "`api.bind` = {} is reachable from other machines, and with auth = \"header\" anybody there can claim to be any user; \
             bind to 127.0.0.1, set auth = \"tokens\", or, behind a proxy that sets X-User-Id itself, add --dangerously-trust-user-header-from-anyone",
            config.api.bind
        )
    })
}

fn begin(config: Config) -> anyhow::Result<(Arc<Config>, Shutdown, MetricsHandle)> {
    let shutdown = Shutdown::on_signals().context("listening for signals")?;
    survive_file_limits().context("listening for signals")?;
    let metrics = quayside_shared::telemetry::install_metrics().context("installing the metrics recorder")?;
    let upkeep = metrics.clone();
    tokio::spawn(async move {
        // Without it the samples of histograms pile up until somebody reads /metrics.
        loop {
            tokio::time::sleep(METRICS_UPKEEP).await;
            upkeep.run_upkeep();
        }
    });
    Ok((Arc::new(config), shutdown, metrics))
}

/// A file that may not grow any more (`ulimit -f`) is the failure of a write, not the end of the process.
fn survive_file_limits() -> std::io::Result<()> {
    const SIGXFSZ: i32 = 25;
    let mut exceeded = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::from_raw(SIGXFSZ))?;
    tokio::spawn(async move { while exceeded.recv().await.is_some() {} });
    Ok(())
}

async fn listen(bind: std::net::SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(bind).await.with_context(|| {
        format!("cannot listen on {bind}; stop what is there, or choose another address (QUAYSIDE__API__BIND=127.0.0.1:0 takes a free port)")
    })
}

fn deps(
    connected: &Connected,
    config: &Arc<Config>,
    metrics: &MetricsHandle,
    checks: Vec<Check>,
    digests: &ImageDigests,
    shutdown: &Shutdown,
) -> anyhow::Result<Deps> {
    let metrics = metrics.clone();
    Ok(Deps {
        store: Arc::clone(&connected.store),
        queue: Arc::clone(&connected.queue),
        config: Arc::clone(config),
        metrics: Some(Arc::new(move || metrics.render())),
        image_digests: Arc::clone(digests),
        admin_key: admin_key::take(config)?,
        checks,
        // With tokens a page of another origin gets nothing by reaching us under its own name.
        loopback_hosts_only: config.api.auth == Auth::Header && config.api.bind.ip().is_loopback(),
        drain: shutdown.drain.clone(),
    })
}

async fn until_drained(shutdown: &Shutdown, drained: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<ExitCode> {
    tokio::select! {
        outcome = drained => outcome.map(|()| ExitCode::SUCCESS),
        () = shutdown.stop.cancelled() => {
            tracing::warn!("stopped without draining; running attempts start again elsewhere, or with the next start");
            Ok(ExitCode::FAILURE)
        }
    }
}
