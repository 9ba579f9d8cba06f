"""S4: a message in a kept session."""

from clients import wrk
from measures import CLIENTS, Bench, label
from report import Row


def sessions(bench: Bench) -> list[Row]:
    """Messages of one conversation to the container that it keeps, one client and four, each with a conversation of its own."""
    systems = bench.peers("S")
    for runner in bench.runners:
        systems[label(runner)] = bench.quayside(runner, bench.agent(settings='session = "conversation"'))
    bench.warm_up(systems.values())
    calls = 0
    loads: dict[int, list] = {1: [], CLIENTS: []}
    for connections, rounds in loads.items():
        for number in range(bench.sizes.rounds):
            rounds.append({})
            for name, system in systems.items():
                bench.settle()
                calls += 1
                rounds[-1][name] = one = wrk(system, "converse.lua", connections, bench.sizes.session_seconds, connections, [str(calls)])
                bench.progress(f"S4, {connections} clients, round {number + 1}: {name}: p50 {one.p50:.2f} ms, {one.rate:.1f} runs/s")
    bench.stop_all()
    rows = []
    for runner in bench.runners:
        ours = label(runner)
        single, many = loads[1], loads[CLIENTS]
        counts = {load: [sum(one[name].accepted for one in rounds) for name in ("S", ours)] for load, rounds in loads.items()}
        for name in ("p50", "p99"):
            rows.append(Row.of_values(
                "S4", f"a message in a kept session, {name}", "ms", [{side: getattr(load, name) for side, load in one.items()} for one in single],
                counts[1], "S", ours, more_is_better=False, **({"bar": 200, "stretch": 500} if name == "p50" else {})))
        rows.append(Row.of_values(
            "S4", f"the same, runs a second, {CLIENTS} clients", "/s", [{side: load.rate for side, load in one.items()} for one in many],
            counts[CLIENTS], "S", ours, more_is_better=True, bar=300, stretch=500))
    return rows
