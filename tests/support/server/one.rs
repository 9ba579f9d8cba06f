//! One process of an installation at a time: stopping, replacing and looking at it.

use std::path::Path;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::{Backend, Server, docker};
use crate::support::{PATIENCE, eventually};

impl Server {
    /// The places of its processes: APIs first, then workers; the embedded backend has one that is both.
    pub fn places(&self) -> std::ops::Range<usize> {
        0..self.processes.len()
    }

    /// The places of the processes that run containers.
    pub fn worker_places(&self) -> std::ops::Range<usize> {
        let apis = if self.on == Backend::Embedded { 0 } else { self.urls.len() };
        apis..self.processes.len()
    }

    /// The addresses of the APIs as they are now.
    pub fn addresses(&self) -> Vec<String> {
        self.urls.clone()
    }

    /// Sends `signal` (`TERM`, `INT`, `STOP`, `CONT`) to the process at `place`.
    pub fn signal(&self, place: usize, signal: &str) {
        let pid = self.processes[place].id().to_string();
        assert!(Command::new("kill").args([&format!("-{signal}"), &pid]).status().unwrap().success());
    }

    /// Waits for the process at `place` to end: its exit code and how long that took.
    pub async fn ended(&mut self, place: usize) -> (i32, Duration) {
        let begun = Instant::now();
        loop {
            if let Some(status) = self.processes[place].try_wait().unwrap() {
                return (status.code().unwrap_or(128), begun.elapsed());
            }
            assert!(begun.elapsed() < PATIENCE, "the process did not end");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Starts a new process in the place of one that has ended, and waits until it is ready.
    pub async fn replace(&mut self, place: usize) {
        let apis = self.urls.len();
        let known = self.logged("worker started");
        if self.on == Backend::Google && place >= apis {
            self.processes[place] = self.process("worker").0;
            eventually("a new worker", || async { (self.logged("worker started") > known).then_some(()) }).await;
        } else {
            let (child, url) = self.process(if self.on == Backend::Embedded { "up" } else { "api" });
            self.processes[place] = child;
            self.urls[place] = url.expect("an API prints where it listens");
            self.url = self.urls[0].clone();
            self.ready().await;
        }
    }

    /// How many lines of the log contain `words`.
    pub fn logged(&self, words: &str) -> usize {
        self.log_text().lines().filter(|line| line.contains(words)).count()
    }

    pub fn log_text(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Where a worker with `[worker] probes = "127.0.0.1:0"` serves its probes; of several the one that was started last.
    pub async fn probes(&self) -> String {
        eventually("the address of the probes", || async {
            let text = self.log_text();
            let line = text.lines().rev().find(|line| line.contains("probes and metrics"))?;
            let line: Value = serde_json::from_str(line).ok()?;
            Some(format!("http://{}", line["address"].as_str()?))
        })
        .await
    }

    /// The place of the process whose container runs `run`, and the container's id.
    pub fn place_of(&self, run: &str) -> Option<(usize, String)> {
        self.worker_places().find_map(|place| {
            let name = instance(&self.processes[place], &self.data_dir)?;
            let filters = [format!("label=dev.quayside.instance={name}"), format!("label=dev.quayside.run={run}")];
            let id = docker(&["ps", "-q", "--no-trunc", "--filter", &filters[0], "--filter", &filters[1]]);
            let id = id.lines().next()?.to_owned();
            Some((place, id))
        })
    }
}

/// The owner label of a process's containers: it holds the file open that has its name.
fn instance(process: &Child, data_dir: &Path) -> Option<String> {
    let open = std::fs::read_dir(format!("/proc/{}/fd", process.id())).ok()?.flatten();
    let files = open.filter_map(|fd| std::fs::read_link(fd.path()).ok());
    let file = files
        .into_iter()
        .find(|file| file.starts_with(data_dir) && file.file_name().is_some_and(|name| name.to_string_lossy().starts_with("instance")))?;
    Some(std::fs::read_to_string(file).ok()?.trim().to_owned())
}
