"""What the kernel knows: CPU time of the whole machine, the memory of processes, and which containers live."""

import os
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")
TICKS = os.sysconf("SC_CLK_TCK")
# The root group counts every process there is, kernel threads included, to the nanosecond (v1) or microsecond (v2).
CPUACCT = (Path("/sys/fs/cgroup/cpuacct/cpuacct.usage"), Path("/sys/fs/cgroup/cpu,cpuacct/cpuacct.usage"))
CPU_STAT = Path("/sys/fs/cgroup/cpu.stat")
ENGINES = {"dockerd", "containerd", "systemd", "init", "podman"}


def cpu_source() -> str:
    """Where `cpu_seconds` reads, for the report."""
    for path in (*CPUACCT, CPU_STAT):
        if path.exists():
            return str(path)
    return "/proc/stat"


def cpu_seconds() -> float:
    """CPU time that everything on this machine has used since it was started."""
    source = Path(cpu_source())
    text = source.read_text()
    if source in CPUACCT:
        return int(text) / 1e9
    if source == CPU_STAT:
        return int(text.split("usage_usec ")[1].split()[0]) / 1e6
    user, nice, system, _idle, _iowait, irq, softirq, *_ = (int(field) for field in text.splitlines()[0].split()[1:])
    return (user + nice + system + irq + softirq) / TICKS


@dataclass
class Process:
    """A process of this machine, read once."""

    pid: int
    parent: int
    name: str
    cpu: float          # seconds since its start, ended threads included
    namespace: str      # of process ids: a container has its own


def read(pid: int) -> Process | None:
    """None when it has ended, or is not ours to look at."""
    try:
        text = (PROC / str(pid) / "stat").read_text()
        namespace = os.readlink(PROC / str(pid) / "ns/pid")
    except OSError:
        return None
    name, fields = text.rpartition(")")[0].partition("(")[2], text.rpartition(")")[2].split()
    return Process(pid, int(fields[1]), name, (int(fields[11]) + int(fields[12])) / TICKS, namespace)


def with_argument(mark: str) -> list[Process]:
    """Every process with `mark` in its command line, whichever container it is in, except those that have no memory any more."""
    found = []
    for entry in os.scandir(PROC):
        if entry.name.isdigit():
            try:
                marked = mark.encode() in (PROC / entry.name / "cmdline").read_bytes()
            except OSError:
                continue
            if marked and (process := read(int(entry.name))):
                found.append(process)
    return found


def containers_of(mark: str) -> dict[str, list[Process]]:
    """The marked processes by process namespace, those of the machine's own namespace left out."""
    own = os.readlink(PROC / "self/ns/pid")
    groups: dict[str, list[Process]] = {}
    for process in with_argument(mark):
        if process.namespace != own:
            groups.setdefault(process.namespace, []).append(process)
    return groups


def supervisors(processes: list[Process], server: int) -> set[int]:
    """What stands between a container's processes and the server or engine that made them: shims, runtimes, monitors."""
    found, inside = set(), {process.pid for process in processes}
    for process in processes:
        above = process.parent
        while above > 1 and above != server:
            parent = read(above)
            if parent is None or parent.name in ENGINES:
                break
            if above not in inside:
                found.add(above)
            above = parent.parent
    return found


def pss(pid: int) -> int:
    """Proportional set size in bytes: memory shared with others counts by its share. 0 for a process that has ended."""
    try:
        text = (PROC / str(pid) / "smaps_rollup").read_text()
    except OSError:
        return 0
    return next(int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith("Pss:"))
