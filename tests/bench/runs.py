"""S1, S2, S3 and S6: a fresh container for each run, paced and sustained."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import host
from clients import Client, own_cpu_seconds
from measures import CLIENTS, Bench, label
from report import Row, percentile

# What the bars of quality.md ask of each adapter: (bar, stretch).
PACED = {"docker": (50, 100), "oci": (100, 200)}
SUSTAINED = {"docker": (1.7, 2), "oci": (10, 13)}
CPU = {"docker": (None, None), "oci": (7, 9)}


def bars(table: dict, runner: str) -> dict:
    bar, stretch = table[runner]
    return {"bar": bar, "stretch": stretch}


def start(bench: Bench, letters: str) -> dict:
    """Peers and Quayside on each runner, with the same program in the same image under the same limits, all warmed up."""
    systems = bench.peers(letters)
    for runner in bench.runners:
        systems[label(runner)] = bench.quayside(runner, bench.agent())
    bench.warm_up(systems.values())
    return systems


def paced(bench: Bench) -> list[Row]:
    """S1: submit to result seen, one client, an idle machine at every submission. S6: how long accepted runs waited meanwhile."""
    systems = start(bench, "SJ")
    rounds, pickups = [], {name: [] for name in systems}
    for number in range(bench.sizes.rounds):
        samples: dict[str, list[float]] = {}
        for name, system in systems.items():
            bench.settle()
            client = Client(system, 0)
            samples[name] = []
            for _ in range(bench.sizes.idle_runs):
                time.sleep(bench.sizes.idle_pause)
                samples[name].append(client.run() * 1000)
                pickups[name].append(client.result.get("usage", {}).get("queueMillis"))
            client.close()
            bench.progress(f"S1, round {number + 1}: {name}: p50 {percentile(samples[name], 50):.2f} ms")
        rounds.append(samples)
    bench.stop_all()
    rows = []
    for runner in bench.runners:
        for level in (50, 99):
            rows += [
                Row.of_samples("S1", f"submit -> result, paced, p{level}", "ms", level, rounds, peer, label(runner),
                               **(bars(PACED, runner) if peer == "S" and level == 50 else {}))
                for peer in "SJ"
            ]
    for runner in bench.runners:
        waits = pickups[label(runner)]
        rows.append(Row.alone("S6", "accepted -> attempt started, idle, p95", "ms", label(runner), percentile(waits, 95), len(waits),
                              rounds=waits, bar=5, stretch=1, at_most=True))
    return rows


@dataclass
class Block:
    """One side of one round under load."""

    runs: int
    rate: float
    cpu_millis: float       # a run
    samples: list[float]


def sustained(bench: Bench) -> list[Row]:
    """S2: runs a second, four clients that each submit as soon as they have their result. S3: the CPU time of each."""
    systems = start(bench, "SCBJ")
    rounds: list[dict[str, Block]] = []
    for number in range(bench.sizes.rounds):
        blocks = {}
        for name, system in systems.items():
            ours = name.startswith("Quayside")
            blocks[name] = block = load_block(bench, system, bench.sizes.loop_runs if ours else CLIENTS)
            bench.progress(f"S2, round {number + 1}: {name}: {block.rate:.2f} runs/s, {block.cpu_millis:.0f} CPU-ms a run")
        rounds.append(blocks)
    bench.stop_all()
    counts = {name: sum(one[name].runs for one in rounds) for name in systems}
    rows = []
    for runner in bench.runners:
        ours = label(runner)
        for peer in "SCBJ":
            rows.append(Row.of_values(
                "S2", f"runs a second, {CLIENTS} clients", "/s", [{name: block.rate for name, block in one.items()} for one in rounds],
                [counts[peer], counts[ours]], peer, ours, more_is_better=True, **(bars(SUSTAINED, runner) if peer == "S" else {})))
    for runner in bench.runners:
        ours = label(runner)
        for peer in "SJ":
            rows.append(Row.of_values(
                "S3", "CPU time a run, all processes", "ms", [{name: block.cpu_millis for name, block in one.items()} for one in rounds],
                [counts[peer], counts[ours]], peer, ours, more_is_better=False, **(bars(CPU, runner) if peer == "S" else {})))
    for runner in bench.runners:
        for level in (50, 99):
            rows.append(Row.of_samples("S2", f"submit -> result, {CLIENTS} clients, p{level}", "ms", level,
                                       [{name: block.samples for name, block in one.items()} for one in rounds], "S", label(runner)))
    return rows


def load_block(bench: Bench, system, at_least: int) -> Block:
    """The clock stops when the last result is there and everything is as tidy as it will be. The machine's CPU time over the
    block, without the load generator's own and without what the machine uses when nobody submits, is shared among its runs."""
    bench.settle()
    before = host.cpu_seconds(), own_cpu_seconds(), time.perf_counter()
    time.sleep(min(1.0, bench.sizes.loop_seconds))
    background = (host.cpu_seconds() - before[0] - (own_cpu_seconds() - before[1])) / (time.perf_counter() - before[2])
    if background > 0.1:
        bench.progress(f"warning: other work takes {100 * background:.0f} % of a core: the CPU time of this block means nothing")

    stop, done = threading.Event(), [0] * CLIENTS
    began = time.perf_counter()

    def enough() -> bool:
        return stop.is_set() or (time.perf_counter() - began >= bench.sizes.loop_seconds and sum(done) >= at_least)

    def client_loop(number: int) -> list[float]:
        client, samples = Client(system, number), []
        while not enough():
            samples.append(client.run() * 1000)
            done[number] += 1
        client.close()
        return samples

    cpu, own = host.cpu_seconds(), own_cpu_seconds()
    with ThreadPoolExecutor(CLIENTS) as pool:
        try:
            futures = [pool.submit(client_loop, number) for number in range(CLIENTS)]
            samples = [sample for future in futures for sample in future.result()]
        finally:
            # Only now if something went wrong: the other clients end after the run they are in.
            stop.set()
    seconds = max(time.perf_counter(), bench.settle()) - began
    watched = time.perf_counter() - began
    used = host.cpu_seconds() - cpu - (own_cpu_seconds() - own) - background * watched
    return Block(len(samples), len(samples) / seconds, used * 1000 / len(samples), samples)
