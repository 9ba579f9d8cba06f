"""Starts the peers of `peers/`: what Quayside is measured against."""

import os
import subprocess
import sys
from pathlib import Path

from systems import BenchError, Engine, Process, Redis, accepts, free_port

PEERS = Path(__file__).parent / "peers"


class Server:
    """An HTTP server of its own on a free port; `stop` ends it and whatever else it needs."""

    def __init__(self, name: str, label: str, work_dir: Path, argv, environment: dict[str, str]):
        self.label = label
        self.address = ("127.0.0.1", free_port())
        self.processes: list[Process] = []
        self.start(f"{name}-{self.address[1]}", argv(self.address[1]), work_dir, environment | {"BENCH_PORT": str(self.address[1])},
                   lambda _: accepts(self.address[1]))

    def start(self, name: str, argv: list[str], work_dir: Path, environment: dict[str, str], ready):
        process = Process(name, argv, work_dir, environment | {"PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": str(PEERS)})
        self.processes.append(process)
        try:
            process.wait_until(lambda: ready(process))
        except BaseException:
            self.stop()
            raise

    def stop(self):
        for process in reversed(self.processes):
            process.stop()


def uvicorn(program: str, tuned: bool):
    """A FastAPI program under uvicorn, one process without an access log: as `pip install fastapi uvicorn` leaves it, or
    `tuned` with the event loop and the parser written in C (`uvicorn[standard]`)."""
    loop, parser = ("uvloop", "httptools") if tuned else ("asyncio", "h11")
    return lambda port: [
        sys.executable, "-m", "uvicorn", f"{program}:app", "--app-dir", str(PEERS), "--host", "127.0.0.1", "--port", str(port),
        "--loop", loop, "--http", parser, "--no-access-log", "--log-level", "warning",
    ]


def s_docker(work_dir: Path, program: dict[str, str]) -> Server:
    return Server("s", "S", work_dir, uvicorn("s_fastapi_docker", tuned=True), program)


def r_redis(work_dir: Path, redis: Redis, tuned: bool) -> Server:
    label = "R+" if tuned else "R"
    return Server("r", label, work_dir, uvicorn("r_fastapi_redis", tuned), {"BENCH_REDIS_PORT": str(redis.port), "BENCH_REDIS_LIST": label})


def c_celery(work_dir: Path, redis: Redis, program: dict[str, str], worker: bool) -> Server:
    """`worker` says whether anybody takes what is accepted."""
    environment = program | {"BENCH_REDIS_PORT": str(redis.port)}
    server = Server("c", "C", work_dir, uvicorn("c_celery_docker", tuned=True), environment)
    if worker:
        argv = [sys.executable, "-m", "celery", "--app", "c_celery_docker:celery", "worker", "--concurrency", "4", "--loglevel", "INFO",
                "--without-gossip", "--without-mingle"]
        server.start(f"c-worker-{server.address[1]}", argv, work_dir, environment, lambda process: " ready." in process.log.read_text(errors="replace"))
    return server


def b_bullmq(work_dir: Path, redis: Redis, program: dict[str, str], modules: str) -> Server:
    environment = program | {"BENCH_REDIS_PORT": str(redis.port), "BENCH_MODULES": modules}
    return Server("b", "B", work_dir, lambda _: ["node", str(PEERS / "b_bullmq/server.js")], environment)


def j_jail(work_dir: Path, program: dict[str, str], rootfs: Path) -> Server:
    if os.geteuid() != 0:
        raise BenchError("the process jail makes control groups: start the benchmark as root")
    return Server("j", "J", work_dir, uvicorn("j_jail", tuned=True), program | {"BENCH_ROOTFS": str(rootfs)})


def unpack(engine: Engine, image: str, folder: Path) -> Path:
    """The image's files in a folder: the jail runs the very interpreter that the containers run."""
    folder.mkdir()
    created = engine.call("POST", "/containers/create", {"Image": image, "Cmd": ["true", engine.mark]})["Id"]
    try:
        with subprocess.Popen(["docker", "--host", engine.host, "export", created], stdout=subprocess.PIPE) as export:
            subprocess.run(["tar", "-x", "-C", str(folder)], stdin=export.stdout, check=True)
        if export.returncode != 0:
            raise BenchError(f"docker export {image} ended with {export.returncode}")
    finally:
        engine.call("DELETE", f"/containers/{created}?force=1")
    return folder
