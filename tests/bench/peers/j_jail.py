"""Peer J: a process jail without image layers or daemon, as Piston is one. FastAPI starts an interpreter in fresh
namespaces with bubblewrap inside the request and answers with what it printed.

What it gives: its own user, process, mount, network, IPC, UTS and control-group namespace, no capabilities, a read-only root
file system with an empty /tmp, limits on memory, CPU and processes through control groups of its own, rlimits on files. What
it does not: no seccomp filter, no limit on the size of /tmp but the memory's, nothing is kept, nothing is queued, an
interpreter is started for each request.

BENCH_ROOTFS is the unpacked image of every other system here, BENCH_PROGRAM the same program. Needs root, for the groups.
"""

import asyncio
import itertools
import json
import os
import resource
import shutil
from pathlib import Path

from fastapi import FastAPI, HTTPException
from pydantic import BaseModel

MEMORY, PIDS, CPU_PERIOD = 1 << 30, 128, 100_000
CGROUP = Path("/sys/fs/cgroup")
NAME = f"quayside-bench-jail-{os.getpid()}"
# Version 1 has a tree for each controller, version 2 one for all.
V1 = (CGROUP / "memory/cgroup.procs").exists()
LIMITS = {
    "memory": {"memory.limit_in_bytes": MEMORY},
    "cpu": {"cpu.cfs_period_us": CPU_PERIOD, "cpu.cfs_quota_us": CPU_PERIOD},
    "pids": {"pids.max": PIDS},
} if V1 else {"": {"memory.max": MEMORY, "memory.swap.max": 0, "cpu.max": f"{CPU_PERIOD} {CPU_PERIOD}", "pids.max": PIDS}}
PARENTS = {controller: CGROUP / controller / NAME for controller in LIMITS}

COMMAND = [
    "bwrap", "--unshare-all", "--die-with-parent", "--new-session", "--cap-drop", "ALL", "--uid", "1000", "--gid", "1000",
    "--hostname", "jail", "--ro-bind", os.environ["BENCH_ROOTFS"], "/", "--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp",
    "--clearenv", "--setenv", "PATH", "/usr/local/bin:/usr/bin:/bin", "--chdir", "/tmp",
    "python3", "-c", os.environ["BENCH_PROGRAM"],
]
numbers = itertools.count()


def make_groups() -> list[Path]:
    groups = [parent / str(next(numbers)) for parent in PARENTS.values()]
    for group, settings in zip(groups, LIMITS.values()):
        group.mkdir(parents=True)
        for file, value in settings.items():
            (group / file).write_text(str(value))
    return groups


def enter(groups: list[Path]):
    """In the child, before the jail is executed."""
    for group in groups:
        (group / "cgroup.procs").write_text("0")
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
    resource.setrlimit(resource.RLIMIT_FSIZE, (64 << 20, 64 << 20))


async def remove(groups: list[Path]):
    for group in groups:
        for _ in range(200):
            try:
                group.rmdir()
                break
            except OSError:
                # The last process of the namespace is still being torn down.
                await asyncio.sleep(0.005)


if not V1:
    # Controllers have to be handed down before a group below can use them.
    PARENTS[""].mkdir()
    for folder in (CGROUP, PARENTS[""]):
        (folder / "cgroup.subtree_control").write_text("+memory +cpu +pids")
if shutil.which("bwrap") is None:
    raise SystemExit("bwrap is missing (Debian: bubblewrap)")
app = FastAPI()


class Message(BaseModel):
    message: str
    conversationId: str | None = None


@app.post("/api/conversation")
async def conversation(body: Message) -> dict:
    groups = make_groups()
    try:
        process = await asyncio.create_subprocess_exec(
            *COMMAND, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
            preexec_fn=lambda: enter(groups),
        )
        out, err = await process.communicate(json.dumps({"message": body.message}).encode() + b"\n")
    finally:
        await remove(groups)
    if process.returncode != 0:
        raise HTTPException(500, err.decode(errors="replace"))
    return json.loads(out)


@app.on_event("shutdown")
def remove_parents():
    for parent in PARENTS.values():
        if parent.exists():
            parent.rmdir()
