//! One installation for one round: configuration, data, processes, and the clients' lines to its APIs.

use std::net::SocketAddr;
use std::path::PathBuf;

use super::disk::SmallDisk;
use super::fleet::{Process, Role};
use super::line::Line;
use super::stage::Stage;
use crate::support::emulators;
use crate::support::server::Backend;

const AGENTS: &str = r#"
[agents.cat]
image = "quayside/agent-python"
command = ["cat"]
input = "text"
output = "text"
memory = "64MiB"

[agents.sh]
image = "quayside/agent-python"
command = ["sh", "-s"]
input = "text"
output = "text"
memory = "64MiB"
timeout = "1h"
"#;

/// How an installation is set up.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    pub lease: &'static str,
    pub heartbeat: &'static str,
    /// Containers at once, of each worker.
    pub slots: u32,
    pub running_per_user: u32,
    pub workers: usize,
    /// Lost workers until a run is poison. What a nemesis does to a run is more than anybody bears by default.
    pub max_attempts: usize,
    pub small_disk: bool,
}

impl Settings {
    /// Short leases, so that a round takes a minute.
    pub fn of_a_round(backend: Backend) -> Self {
        let workers = if backend == Backend::Google { 2 } else { 1 };
        let slots = if backend == Backend::Google { 2 } else { 4 };
        Self { lease: "4s", heartbeat: "1s", slots, running_per_user: 2, workers, max_attempts: 60, small_disk: false }
    }
}

pub struct Installation {
    /// APIs first.
    pub processes: Vec<Process>,
    /// To each API.
    pub api_lines: Vec<Line>,
    /// The clients' ends of these.
    pub apis: Vec<SocketAddr>,
    pub disk: Option<SmallDisk>,
    /// Where the processes log.
    pub logs: PathBuf,
}

impl Installation {
    /// Starts everything and waits until it is ready.
    pub async fn start(stage: &Stage, name: &str, settings: Settings) -> Self {
        let folder = stage.folder().join(name);
        let data = folder.join("data");
        std::fs::create_dir_all(&folder).unwrap();
        let disk = settings.small_disk.then(|| SmallDisk::mount(&data));
        let mut environment = Vec::new();
        let backend = match &stage.google {
            None => String::new(),
            Some(google) => {
                environment.push(("PUBSUB_EMULATOR_HOST".to_owned(), google.addresses.0.to_string()));
                environment.push(("FIRESTORE_EMULATOR_HOST".to_owned(), google.addresses.1.to_string()));
                format!("[backend]\nkind = \"google\"\n[google]\nproject_id = \"{}\"\n", emulators::project())
            }
        };
        let Settings { lease, heartbeat, slots, running_per_user, max_attempts, .. } = settings;
        // Its witness knows containers by their runs, so each is made for one.
        let worker = format!(
            "slots = {slots}\nlease = \"{lease}\"\nheartbeat = \"{heartbeat}\"\ndrain = \"20s\"\nmax_attempts = {max_attempts}\nwarm_memory = \"0B\"\nprove_limits = false"
        );
        let runner = format!("docker_host = \"{}\"", stage.docker_host());
        let limits = format!("running_per_user = {running_per_user}\nqueued_per_user = 5000");
        let config = folder.join("quayside.toml");
        std::fs::write(&config, format!("{backend}[worker]\n{worker}\n[runner]\n{runner}\n[limits]\n{limits}\n{AGENTS}")).unwrap();

        let roles = match stage.backend {
            Backend::Embedded => vec![Role::Up],
            Backend::Google => [Role::Api, Role::Api].into_iter().chain((0..settings.workers).map(|_| Role::Worker)).collect(),
        };
        let process = |(number, role): (usize, &Role)| {
            // A worker's name is in its data folder; the nemesis tells them apart by it.
            let data = if stage.backend == Backend::Google { folder.join(format!("data-{number}")) } else { data.clone() };
            Process::new(*role, &config, data, folder.join(format!("log-{number}")), &environment)
        };
        let mut processes: Vec<Process> = roles.iter().enumerate().map(process).collect();
        for process in &mut processes {
            process.start();
        }
        for process in &mut processes {
            process.ready().await;
        }
        let (mut api_lines, mut apis) = (Vec::new(), Vec::new());
        for api in processes.iter().filter(|process| process.role.serves()) {
            let (line, near) = Line::to(api.address()).await;
            api_lines.push(line);
            apis.push(near);
        }
        Self { processes, api_lines, apis, disk, logs: folder }
    }

    /// The owner labels of its containers.
    pub fn instances(&self) -> Vec<String> {
        self.processes.iter().filter(|process| process.role.works()).filter_map(Process::instance).collect()
    }

    /// Places of the processes that run containers.
    pub fn workers(&self) -> Vec<usize> {
        (0..self.processes.len()).filter(|&place| self.processes[place].role.works()).collect()
    }

    /// Waits until every process is ready; starts again what gave up by itself.
    pub async fn ready(&mut self) {
        for process in &mut self.processes {
            process.ready().await;
        }
    }
}
