# Tries the walls of the container it runs in and says what it saw, one JSON object a line. It judges nothing.
#
#   probe.py walls '<json>'   what is shut, and what ends with an error when it is full
#   probe.py budget '<json>'  CPU time in a window, then memory until it is killed for it
#
# It waits for the end of its standard input first, so that the host can look at it meanwhile.
import errno
import json
import os
import resource
import socket
import sys
import time

mode, ask = sys.argv[1], json.loads(sys.argv[2])


def say(probe, **seen):
    sys.stdout.write(json.dumps(dict(seen, probe=probe)) + "\n")
    sys.stdout.flush()


def error(name):
    return errno.errorcode.get(name, str(name))


def attempt(what):
    """The name of the error that `what` ends with, or `done`."""
    try:
        what()
        return "done"
    except OSError as failed:
        return error(failed.errno) if failed.errno else "timeout"


def read(path):
    with open(path) as file:
        return file.read()


def status():
    fields = dict(line.split(":\t", 1) for line in read("/proc/self/status").splitlines() if ":\t" in line)
    wanted = ["NoNewPrivs", "Seccomp", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"]
    say(
        "status",
        ids=[*os.getresuid(), *os.getresgid()],
        groups=os.getgroups(),
        core=resource.getrlimit(resource.RLIMIT_CORE)[1],
        version=read("/proc/version").strip(),
        **{name: fields[name] for name in wanted if name in fields},
    )


def pids():
    children, ended = [], None
    reader, writer = os.pipe()
    for _ in range(ask["pids"]):
        try:
            child = os.fork()
        except OSError as failed:
            ended = error(failed.errno)
            break
        if child == 0:
            os.close(writer)
            os.read(reader, 1)
            os._exit(0)
        children.append(child)
    seen = len([name for name in os.listdir("/proc") if name.isdigit()])
    os.close(writer)
    for child in children:
        os.waitpid(child, 0)
    os.close(reader)
    say("pids", forked=len(children), ended=ended, seen=seen)


def files():
    held, ended = [], None
    while len(held) < ask["nofile"]:
        try:
            held.append(os.dup(0))
        except OSError as failed:
            ended = error(failed.errno)
            break
    for number in held:
        os.close(number)
    say("nofile", opened=len(held), ended=ended)


def file_size():
    path = "/workspace/.probe"
    number = os.open(path, os.O_CREAT | os.O_WRONLY, 0o600)
    say("fsize", ended=attempt(lambda: os.pwrite(number, b"x", ask["fsize"])))
    os.close(number)
    os.unlink(path)


def folder(path, size, inodes):
    """Inodes first, then bytes, into the files that are there by then."""
    made, full = 0, None
    while made < inodes:
        try:
            os.close(os.open(f"{path}/.{made}", os.O_CREAT | os.O_WRONLY, 0o600))
        except OSError as failed:
            full = error(failed.errno)
            break
        made += 1
    block, written, ended = bytes(1 << 20), 0, None
    for number in range(made):
        if ended or written >= size:
            break
        file = os.open(f"{path}/.{number}", os.O_WRONLY)
        for _ in range(8):
            try:
                written += os.write(file, block)
            except OSError as failed:
                ended = error(failed.errno)
                break
        os.close(file)
    say("folder", path=path, inodes=made, inodes_ended=full, bytes=written, bytes_ended=ended)


def disks():
    points = [line.split()[4] for line in read("/proc/self/mountinfo").splitlines()]
    held = {"/proc", "/sys", *(folder[0] for folder in ask["folders"])}
    writable = []
    for point in points:
        if point in held or point.startswith(("/proc/", "/sys/", "/dev/pts")) or not (os.path.isdir(point) or os.path.isfile(point)):
            continue
        if os.access(point, os.W_OK) and not os.statvfs(point).f_flag & os.ST_RDONLY:
            writable.append(point)
    say("root", readonly=bool(os.statvfs("/").f_flag & os.ST_RDONLY), writable=writable)


def network():
    names = sorted(line.split(":")[0].strip() for line in read("/proc/net/dev").splitlines()[2:])

    def reach(kind, address):
        with socket.socket(socket.AF_INET, kind) as probe:
            probe.settimeout(0.3)
            probe.connect(address)

    begun = time.monotonic()
    # Connecting a datagram socket asks the routing table alone: nothing is sent.
    away = attempt(lambda: reach(socket.SOCK_DGRAM, ("203.0.113.1", 9)))
    metadata = attempt(lambda: reach(socket.SOCK_STREAM, ("169.254.169.254", 80)))
    say("network", interfaces=names, public=away, metadata=metadata, seconds=time.monotonic() - begun)


def sockets():
    kinds = {
        "raw": (socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP),
        "packet": (socket.AF_PACKET, socket.SOCK_RAW, 0),
        "vsock": (40, socket.SOCK_STREAM, 0),
        "alg": (38, socket.SOCK_SEQPACKET, 0),
        "xfrm": (socket.AF_NETLINK, socket.SOCK_RAW, 6),
        "netfilter": (socket.AF_NETLINK, socket.SOCK_RAW, 12),
        "xdp": (44, socket.SOCK_RAW, 0),
    }
    say("sockets", **{name: attempt(lambda: socket.socket(*kind).close()) for name, kind in kinds.items()})


def calls():
    """In a child: some of these would change what the rest sees if they worked."""
    child = os.fork()
    if child:
        os.waitpid(child, 0)
        return
    import ctypes

    library = ctypes.CDLL(None, use_errno=True)

    def call(name, *arguments):
        return "done" if getattr(library, name)(*arguments) >= 0 else error(ctypes.get_errno())

    seen = {
        "mount": call("mount", b"none", b"/tmp", b"tmpfs", 0, None),
        "unshare_user": call("unshare", 0x10000000),
        "unshare_mount": call("unshare", 0x00020000),
        "chroot": call("chroot", b"/tmp"),
        "setuid_root": call("setuid", 0),
        "ptrace": call("ptrace", 0, 0, 0, 0),
    }
    if os.uname().machine == "x86_64":
        for name, number in {"keyctl": 250, "io_uring_setup": 425, "memfd_secret": 447, "bpf": 321}.items():
            seen[name] = call("syscall", number, 0, 0, 0, 0, 0)
    say("calls", **seen)
    os._exit(0)


def host():
    def told(path):
        try:
            with open(path, "rb") as file:
                return bool(file.read(1))
        except OSError:
            return False

    readable = [path for path in ["/proc/kcore", "/proc/keys", "/proc/timer_list", "/proc/sched_debug", "/proc/latency_stats"] if told(path)]
    for path in ["/sys/firmware", "/proc/acpi", "/proc/scsi"]:
        if os.path.isdir(path) and os.access(path, os.R_OK) and os.listdir(path):
            readable.append(path)
    knobs = ["/proc/sysrq-trigger", "/proc/sys/kernel/core_pattern", "/proc/sys/vm/overcommit_memory", "/sys/kernel/uevent_helper"]
    writable = [path for path in knobs if attempt(lambda: os.close(os.open(path, os.O_WRONLY))) == "done"]
    engines = ["/var/run/docker.sock", "/run/docker.sock", "/run/containerd/containerd.sock", "/run/crio/crio.sock"]
    say("host", readable=readable, writable=writable, sockets=[path for path in engines if os.path.exists(path)])


def throttled():
    """How often the scheduler held this container back, where it can be read from inside."""
    for path in ["/sys/fs/cgroup/cpu.stat", "/sys/fs/cgroup/cpu/cpu.stat", "/sys/fs/cgroup/cpu,cpuacct/cpu.stat"]:
        try:
            return int(dict(line.split() for line in read(path).splitlines())["nr_throttled"])
        except (OSError, KeyError, ValueError):
            continue
    return None


def quota():
    """CPUs by the kernel's own figure, where it can be read from inside; 0 when there is no limit."""
    for folder in ["/sys/fs/cgroup", "/sys/fs/cgroup/cpu", "/sys/fs/cgroup/cpu,cpuacct"]:
        try:
            if os.path.exists(folder + "/cpu.max"):
                limit, period = read(folder + "/cpu.max").split()
            else:
                limit, period = read(folder + "/cpu.cfs_quota_us"), read(folder + "/cpu.cfs_period_us")
            return 0 if limit == "max" or int(limit) < 0 else int(limit) / int(period)
        except (OSError, ValueError):
            continue
    return None


def cpu():
    before, begun = throttled(), time.monotonic()
    until = begun + ask["window"]
    children = []
    for _ in range(2):
        child = os.fork()
        if child == 0:
            while time.monotonic() < until:
                pass
            os._exit(0)
        children.append(child)
    for child in children:
        os.waitpid(child, 0)
    wall, after = time.monotonic() - begun, throttled()
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    held = after - before if before is not None and after is not None else None
    say("cpu", used=used.ru_utime + used.ru_stime, wall=wall, throttled=held, quota=quota())


def take_memory():
    return (b"\1" * ask["memory"])[-1]


def memory():
    child = os.fork()
    if child == 0:
        take_memory()
        os._exit(0)
    _, ended = os.waitpid(child, 0)
    say("memory_child", survived=os.WIFEXITED(ended) and os.WEXITSTATUS(ended) == 0)
    take_memory()
    say("memory_survived")


say("begun", pid=os.getpid())
sys.stdin.buffer.read()
if mode == "walls":
    for probe in [status, pids, files, file_size, network, sockets, calls, host, disks]:
        try:
            probe()
        except Exception as failed:  # One probe that cannot be made must not hide the others.
            say("failed", what=probe.__name__, error=repr(failed))
    for path, size, inodes in ask["folders"]:
        folder(path, size, inodes)
else:
    cpu()
    memory()
say("ended")
