"""S5: submissions accepted, with an fsync before every 202."""

from clients import Load, wrk
from measures import Bench
from peers import c_celery, r_redis
from report import Row
from systems import BenchError, Redis

OURS = "Quayside"
# Against the peers as they come; the tuned one stands beside them so that nobody is deceived.
BARS = {"R": {"bar": 8, "stretch": 10}, "C": {"bar": 25, "stretch": 40}}


def start(bench: Bench) -> tuple[Redis, dict]:
    """The peers that accept into one Redis, and Quayside with one slot, taken by an agent that sleeps: the queue grows as it
    would while every worker is busy."""
    redis = bench.keep(Redis(bench.work_dir))
    systems = {"R": bench.keep(r_redis(bench.work_dir, redis, tuned=False)), "R+": bench.keep(r_redis(bench.work_dir, redis, tuned=True)),
               "C": bench.keep(c_celery(bench.work_dir, redis, bench.environment, worker=False))}
    sleeper = bench.agent("sleeper", f"import time; time.sleep(86400)  # {bench.mark}", 'timeout = "1h"\nwarm = 0')
    ours = bench.quayside(bench.runners[0], sleeper, """
[worker]
slots = 1
drain = "1s"

[limits]
queued = 1000000000
queued_per_user = 1000000000
""", agent="sleeper")
    ours.label = OURS
    return redis, systems | {OURS: ours}


def acceptance(bench: Bench) -> list[Row]:
    """Submissions accepted a second: 32 clients and one, no runs in the way."""
    redis, systems = start(bench)
    totals = {name: [0, 0] for name in systems}

    def one(name: str, connections: int) -> Load:
        result = wrk(systems[name], "submit.lua", connections, bench.sizes.accept_seconds)
        totals[name][0] += result.accepted
        totals[name][1] += result.sent
        return result

    for name in systems:
        one(name, 32)
    loads: dict[int, list[dict[str, Load]]] = {32: [], 1: []}
    for connections, rounds in loads.items():
        for number in range(bench.sizes.rounds):
            rounds.append({name: one(name, connections) for name in systems})
            rates = ", ".join(f"{name} {load.rate:.0f}/s" for name, load in rounds[-1].items())
            bench.progress(f"S5, {connections} clients, round {number + 1}: {rates}")

    ours = systems[OURS]
    stored = {"R": redis.count("R"), "R+": redis.count("R+"), "C": redis.count("celery")}
    bench.stop(ours)
    stored[OURS] = ours.count()
    bench.stop_all()
    for name, (accepted, sent) in totals.items():
        # wrk breaks off at its time, so the last request of each connection may be stored without its answer being counted.
        if not accepted <= stored[name] <= sent:
            raise BenchError(f"{name}: {accepted} accepted of {sent} sent, but {stored[name]} stored")
        bench.progress(f"S5, {name}: every answer a 202; {accepted} accepted <= {stored[name]} stored <= {sent} sent")
    return [row for connections, rounds in loads.items() for row in rows_of(connections, rounds)]


def rows_of(connections: int, rounds: list[dict[str, Load]]) -> list[Row]:
    clients = "1 client" if connections == 1 else f"{connections} clients"
    rows = []
    for peer in ("R", "R+", "C"):
        counts = [sum(one[name].accepted for one in rounds) for name in (peer, OURS)]
        held = BARS.get(peer, {}) if connections == 32 else {}
        rows.append(Row.of_values("S5", f"accepted a second, {clients}", "/s", [{name: load.rate for name, load in one.items()} for one in rounds],
                                  counts, peer, OURS, more_is_better=True, **held))
        for name in ("p50", "p99") if peer == "R" else ():
            rows.append(Row.of_values(
                "S5", f"submit -> accepted, {clients}, {name}", "ms",
                [{side: getattr(load, name) for side, load in one.items()} for one in rounds], counts, peer, OURS, more_is_better=False))
    return rows
