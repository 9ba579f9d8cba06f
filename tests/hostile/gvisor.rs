//! Programs under gVisor, which answers system calls itself: some end otherwise than under the host's kernel, and their
//! headers say how. What they may not do is the same.

use std::path::Path;

use super::header::Header;
use super::stage;
use crate::support::eventually;

/// Where the runner without an engine has the folders of containers.
const STATE: &str = "/run/quayside/containers";
/// Debian's build knows no faster way to catch system calls that works on every machine.
const RUNNER: &str = "[runner]\nkind = \"oci\"\nruntime = \"runsc\"\n";

/// Runs `file` under gVisor and compares the run with its header.
async fn verdict(file: &str) {
    let server = stage::server(stage::agent(file, "", "") + RUNNER).await;
    let user = server.user("mallory");
    let id = user.say(file.split('.').next().unwrap_or(file), "hello").await;
    let run = user.finished(&id).await;
    let source = std::fs::read_to_string(stage::programs().join(file)).unwrap();
    if let Some(objection) = Header::parse_for_gvisor(&source).objection(&run) {
        panic!("{file}: {objection}: {run:#}");
    }
    eventually("an empty host", || async {
        let folders = server.instances().into_iter().flat_map(|instance| std::fs::read_dir(Path::new(STATE).join(instance)));
        (folders.flatten().next().is_none() && server.workspaces().is_empty()).then_some(())
    })
    .await;
}

macro_rules! under_gvisor {
    ($($name:ident $file:literal)*) => {
        $(
            #[tokio::test]
            async fn $name() {
                verdict($file).await;
            }
        )*
    };
}

under_gvisor! {
    exit_255 "exit_255.sh"
    fd_exhaust "fd_exhaust.py"
    fork_bomb "fork_bomb.py"
    inj_echo_argv "inj_echo_argv.py"
    inode_exhaust "inode_exhaust.py"
    inotify_exhaust "inotify_exhaust.py"
    kill_self_9 "kill_self_9.sh"
    leak_env "leak_env.sh"
    mem_bomb "mem_bomb.py"
    net_interfaces "net_interfaces.sh"
    net_metadata "net_metadata.py"
    net_tcp_udp "net_tcp_udp.py"
    priv_cgroup_escape "priv_cgroup_escape.py"
    priv_devices "priv_devices.py"
    priv_pid_view "priv_pid_view.py"
    priv_proc_write "priv_proc_write.py"
    priv_setuid "priv_setuid.sh"
    priv_status "priv_status.py"
    priv_unshare "priv_unshare.sh"
    sleep_forever "sleep_forever.sh"
    stdin_eof_wait "stdin_eof_wait.sh"
}

#[tokio::test]
async fn the_kernel_is_gvisors() {
    let agent = "[agents.dmesg]\nimage = \"quayside/test-hostile:latest\"\ncommand = [\"dmesg\"]\ninput = \"text\"\noutput = \"text\"\n";
    let server = stage::server(agent.to_owned() + RUNNER).await;
    let user = server.user("u");
    let run = user.finished(&user.say("dmesg", "hello").await).await;
    assert!(run["text"].as_str().is_some_and(|text| text.contains("gVisor")), "{run:#}");
}
