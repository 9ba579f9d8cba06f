"""What the measurements share: sizes, the program that every system runs, and the systems themselves."""

import time
from dataclasses import dataclass, field
from pathlib import Path

import host
from clients import Client
from systems import BenchError, Engine, Quayside, Redis, toml
from peers import b_bullmq, c_celery, j_jail, s_docker, unpack

CLIENTS = 4
LIMITS = """
memory = "1GiB"
cpus = 1.0
network = "none"
"""
# Containers that stand ready when a paced submission comes, and that a sustained load has soon used up.
WARM = 8


@dataclass
class Sizes:
    """How much is measured. The defaults take about half an hour; `--quick` only shows that everything works."""

    rounds: int = 5
    idle_runs: int = 30          # a round and side
    idle_pause: float = 0.3      # seconds between a result and the next submission: the machine is idle again
    loop_seconds: float = 8      # a round and side, at least
    loop_runs: int = 10 * WARM   # of Quayside, a round, at least: a pool that was full at the start shall not flatter
    accept_seconds: int = 5      # a round and side; whole seconds, as wrk wants them
    session_seconds: int = 8
    warm_runs: int = 3           # a side, before the first round, not counted
    idle_seconds: float = 10     # how long an idle server is watched
    watched: int = 40            # runs whose events are timed, a round
    claims: tuple[int, int] = (5000, 100_000)   # runs that are timed, and the longer line they are taken from
    claim_rounds: int = 3

    @classmethod
    def quick(cls) -> "Sizes":
        return cls(rounds=2, idle_runs=3, idle_pause=0.1, loop_seconds=1, loop_runs=8, accept_seconds=1, session_seconds=5,
                   warm_runs=1, idle_seconds=1, watched=3, claims=(200, 1000), claim_rounds=1)


@dataclass
class Bench:
    """What the measurements share."""

    binary: str
    image: str
    modules: str            # the folder with peer B's packages
    claims: str             # the program that measures S7
    mark: str
    work_dir: Path
    engine: Engine
    sizes: Sizes
    runners: list[str]
    progress: object        # prints one line
    started: list = field(default_factory=list)     # what is running now; the driver stops it whatever happens
    rootfs: Path | None = None
    numbers: int = 0

    @property
    def program(self) -> str:
        """What every run does: a message in, the same message out as JSON, until the input ends. The mark tells our processes
        from others."""
        return ("import sys,json\nfor line in sys.stdin: print(json.dumps({'type':'result','text':json.loads(line)['message']}), flush=True)"
                f"\n# {self.mark}")

    @property
    def environment(self) -> dict[str, str]:
        """The same for the peers."""
        return {"BENCH_IMAGE": self.image, "BENCH_PROGRAM": self.program, "DOCKER_HOST": self.engine.host}

    def keep(self, system):
        self.started.append(system)
        return system

    def stop(self, *systems):
        for system in reversed(systems):
            system.stop()
            self.started.remove(system)

    def quayside(self, runner: str, agents: str, settings: str = "", agent: str = "echo") -> Quayside:
        """A server of its own; `agents` are TOML tables, `settings` further ones. Everything else is as shipped."""
        self.numbers += 1
        return self.keep(Quayside(self.binary, self.work_dir, f"quayside-{self.numbers}-{runner}", f"""
[api]
bind = "127.0.0.1:0"
default_agent = {toml(agent)}

[runner]
kind = {toml(runner)}
docker_host = {toml(self.engine.host)}
{settings}
{agents}""", label(runner)))

    def agent(self, name: str = "echo", program: str | None = None, settings: str = f"warm = {WARM}") -> str:
        return f"""
[agents.{name}]
image = {toml(self.image)}
command = {toml(["python3", "-c", program or self.program])}
input = "json"
output = "events"
{settings}
{LIMITS}"""

    def peers(self, letters: str) -> dict:
        """The peers of these letters by their labels, started and warmed up; Redis with them where they need it."""
        found = {}
        redis = self.keep(Redis(self.work_dir)) if set("CB") & set(letters) else None
        for letter in letters:
            match letter:
                case "S":
                    peer = s_docker(self.work_dir, self.environment)
                case "C":
                    peer = c_celery(self.work_dir, redis, self.environment, worker=True)
                case "B":
                    peer = b_bullmq(self.work_dir, redis, self.environment, self.modules)
                case "J":
                    self.rootfs = self.rootfs or unpack(self.engine, self.image, self.work_dir / "rootfs")
                    peer = j_jail(self.work_dir, self.environment, self.rootfs)
                case _:
                    raise AssertionError(letter)
            found[letter] = self.keep(peer)
        return found

    def warm_up(self, systems):
        for system in systems:
            client = Client(system, 0)
            for _ in range(self.sizes.warm_runs):
                client.run()
            client.close()

    def containers(self) -> int:
        """What lives or lies about: containers of the engine, and whatever runs our program in a process namespace of its own."""
        return len(self.engine.containers()) + len(host.containers_of(self.mark))

    def settle(self) -> float:
        """Waits until the number of containers has stood still for half a second; answers when it last changed. A container that
        is removed, or made ready, after the reply was seen is work of those who asked for it."""
        end = time.perf_counter() + 60
        changed, count = time.perf_counter(), self.containers()
        while (now := time.perf_counter()) < end:
            if now - changed > 0.5:
                return changed
            time.sleep(0.02)
            if (seen := self.containers()) != count:
                changed, count = time.perf_counter(), seen
        raise BenchError(f"the number of containers ({count}) does not settle within 60 s")

    def stop_all(self):
        self.stop(*self.started)


def label(runner: str) -> str:
    return f"Quayside/{runner}"
