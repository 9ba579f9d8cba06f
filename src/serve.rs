//! `quayside up`: API, page, queue, store and worker in one process.

use std::collections::HashMap;
use std::path::Path;
use std::process::ExitCode;
use std::sync::{Arc, RwLock};
use std::time::Duration;

use anyhow::Context;
use futures::FutureExt;
use quayside_api::{Check, Deps, ImageDigests};
use quayside_shared::config::{Auth, Config};
use quayside_shared::connect::{Connected, connect};
use quayside_shared::error::chain;
use quayside_shared::ids::WorkerId;
use quayside_shared::shutdown::Shutdown;
use quayside_worker::attempt::Attempts;
use quayside_worker::consumer::consume;
use quayside_worker::lease::LeaseTimes;
use quayside_worker::runner::Runner;
use quayside_worker::runner::docker::{DockerOptions, DockerRunner};
use quayside_worker::slots::{LiveContainers, Slots, slots_for};
use quayside_worker::sweeper::Sweeper;
use tokio::net::TcpListener;

use crate::cli::ServeArguments;
use crate::listening::announce;

const METRICS_UPKEEP: Duration = Duration::from_secs(5);
/// How often image digests are looked up again.
const DIGESTS: Duration = Duration::from_secs(60);

pub(crate) async fn up(config: Config, arguments: ServeArguments) -> anyhow::Result<ExitCode> {
    let loopback = config.api.bind.ip().is_loopback();
    if config.api.auth == Auth::Header && !loopback && !arguments.dangerously_trust_user_header_from_anyone {
        eprintln!(
            "quayside: `api.bind` = {} is reachable from other machines, and with auth = \"header\" anybody there can claim to be any user; \
             bind to 127.0.0.1, or, behind a proxy that sets X-User-Id itself, add --dangerously-trust-user-header-from-anyone",
            config.api.bind
        );
        return Ok(ExitCode::from(crate::EXIT_USAGE));
    }
    let shutdown = Shutdown::on_signals().context("listening for signals")?;
    let metrics = quayside_shared::telemetry::install_metrics().context("installing the metrics recorder")?;
    let connected = connect(&config).await.with_context(|| format!("opening the data in {}", config.backend.data_dir.display()))?;
    let runner = runner(&config)?;
    let listener = TcpListener::bind(config.api.bind).await.with_context(|| {
        format!(
            "cannot listen on {}; stop what is there, or choose another address (QUAYSIDE__API__BIND=127.0.0.1:0 takes a free port)",
            config.api.bind
        )
    })?;
    let address = listener.local_addr().context("asking for the bound address")?;

    let config = Arc::new(config);
    let digests = ImageDigests::default();
    let upkeep = metrics.clone();
    let deps = Deps {
        store: Arc::clone(&connected.store),
        queue: Arc::clone(&connected.queue),
        config: Arc::clone(&config),
        metrics: Some(Arc::new(move || metrics.render())),
        image_digests: Arc::clone(&digests),
        checks: vec![engine_check(&runner)],
        loopback_hosts_only: loopback,
        drain: shutdown.drain.clone(),
    };
    let api = quayside_api::serve(listener, quayside_api::router(deps), shutdown.drain.clone(), shutdown.stop.clone());
    tokio::spawn(async move {
        // Without it the samples of histograms pile up until somebody reads /metrics.
        loop {
            tokio::time::sleep(METRICS_UPKEEP).await;
            upkeep.run_upkeep();
        }
    });
    tokio::spawn(follow_digests(Arc::clone(&runner), Arc::clone(&config), digests));
    let worker = tokio::spawn(work(connected, Arc::clone(&runner), Arc::clone(&config), shutdown.clone()));
    announce(address, &config);

    let drained = async {
        let served = api.await.context("serving HTTP");
        worker.await.context("the worker panicked")?;
        served
    };
    tokio::select! {
        outcome = drained => outcome.map(|()| ExitCode::SUCCESS),
        () = shutdown.stop.cancelled() => {
            tracing::warn!("stopped without draining; running attempts start again with the next start");
            Ok(ExitCode::FAILURE)
        }
    }
}

/// The worker of this process: sweeper and consumer, until the drain is over.
async fn work(connected: Connected, runner: Arc<dyn Runner>, config: Arc<Config>, shutdown: Shutdown) {
    let Connected { store, queue } = connected;
    let live = LiveContainers::default();
    let retry_later = Arc::new(tokio::sync::Notify::new());
    let sweeper = Sweeper {
        store: Arc::clone(&store),
        queue: Arc::clone(&queue),
        runner: Arc::clone(&runner),
        live: live.clone(),
        due_earlier: Arc::clone(&retry_later),
    };
    // Before the first attempt, so that no slot's uid is shared with a container of an earlier life.
    if let Err(fault) = sweeper.remove_leftovers().await {
        tracing::warn!(error = %chain(&fault), "the container engine does not answer yet; `quayside doctor` says what to do");
    }
    let total = match config.worker.slots {
        0 => slots_for(std::thread::available_parallelism().map_or(1, usize::from), machine_memory()),
        slots => slots,
    };
    let attempts = Attempts {
        store,
        queue,
        runner,
        agents: config.agents.clone(),
        worker: WorkerId::random(),
        times: LeaseTimes { duration: config.worker.lease.get(), heartbeat: config.worker.heartbeat.get() },
        live,
        hand_back: tokio_util::sync::CancellationToken::new(),
        retry_later,
    };
    tracing::info!(worker = %attempts.worker, slots = total, "worker started");
    let sweeping = tokio::spawn(sweeper.run(shutdown.drain.clone()));
    consume(Arc::new(attempts), Slots::new(total), shutdown.drain, config.worker.drain.get()).await;
    sweeping.abort();
    tracing::info!("drained");
}

pub(crate) fn runner(config: &Config) -> anyhow::Result<Arc<dyn Runner>> {
    let options = DockerOptions {
        host: config.runner.docker_host.clone(),
        instance: instance(&config.backend.data_dir)?,
        runtime: config.runner.runtime.clone(),
        uid_base: config.runner.uid_base,
    };
    Ok(Arc::new(DockerRunner::connect(options).context("preparing the Docker runner")?))
}

/// Names this installation on its containers, so that a restart finds its own leftovers and nobody else's. It stays with
/// the data: a file beside the database.
fn instance(data_dir: &Path) -> anyhow::Result<String> {
    let path = data_dir.join("instance");
    match std::fs::read_to_string(&path) {
        Ok(text) if !text.trim().is_empty() => return Ok(text.trim().to_owned()),
        Ok(_) => {}
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(error).with_context(|| format!("reading {}", path.display())),
    }
    let made = WorkerId::random().as_str().replace("worker_", "quayside-");
    std::fs::create_dir_all(data_dir).with_context(|| format!("creating {}", data_dir.display()))?;
    std::fs::write(&path, format!("{made}\n")).with_context(|| format!("writing {}", path.display()))?;
    Ok(made)
}

fn engine_check(runner: &Arc<dyn Runner>) -> Check {
    let runner = Arc::clone(runner);
    Check {
        name: "engine",
        check: Arc::new(move || {
            let runner = Arc::clone(&runner);
            async move { runner.ping().await.map(drop).map_err(|fault| chain(&fault)) }.boxed()
        }),
    }
}

async fn follow_digests(
    runner: Arc<dyn Runner>,
    config: Arc<Config>,
    digests: Arc<RwLock<HashMap<quayside_shared::ids::AgentName, Option<String>>>>,
) {
    loop {
        for (name, agent) in &config.agents {
            if let Ok(digest) = runner.image_digest(&agent.image).await
                && let Ok(mut digests) = digests.write()
            {
                digests.insert(name.clone(), digest);
            }
        }
        tokio::time::sleep(DIGESTS).await;
    }
}

/// Bytes of memory of this machine, where the kernel tells.
fn machine_memory() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let kib: u64 = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?.trim().trim_end_matches(" kB").parse().ok()?;
    Some(kib << 10)
}
