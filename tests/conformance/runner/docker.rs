//! The suite over a real Docker engine, and what only that one can show.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bollard::Docker;
use bollard::models::{ContainerCreateBody, HostConfig};
use bollard::query_parameters::{
    CreateContainerOptionsBuilder, InspectContainerOptions, ListContainersOptionsBuilder, RemoveContainerOptionsBuilder,
};
use bytes::Bytes;
use quayside_shared::ids::RunId;
use quayside_worker::runner::docker::{DockerOptions, DockerRunner};
use quayside_worker::runner::{FaultKind, LaunchSpec, Runner};

use super::{Behaviour, Fixture, check, conformance, end, serve, within};

const HOST: &str = "unix:///var/run/docker.sock";
pub const IMAGE: &str = "quayside/agent-python";
pub const UID_BASE: u32 = 100_000;

/// A runner whose containers no other test touches.
pub struct OnDocker {
    runner: DockerRunner,
    instance: String,
    client: Docker,
}

fn options(host: &str, instance: &str) -> DockerOptions {
    DockerOptions { host: host.to_owned(), instance: instance.to_owned(), runtime: None, uid_base: UID_BASE }
}

impl OnDocker {
    pub fn new() -> Self {
        Self::changed(|runner, _| runner)
    }

    /// With a runner that is changed before it is used; told the label of its containers.
    pub fn changed(change: impl FnOnce(DockerRunner, &str) -> DockerRunner) -> Self {
        let instance = format!("conformance-{}", RunId::random());
        let runner = change(DockerRunner::connect(options(HOST, &instance)).expect("valid options"), &instance);
        let client = Docker::connect_with_unix(HOST, 60, bollard::API_DEFAULT_VERSION).expect("the socket of the engine");
        Self { runner, instance, client }
    }

    pub fn docker_runner(&self) -> &DockerRunner {
        &self.runner
    }

    /// The owner label of its containers.
    pub fn instance(&self) -> &str {
        &self.instance
    }

    /// Runs a Python program to its end and returns what it wrote.
    async fn python(&self, program: &str) -> String {
        self.python_in(self.spec(&Behaviour::Echo), program).await
    }

    async fn python_in(&self, mut spec: LaunchSpec, program: &str) -> String {
        spec.agent.command = python(program);
        let (written, exit) = serve(self.runner.launch(&spec).await.expect("a launch"), "").await;
        let log = String::from_utf8_lossy(&written.stderr).into_owned();
        assert_eq!(exit.code, 0, "{log}");
        String::from_utf8(written.stdout).expect("text").trim().to_owned()
    }

    fn name_of(spec: &LaunchSpec) -> String {
        format!("quayside-{}", spec.key)
    }

    /// A container that is not the runner's, with a name and labels of the test's choice.
    async fn plant(&self, name: &str, labels: &[(&str, &str)]) -> String {
        let labels = labels.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let body = ContainerCreateBody {
            image: Some(IMAGE.to_owned()),
            labels: Some(labels),
            network_disabled: Some(true),
            host_config: Some(HostConfig { network_mode: Some("none".to_owned()), ..HostConfig::default() }),
            ..ContainerCreateBody::default()
        };
        let options = CreateContainerOptionsBuilder::default().name(name).build();
        self.client.create_container(Some(options), body).await.expect("a planted container").id
    }

    async fn exists(&self, id: &str) -> bool {
        self.client.inspect_container(id, None::<InspectContainerOptions>).await.is_ok()
    }

    async fn remove(&self, id: &str) {
        let options = RemoveContainerOptionsBuilder::default().force(true).build();
        self.client.remove_container(id, Some(options)).await.expect("the removal of a planted container");
    }
}

pub fn python(program: &str) -> Vec<String> {
    ["python3", "-u", "-c", program].map(str::to_owned).to_vec()
}

/// The image and the command of an agent that behaves like this, for whatever runs real containers.
pub fn program(behaviour: &Behaviour) -> (String, Vec<String>) {
    let program = match behaviour {
        Behaviour::Echo => "import sys, shutil; shutil.copyfileobj(sys.stdin.buffer, sys.stdout.buffer)".to_owned(),
        Behaviour::Print { stdout, stderr, code } => {
            format!("import os, sys; os.write(1, b{stdout:?}); os.write(2, b{stderr:?}); sys.exit({code})")
        }
        Behaviour::EchoLines => "import os, sys\nfor line in sys.stdin.buffer: os.write(1, line)".to_owned(),
        Behaviour::Ticks(time) => format!("import os, time\nwhile True: os.write(1, b'.'); time.sleep({})", time.as_secs_f64()),
        Behaviour::Hang => "import time; time.sleep(3600)".to_owned(),
        Behaviour::Flood(bytes) => format!("import sys; [sys.stdout.buffer.write(b'x' * 65536) for _ in range({bytes} // 65536)]"),
        Behaviour::FloodForever => "import os\nwhile True: os.write(1, b'x' * 65536)".to_owned(),
        Behaviour::CloseThenSleep(time) => {
            format!("import os, sys, time; sys.stdin.read(); os.closerange(0, 3); time.sleep({}); os._exit(7)", time.as_secs_f64())
        }
        Behaviour::SleepInBetween(time) => {
            format!("import os, time; os.write(1, b'ready'); time.sleep({}); os.write(1, b'late')", time.as_secs_f64())
        }
        Behaviour::NeverReads => "pass".to_owned(),
        Behaviour::InvalidUtf8 => r"import os; os.write(1, b'ok\xff\xfe\xc3\x28\n')".to_owned(),
        Behaviour::KillsItself => "import os; os.kill(os.getpid(), 9)".to_owned(),
        Behaviour::OutOfMemory => "x = [bytearray(b'x') * (1 << 20) for _ in range(4096)]".to_owned(),
        Behaviour::MissingImage => return ("quayside/no-such-image:1".to_owned(), Vec::new()),
        Behaviour::MissingProgram => return (IMAGE.to_owned(), vec!["/no/such/program".to_owned()]),
    };
    (IMAGE.to_owned(), python(&program))
}

#[async_trait]
impl Fixture for OnDocker {
    fn runner(&self) -> &dyn Runner {
        &self.runner
    }

    fn program(&self, behaviour: &Behaviour) -> (String, Vec<String>) {
        program(behaviour)
    }

    async fn leftovers(&self) -> usize {
        let label = HashMap::from([("label".to_owned(), vec![format!("dev.quayside.instance={}", self.instance)])]);
        let options = ListContainersOptionsBuilder::default().all(true).filters(&label).build();
        self.client.list_containers(Some(options)).await.expect("a list of containers").len()
    }
}

conformance!(OnDocker::new());

#[tokio::test]
async fn the_settings_hold_inside() {
    check(OnDocker::new(), async |fixture| {
        let seen = fixture
            .python(
                r#"
import json, os, resource, socket
status = dict(line.rstrip("\n").split(":\t", 1) for line in open("/proc/self/status") if ":\t" in line)
mounts = {line.split()[1]: (line.split()[2], line.split()[3].split(",")) for line in open("/proc/mounts")}
print(json.dumps({
    "uid": [os.getuid(), os.getgid(), os.getgroups()],
    "caps": [status[name] for name in ("CapEff", "CapPrm", "CapBnd")],
    "no_new_privs": status["NoNewPrivs"], "seccomp": status["Seccomp"],
    "root": "ro" in mounts["/"][1],
    "tmp": {path: [mounts[path][0], *sorted(o for o in mounts[path][1] if o.startswith(("size", "nr_inodes", "nosuid", "nodev")))]
            for path in ("/tmp", "/dev/shm", "/workspace")},
    "writable": [path for path in ("/tmp", "/dev/shm", "/workspace") if open(path + "/file", "w").write("x") == 1],
    "mqueue": "ro" in mounts["/dev/mqueue"][1],
    "limits": {name: resource.getrlimit(getattr(resource, "RLIMIT_" + name)) for name in ("NOFILE", "CORE", "FSIZE", "MSGQUEUE")
               if hasattr(resource, "RLIMIT_" + name)},
    "interfaces": [line.split(":")[0].strip() for line in open("/proc/net/dev") if ":" in line],
    "oom_score_adj": open("/proc/self/oom_score_adj").read().strip(),
    "cwd": os.getcwd(), "home": os.environ["HOME"], "host": socket.gethostname(),
    "init": open("/proc/1/cmdline").read().split("\0")[0],
}))
"#,
            )
            .await;
        let seen: serde_json::Value = serde_json::from_str(&seen).expect("JSON");
        let none = "0000000000000000";
        assert_eq!(seen["uid"], serde_json::json!([UID_BASE, UID_BASE, [UID_BASE]]));
        assert_eq!(seen["caps"], serde_json::json!([none, none, none]));
        assert_eq!((&seen["no_new_privs"], &seen["seccomp"]), (&"1".into(), &"2".into()));
        assert_eq!((&seen["root"], &seen["mqueue"]), (&true.into(), &true.into()));
        let tmpfs = |inodes: u32, size: u32| serde_json::json!(["tmpfs", "nodev", "nosuid", format!("nr_inodes={inodes}"), format!("size={size}k")]);
        assert_eq!(seen["tmp"]["/tmp"], tmpfs(4096, 32 << 10));
        assert_eq!(seen["tmp"]["/dev/shm"], tmpfs(1024, 16 << 10));
        assert_eq!(seen["tmp"]["/workspace"], tmpfs(8192, 64 << 10));
        assert_eq!(seen["writable"], serde_json::json!(["/tmp", "/dev/shm", "/workspace"]));
        assert_eq!(seen["limits"]["NOFILE"], serde_json::json!([1024, 1024]));
        assert_eq!(seen["limits"]["CORE"], serde_json::json!([0, 0]));
        assert_eq!(seen["limits"]["FSIZE"], serde_json::json!([64 << 20, 64 << 20]));
        assert_eq!(seen["interfaces"], serde_json::json!(["lo"]));
        assert_eq!(seen["oom_score_adj"], "500");
        assert_eq!((&seen["cwd"], &seen["home"], &seen["host"]), (&"/workspace".into(), &"/workspace".into(), &"sandbox".into()));
        assert!(seen["init"].as_str().is_some_and(|init| init.contains("init")), "{}", seen["init"]);
    })
    .await;
}

#[tokio::test]
async fn the_agents_variables_arrive() {
    check(OnDocker::new(), async |fixture| {
        let mut spec = fixture.spec(&Behaviour::Echo);
        spec.agent.env = vec![("PROVIDER_KEY".to_owned(), "a b=c\n'd'".to_owned())];
        let value = fixture.python_in(spec, "import os; print(repr(os.environ['PROVIDER_KEY']))").await;
        assert_eq!(value, r#""a b=c\n'd'""#);
    })
    .await;
}

#[tokio::test]
async fn two_slots_are_two_users() {
    check(OnDocker::new(), async |fixture| {
        for slot in [0, 1, 7] {
            let spec = LaunchSpec { place: slot, ..fixture.spec(&Behaviour::Echo) };
            let uid = fixture.python_in(spec, "import os; print(os.getuid(), os.getgid())").await;
            assert_eq!(uid, format!("{0} {0}", UID_BASE + slot));
        }
    })
    .await;
}

#[tokio::test]
async fn what_a_run_cost_is_measured() {
    check(OnDocker::new(), async |fixture| {
        let mut spec = fixture.spec(&Behaviour::Echo);
        spec.agent.command = python("import time; x = b'x' * (20 << 20); t = time.process_time()\nwhile time.process_time() - t < 0.5: pass");
        let (_, exit) = serve(fixture.runner.launch(&spec).await.unwrap(), "").await;
        let (cpu, memory) = (exit.cpu.expect("CPU time"), exit.max_memory.expect("peak memory"));
        assert!(cpu >= Duration::from_millis(450) && cpu < Duration::from_secs(3), "{cpu:?}");
        assert!((20 << 20..64 << 20).contains(&memory), "{memory}");
        let limit = fixture.agent(&Behaviour::OutOfMemory).memory;
        let (_, exit) = serve(fixture.launch(Behaviour::OutOfMemory).await, "").await;
        assert_eq!(exit.max_memory, Some(limit));
        let (_, exit) = serve(fixture.launch(Behaviour::NeverReads).await, "").await;
        assert!(exit.cpu.is_some() && exit.max_memory.is_some(), "a short program without output: {exit:?}");
    })
    .await;
}

#[tokio::test]
async fn a_fork_bomb_dies_within_two_seconds() {
    check(OnDocker::new(), async |fixture| {
        let mut spec = fixture.spec(&Behaviour::Echo);
        spec.agent.command = python("import os\nos.write(1, b'!')\nwhile True:\n try: os.fork()\n except OSError: pass");
        let mut sandbox = fixture.runner.launch(&spec).await.unwrap();
        sandbox.send(Bytes::new()).unwrap();
        sandbox.next_output().await.unwrap().unwrap();
        let begin = Instant::now();
        sandbox.kill().await.unwrap();
        assert!(begin.elapsed() < Duration::from_secs(2), "{:?}", begin.elapsed());
        sandbox.remove().await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn a_flood_is_drained_in_bounded_memory() {
    check(OnDocker::new(), async |fixture| {
        let size = 100 << 20;
        let mut sandbox = fixture.launch(Behaviour::Flood(size)).await;
        sandbox.send(Bytes::new()).unwrap();
        let (mut drained, mut largest) = (0, 0);
        while let Some(chunk) = within(Duration::from_secs(30), "the next chunk", sandbox.next_output()).await {
            if let quayside_worker::runner::OutputChunk::Stdout(bytes) = chunk.unwrap() {
                drained += bytes.len();
                largest = largest.max(bytes.len());
            }
        }
        assert_eq!(drained, size);
        assert!(largest <= 1 << 20, "a chunk of {largest} bytes");
        sandbox.wait().await.unwrap();
        sandbox.remove().await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn a_sweep_touches_nobody_elses_containers() {
    check(OnDocker::new(), async |fixture| {
        let foreign = format!("foreign-{}", RunId::random());
        let unlabelled = fixture.plant(&foreign, &[]).await;
        let other = fixture.plant(&format!("{foreign}-2"), &[("dev.quayside.instance", "another installation")]).await;
        let longer = format!("{}-longer", fixture.instance);
        let longer = fixture.plant(&format!("{foreign}-3"), &[("dev.quayside.instance", &longer)]).await;
        let swept = fixture.runner.sweep(&|_| false).await.unwrap();
        for id in [unlabelled, other, longer] {
            assert!(fixture.exists(&id).await);
            fixture.remove(&id).await;
        }
        assert_eq!(swept, 0);
    })
    .await;
}

#[tokio::test]
async fn a_container_of_ours_with_unreadable_labels_is_swept() {
    check(OnDocker::new(), async |fixture| {
        let labels = [("dev.quayside.instance", fixture.instance.as_str()), ("dev.quayside.run", "../../etc"), ("dev.quayside.epoch", "x")];
        let id = fixture.plant(&format!("ours-{}", RunId::random()), &labels).await;
        assert_eq!(fixture.runner.sweep(&|_| false).await.unwrap(), 1);
        assert!(!fixture.exists(&id).await);
    })
    .await;
}

#[tokio::test]
async fn a_name_that_somebody_else_has_is_refused() {
    check(OnDocker::new(), async |fixture| {
        let spec = fixture.spec(&Behaviour::Echo);
        let id = fixture.plant(&OnDocker::name_of(&spec), &[]).await;
        let fault = fixture.runner.launch(&spec).await.unwrap_err();
        assert!(fixture.exists(&id).await, "somebody else's container was removed");
        fixture.remove(&id).await;
        assert_eq!(fault.kind(), FaultKind::Refused, "{fault}");
    })
    .await;
}

#[tokio::test]
async fn the_command_is_the_program_whatever_the_image_says() {
    check(OnDocker::new(), async |fixture| {
        let mut spec = fixture.spec(&Behaviour::Echo);
        spec.agent.command = Vec::new();
        let (written, exit) = serve(fixture.runner.launch(&spec).await.unwrap(), "no request object").await;
        // The image's own command, which says that this is no request.
        assert_eq!(exit.code, 64, "{}", String::from_utf8_lossy(&written.stderr));
        assert_eq!(fixture.python("import sys; print(sys.argv)").await, "['-c']");
    })
    .await;
}

#[tokio::test]
async fn an_unknown_runtime_is_refused() {
    check(OnDocker::new(), async |fixture| {
        let mut wrong = options(HOST, &fixture.instance);
        wrong.runtime = Some("no-such-runtime".to_owned());
        let runner = DockerRunner::connect(wrong).unwrap();
        let fault = runner.launch(&fixture.spec(&Behaviour::Echo)).await.unwrap_err();
        assert_eq!(fault.kind(), FaultKind::Refused, "{fault}");
    })
    .await;
}

#[tokio::test]
async fn a_volume_of_the_image_is_refused_before_the_start() {
    check(OnDocker::new(), async |fixture| {
        let image = format!("quayside/test-volume:{}", fixture.instance.to_lowercase().replace('_', "-"));
        let id = fixture.plant(&format!("volume-{}", RunId::random()), &[]).await;
        let (repository, tag) = image.split_once(':').unwrap();
        let commit = bollard::query_parameters::CommitContainerOptionsBuilder::default()
            .container(&id)
            .repo(repository)
            .tag(tag)
            .changes("VOLUME /data")
            .build();
        fixture.client.commit_container(commit, bollard::models::ContainerConfig::default()).await.expect("an image with a volume");
        fixture.remove(&id).await;
        let mut spec = fixture.spec(&Behaviour::Echo);
        spec.agent.image.clone_from(&image);
        let fault = fixture.runner.launch(&spec).await.unwrap_err();
        let volumes = fixture.client.remove_image(&image, None::<bollard::query_parameters::RemoveImageOptions>, None).await;
        volumes.expect("the removal of the image");
        assert_eq!(fault.kind(), FaultKind::Refused);
        assert!(fault.to_string().contains("Mounts"), "{fault}");
    })
    .await;
}

#[tokio::test]
async fn the_engine_names_its_versions() {
    let fixture = OnDocker::new();
    let description = fixture.runner.ping().await.unwrap().description;
    assert!(description.starts_with("Docker ") && description.contains(", API 1."), "{description}");
    end(fixture.launch(Behaviour::Hang).await).await;
}
