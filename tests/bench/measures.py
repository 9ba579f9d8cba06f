"""The three measurements. Each alternates peer and Quayside round by round and returns the rows of the report."""

import http.client
import json
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from report import Row, percentile
from systems import BenchError, Engine, Peer, Quayside, Redis, toml

SUBMIT_LUA = Path(__file__).parent / "submit.lua"
CLIENTS = 4
LIMITS = """
memory = "1GiB"
cpus = 1.0
network = "none"
"""


@dataclass
class Sizes:
    """How much is measured. The defaults take about eight minutes; `--quick` only shows that everything works."""

    rounds: int = 5
    idle_runs: int = 30          # a round and side
    idle_pause: float = 0.3      # seconds between a result and the next submission: the machine is idle again
    loop_runs: int = 40          # a round and side, over all clients
    accept_seconds: int = 5      # a round and side
    warm_runs: int = 3           # a side, before the first round, not counted
    warm_seconds: int = 2        # the same where wrk submits; whole seconds, as wrk wants them

    @classmethod
    def quick(cls) -> "Sizes":
        return cls(rounds=2, idle_runs=3, idle_pause=0.1, loop_runs=8, accept_seconds=1, warm_runs=1, warm_seconds=1)


@dataclass
class Bench:
    """What the measurements share."""

    binary: str
    image: str
    mark: str
    work_dir: Path
    engine: Engine
    sizes: Sizes
    started: list           # what is running now; the driver stops it whatever happens
    progress: object        # prints one line

    @property
    def program(self) -> str:
        """What every run does: a message in, the same message out as JSON. The mark tells our containers from others."""
        return f"import sys,json; r=json.load(sys.stdin); print(json.dumps({{'text':r['message']}}))  # {self.mark}"

    def keep(self, system):
        self.started.append(system)
        return system

    def stop(self, *systems):
        for system in systems:
            system.stop()
            self.started.remove(system)

    def containers_settle(self, at_most: int | None = None) -> int:
        """Waits until the number of containers stands still, or is down to `at_most`; answers the number."""
        end = time.monotonic() + 60
        same, count = 0, -1
        while time.monotonic() < end:
            now = len(self.engine.containers())
            if at_most is not None:
                if now <= at_most:
                    return now
                time.sleep(0.01)
                continue
            same, count = (same + 1, count) if now == count else (0, now)
            if same == 5:
                return count
            time.sleep(0.1)
        raise BenchError(f"{now} containers of the benchmark are still there after 60 s, expected "
                         f"{'no change' if at_most is None else at_most}")


class Client:
    """One user with one connection, who submits and waits for the result."""

    def __init__(self, system, number: int):
        self.system = system
        self.connection = http.client.HTTPConnection(*system.address, timeout=90)
        self.headers = {"Content-Type": "application/json", "Prefer": "wait=60", "X-User-Id": f"bench-{number}"}
        self.sent = 0

    def run(self) -> float:
        """Seconds from the submission to the result. Anything but the right result is an error, never a figure."""
        self.sent += 1
        message = f"measure twice, cut once, number {self.sent}"
        body = json.dumps({"message": message})
        started = time.perf_counter()
        self.connection.request("POST", "/api/conversation", body, self.headers)
        answer = self.connection.getresponse()
        text = answer.read()
        seconds = time.perf_counter() - started
        result = json.loads(text) if answer.status == 200 else {}
        if result.get("text") != message or result.get("status", "completed") != "completed":
            raise BenchError(f"{self.system.label} answered {answer.status} instead of the result: {text[:600]!r}")
        return seconds


def start_run_pair(bench: Bench, name: str) -> list:
    """Peer S and Quayside with the same program in the same image under the same limits, both warmed up."""
    peer = bench.keep(Peer("s_fastapi_docker", "S: FastAPI + docker run", bench.work_dir, {
        "BENCH_IMAGE": bench.image, "BENCH_PROGRAM": bench.program, "DOCKER_HOST": bench.engine.host,
    }, tuned=True))
    ours = bench.keep(Quayside(bench.binary, bench.work_dir, f"quayside-{name}", f"""
[api]
bind = "127.0.0.1:0"
default_agent = "echo"

[runner]
kind = "docker"
docker_host = {toml(bench.engine.host)}

[agents.echo]
image = {toml(bench.image)}
command = {toml(["python3", "-c", bench.program])}
input = "json"
output = "json"
{LIMITS}"""))
    for system in (peer, ours):
        client = Client(system, 0)
        for _ in range(bench.sizes.warm_runs):
            client.run()
    return [peer, ours]


def idle_latency(bench: Bench) -> list[Row]:
    """Submit to result seen, one client, an idle machine at every submission."""
    systems = start_run_pair(bench, "latency")
    rounds = []
    for number in range(bench.sizes.rounds):
        both = []
        for system in systems:
            bench.containers_settle()
            client = Client(system, 0)
            samples = []
            for _ in range(bench.sizes.idle_runs):
                time.sleep(bench.sizes.idle_pause)
                samples.append(client.run() * 1000)
            both.append(samples)
            bench.progress(f"idle, round {number + 1}: {system.label}: p50 {percentile(samples, 50):.0f} ms")
        rounds.append(both)
    bench.stop(*reversed(systems))
    return [
        Row.of_samples("latency", f"submit -> result, idle, p{level}", "ms", level, rounds, systems[0].label, bar=1.0)
        for level in (50, 99)
    ]


def closed_loop(bench: Bench) -> list[Row]:
    """Runs a second, four clients that each submit as soon as they have their result."""
    systems = start_run_pair(bench, "throughput")
    rates, latencies = [], []
    for number in range(bench.sizes.rounds):
        both = []
        for system in systems:
            rate, samples = loop_block(bench, system)
            both.append((rate, samples))
            bench.progress(f"{CLIENTS} clients, round {number + 1}: {system.label}: {rate:.2f} runs/s")
        rates.append([rate for rate, _ in both])
        latencies.append([samples for _, samples in both])
    bench.stop(*reversed(systems))
    runs = bench.sizes.rounds * (bench.sizes.loop_runs // CLIENTS) * CLIENTS
    return [
        Row.of_rates("throughput", f"runs a second, {CLIENTS} clients", "/s", rates, [runs, runs], systems[0].label, bar=1.0),
        *(Row.of_samples("throughput", f"submit -> result, {CLIENTS} clients, p{level}", "ms", level, latencies,
                         systems[0].label) for level in (50, 99)),
    ]


def loop_block(bench: Bench, system) -> tuple[float, list[float]]:
    """One side of one round. The clock stops when the last result is there and the engine is as tidy as before: a container
    that is removed after its reply has been seen is work of this block all the same."""
    before = bench.containers_settle()
    stop = threading.Event()

    def client_loop(number: int) -> list[float]:
        client = Client(system, number)
        return [client.run() * 1000 for _ in range(bench.sizes.loop_runs // CLIENTS) if not stop.is_set()]

    started = time.perf_counter()
    with ThreadPoolExecutor(CLIENTS) as pool:
        try:
            futures = [pool.submit(client_loop, number) for number in range(CLIENTS)]
            samples = [sample for future in futures for sample in future.result()]
        finally:
            # Only now if something went wrong: the other clients end after the run they are in.
            stop.set()
    bench.containers_settle(at_most=before)
    return len(samples) / (time.perf_counter() - started), samples


@dataclass
class Load:
    """What one call of wrk reported."""

    seconds: float
    sent: int
    accepted: int
    p50: float
    p99: float

    @property
    def rate(self) -> float:
        return self.accepted / self.seconds


def load(system, connections: int, seconds: int) -> Load:
    host, port = system.address
    done = subprocess.run(
        ["wrk", "--threads", "1", "--connections", str(connections), "--duration", f"{seconds}s", "--timeout", "10s",
         "--script", str(SUBMIT_LUA), f"http://{host}:{port}/api/conversation"],
        capture_output=True, text=True, timeout=seconds + 60,
    )
    line = next((line for line in done.stdout.splitlines() if line.startswith("BENCH\t")), None)
    if done.returncode != 0 or line is None:
        raise BenchError(f"wrk failed: {done.stdout}{done.stderr}")
    micros, sent, accepted, refused, errors, p50, p99, refusal = line.split("\t")[1:]
    if int(refused) or int(errors):
        raise BenchError(
            f"{system.label}: {refused} answers were not 202 and {errors} connections failed; the first: {refusal or '-'}"
        )
    return Load(int(micros) / 1e6, int(sent), int(accepted), int(p50) / 1000, int(p99) / 1000)


def start_acceptors(bench: Bench) -> tuple[Redis, list]:
    """Peer R twice on one Redis, and Quayside."""
    redis = bench.keep(Redis(bench.work_dir))
    peers = [
        bench.keep(Peer("r_fastapi_redis", label, bench.work_dir,
                        {"BENCH_REDIS_PORT": str(redis.port), "BENCH_REDIS_LIST": label.split(":")[0]}, tuned))
        for label, tuned in (("R: FastAPI + Redis", False), ("R+: same, uvloop", True))
    ]
    # One slot, taken by an agent that sleeps: the queue grows as it would while every worker is busy.
    ours = bench.keep(Quayside(bench.binary, bench.work_dir, "quayside-accept", f"""
[api]
bind = "127.0.0.1:0"
default_agent = "sleeper"

[worker]
slots = 1
drain = "1s"

[limits]
queued_per_user = 1000000000

[runner]
kind = "docker"
docker_host = {toml(bench.engine.host)}

[agents.sleeper]
image = {toml(bench.image)}
command = {toml(["python3", "-c", f"import time; time.sleep(86400)  # {bench.mark}"])}
timeout = "1h"
{LIMITS}"""))
    return redis, [*peers, ours]


def acceptance(bench: Bench) -> list[Row]:
    """Submissions accepted a second: 32 clients and one, no runs in the way."""
    redis, systems = start_acceptors(bench)
    sent, accepted = [0] * len(systems), [0] * len(systems)

    def one(index: int, connections: int, seconds: int) -> Load:
        result = load(systems[index], connections, seconds)
        sent[index] += result.sent
        accepted[index] += result.accepted
        return result

    for index in range(len(systems)):
        one(index, 32, bench.sizes.warm_seconds)
    figures: dict[int, list[list[Load]]] = {32: [], 1: []}
    for connections, rounds in figures.items():
        for number in range(bench.sizes.rounds):
            rounds.append([one(index, connections, bench.sizes.accept_seconds) for index in range(len(systems))])
            rates = ", ".join(f"{system.label}: {result.rate:.0f}/s" for system, result in zip(systems, rounds[-1]))
            bench.progress(f"accept, {clients(connections)}, round {number + 1}: {rates}")

    *peers, ours = systems
    stored = [redis.count(peer.label.split(":")[0]) for peer in peers]
    bench.stop(ours)
    stored.append(ours.count())
    bench.stop(*peers, redis)
    for system, answered, kept, tried in zip(systems, accepted, stored, sent):
        # wrk breaks off at its time, so the last request of each connection may be stored without its answer being counted.
        if not answered <= kept <= tried:
            raise BenchError(f"{system.label}: {answered} accepted of {tried} sent, but {kept} stored")
        bench.progress(f"{system.label}: every answer a 202; {answered} accepted <= {kept} stored <= {tried} sent")
    return [row for connections, rounds in figures.items() for row in acceptance_rows(connections, rounds, peers)]


def clients(number: int) -> str:
    return "1 client" if number == 1 else f"{number} clients"


def acceptance_rows(connections: int, rounds: list[list[Load]], peers: list[Peer]) -> list[Row]:
    rows = []
    for index, peer in enumerate(peers):
        pairs = [(loads[index], loads[-1]) for loads in rounds]
        counts = [sum(pair[side].accepted for pair in pairs) for side in (0, 1)]
        # The bar was set against the peer as it comes; the tuned one stands beside it so that nobody is deceived.
        bar = 8.0 if connections == 32 and index == 0 else None
        rows.append(Row.of_rates("accept", f"accepted a second, {clients(connections)}", "/s",
                                 [[one.rate for one in pair] for pair in pairs], counts, peer.label, bar))
        for name in ("p50", "p99"):
            rows.append(Row.of_percentiles("accept", f"submit -> accepted, {clients(connections)}, {name}", "ms",
                                           [[getattr(one, name) for one in pair] for pair in pairs], counts, peer.label))
    return rows


MEASUREMENTS = {"latency": idle_latency, "throughput": closed_loop, "accept": acceptance}
