"""S8 and S9: what an idle server costs, and how soon a watching client hears of a change."""

import datetime
import json
import time

import host
from clients import Client
from measures import WARM, Bench, label
from report import Row, percentile
from systems import BenchError, Quayside

MIB = 1 << 20


def idle(bench: Bench) -> list[Row]:
    """S8: CPU time and memory of a server that nobody asks anything, and of the containers that stand ready."""
    rows = []
    for runner in bench.runners:
        server = bench.quayside(runner, bench.agent())
        bench.warm_up([server])
        bench.settle()
        pid = server.process.popen.pid
        if not (ready := host.containers_of(bench.mark)):
            raise BenchError(f"{server.label} keeps no container ready")
        processes = [process for one in ready.values() for process in one]
        watched = {pid} | host.supervisors(processes, pid) | {process.pid for process in processes}
        before, began = cpu_of(watched), time.perf_counter()
        time.sleep(bench.sizes.idle_seconds)
        seconds, after = time.perf_counter() - began, cpu_of(watched)
        shares = {one: 100 * (after[one] - before[one]) / seconds for one in watched}
        memory = sum(host.pss(one) for one in watched - {pid}) / len(ready) / MIB
        bench.progress(f"S8, {server.label}: {len(ready)} containers of {WARM} ready, the server uses {shares[pid]:.2f} % of a core")
        # No page of the server's is shared with anybody, so what it takes is what it has resident, almost.
        mine = host.pss(pid) / MIB
        bench.stop_all()
        rows += [
            Row.alone("S8", "idle: CPU of API and worker, of a core", "%", server.label, shares.pop(pid), 1, bar=1, at_most=True),
            Row.alone("S8", f"idle: CPU of {len(ready)} warm containers and what holds them, of a core", "%", server.label, sum(shares.values()), 1),
            Row.alone("S8", "idle: memory of API and worker (PSS)", "MiB", server.label, mine, 1, bar=60, at_most=True),
            Row.alone("S8", "idle: a warm python container with what holds it (PSS)", "MiB", server.label, memory, len(ready),
                      **({"bar": 5, "at_most": True} if runner == "oci" else {})),
        ]
    return rows


def cpu_of(pids: set[int]) -> dict[int, float]:
    found = {pid: host.read(pid) for pid in pids}
    if gone := [pid for pid, process in found.items() if process is None]:
        raise BenchError(f"processes {gone} ended while they were to be idle")
    return {pid: process.cpu for pid, process in found.items()}


def events(bench: Bench) -> list[Row]:
    """S9: from the time that a status change carries to its arrival at a client of the event stream."""
    rows = []
    for runner in bench.runners:
        server = bench.quayside(runner, bench.agent())
        bench.warm_up([server])
        bench.settle()
        delays: list[float] = []
        for number in range(bench.sizes.watched * bench.sizes.rounds):
            delays += watched_run(server, f"watched-{number}")
        bench.progress(f"S9, {server.label}: {len(delays)} changes, p50 {percentile(delays, 50):.2f} ms, p95 {percentile(delays, 95):.2f} ms")
        bench.stop_all()
        rows += [Row.alone("S9", f"status change -> event stream, p{level}", "ms", server.label, percentile(delays, level), len(delays), rounds=delays,
                           **({"bar": 20, "at_most": True} if level == 95 else {})) for level in (50, 95)]
    return rows


def watched_run(server: Quayside, conversation: str) -> list[float]:
    """Two runs of one conversation; the second waits for the first, so that its client hears of the start, too. The delays of
    its changes in ms, of those alone that came when the stream stood already."""
    client, listener = Client(server, 0), Client(server, 0)
    client.submit("one", conversation)
    run = client.submit("two", conversation)["id"]
    listener.socket.sendall(listener.request("GET", f"/api/runs/{run}/events"))
    received, arrivals, opened, result = b"", {}, None, None
    while result is None:
        received += listener.read()
        now = time.time()
        if opened is None:
            head, found, received = received.partition(b"\r\n\r\n")
            if not found:
                received = head
                continue
            opened = now
        # Each event is written whole; the lines of the chunked encoding between them are none of ours.
        while (end := received.find(b"\n\n")) >= 0:
            event, received = received[:end].decode(), received[end + 2:]
            name = event.partition("event: ")[2].partition("\n")[0]
            data = json.loads(event.partition("data: ")[2]) if name in ("status", "result") else {}
            if name == "status":
                arrivals[data["status"]] = now
            elif name == "result":
                # The end is told with the run itself.
                arrivals[data["status"]] = now
                result = data
    client.close()
    listener.close()
    if result["status"] != "completed" or "completed" not in arrivals:
        raise BenchError(f"{server.label}: a watched run ended as {result}")
    written = {"in_progress": result["startedAt"], "completed": result["finishedAt"]}
    times = {status: datetime.datetime.fromisoformat(text).timestamp() for status, text in written.items()}
    return [(arrivals[status] - at) * 1000 for status, at in times.items() if at > opened and status in arrivals]

