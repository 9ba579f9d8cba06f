"""Measures Quayside against its peers and prints the table. `run.sh` prepares everything and calls this."""

import argparse
import contextlib
import json
import os
import platform
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from datetime import date
from importlib import metadata
from pathlib import Path

import host
from accept import acceptance
from claims import claims
from measures import Bench, Sizes
from report import number, table
from runs import paced, sustained
from sessions import sessions
from systems import BenchError, Engine
from watching import events, idle

# By the figures of quality.md that they give.
MEASUREMENTS = {"S1": paced, "S2": sustained, "S4": sessions, "S5": acceptance, "S7": claims, "S8": idle, "S9": events}
INCLUDED = {"S6": "S1", "S3": "S2"}
RUNNERS = ("docker", "oci")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="run.sh", description="Measures Quayside against its peers, alternating, on this machine.",
        epilog="Exit codes: 0 every bar reached (or --quick), 1 a bar missed, 2 nothing measured. QUAYSIDE_BIN and "
               "QUAYSIDE_CLAIMS_BIN name other programs than the release build's.")
    parser.add_argument("--quick", action="store_true", help="small counts: shows that it works, the figures mean nothing")
    parser.add_argument("--only", metavar="NAMES", type=names, default=list(MEASUREMENTS),
                        help=f"only these, with commas between: {', '.join(MEASUREMENTS)} (S3 comes with S2, S6 with S1)")
    parser.add_argument("--runner", metavar="NAMES", type=runners, help=f"{' or '.join(RUNNERS)}, or both with a comma (default: what starts here)")
    parser.add_argument("--rounds", metavar="N", type=positive, help="alternations of peers and Quayside (default 5)")
    parser.add_argument("--json", metavar="FILE", type=Path, help="also write everything that was measured to FILE")
    # run.sh fills these in; --check lets it turn a wrong argument down before it installs and builds anything.
    parser.add_argument("--check", action="store_true", help=argparse.SUPPRESS)
    for name in ("binary", "claims", "image", "modules"):
        parser.add_argument(f"--{name}", help=argparse.SUPPRESS)
    return parser.parse_args()


def names(text: str) -> list[str]:
    chosen = dict.fromkeys(INCLUDED.get(name, name) for name in text.split(","))
    if unknown := [name for name in chosen if name not in MEASUREMENTS]:
        raise argparse.ArgumentTypeError(f"no measurement is called {', '.join(unknown)}; there are {', '.join(MEASUREMENTS)}")
    return list(chosen)


def runners(text: str) -> list[str]:
    chosen = list(dict.fromkeys(text.split(",")))
    if unknown := [name for name in chosen if name not in RUNNERS]:
        raise argparse.ArgumentTypeError(f"no runner is called {', '.join(unknown)}; there are {', '.join(RUNNERS)}")
    return chosen


def positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a number from 1")
    return int(text)


def say(line: str):
    print(f"    {line}", file=sys.stderr, flush=True)


def data_folder() -> Path:
    """A folder on a real disk: on a file system in memory an fsync costs nothing and the figures would flatter."""
    for parent in (tempfile.gettempdir(), "/var/tmp"):
        kind = subprocess.run(["stat", "-f", "-c", "%T", parent], capture_output=True, text=True, check=True).stdout.strip()
        if kind not in ("tmpfs", "ramfs"):
            return Path(tempfile.mkdtemp(prefix="quayside-bench-", dir=parent))
    raise BenchError("the temporary folders are kept in memory: set TMPDIR to a folder on a disk")


def syncs_a_second(folder: Path) -> float:
    """Writes of one page with an fsync each, one after the other: what this disk gives anyone, for reading the figures."""
    page = os.urandom(4096)
    with (folder / "fsync").open("wb") as file:
        started = time.perf_counter()
        for _ in range(200):
            file.write(page)
            file.flush()
            os.fsync(file.fileno())
        return 200 / (time.perf_counter() - started)


def first_line(*argv: str) -> str:
    """What a program says about its version; a dash where it is not there."""
    try:
        done = subprocess.run(argv, capture_output=True, text=True)
    except OSError:
        return "-"
    return ((done.stdout or done.stderr).splitlines() or ["-"])[0].strip()


def versions(engine: Engine, modules: str) -> dict[str, str]:
    """Of everything that takes part in a figure."""
    docker = engine.call("GET", "/version")
    components = {one["Name"].lower(): one["Version"] for one in docker.get("Components", [])}
    packages = {name: json.loads((Path(modules) / name / "package.json").read_text())["version"] for name in ("bullmq", "dockerode")}
    python = {name: metadata.version(name) for name in ("fastapi", "uvicorn", "uvloop", "celery", "docker", "redis")}
    return {
        "Docker": docker["Version"], "containerd": components.get("containerd", "-"), "runc": components.get("runc", "-"),
        "crun": first_line("crun", "--version").removeprefix("crun version "), "bubblewrap": first_line("bwrap", "--version").removeprefix("bubblewrap "),
        "Redis": first_line("redis-server", "--version").partition("v=")[2].partition(" ")[0], "Node": first_line("node", "--version"),
        "Python of the peers": platform.python_version(), **python, **packages, "wrk": first_line("wrk", "--version").removeprefix("wrk ").partition(" [")[0],
    }


def machine(bench: Bench) -> dict:
    models = [line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line]
    memory = int(Path("/proc/meminfo").read_text().split()[1]) // 1024 / 1024
    return {
        "date": date.today().isoformat(), "cpus": os.cpu_count(), "cpu": models[0] if models else platform.machine(), "memoryGiB": round(memory, 1),
        "kernel": platform.release(), "cgroups": "v2" if Path("/sys/fs/cgroup/cgroup.controllers").exists() else "v1 or hybrid",
        "cpuTime": host.cpu_source(), "fsyncsPerSecond": syncs_a_second(bench.work_dir), "loadAverage": os.getloadavg()[0],
        "quayside": first_line(bench.binary, "--version"), "versions": versions(bench.engine, bench.modules), "runners": {},
    }


def usable_runners(bench: Bench, wanted: list[str] | None) -> dict[str, str]:
    """The runners that start here with what they say about themselves. One that was asked for and does not start is an error."""
    found = {}
    for runner in wanted or RUNNERS:
        try:
            server = bench.quayside(runner, bench.agent())
        except BenchError as error:
            if wanted:
                raise
            say(f"without the runner {runner}: {str(error).splitlines()[-1]}")
            continue
        found[runner] = next((record["engine"] for record in server.records() if "engine" in record), "-")
        bench.stop(server)
    if not found:
        raise BenchError("no runner starts on this machine; `quayside doctor` says what to do")
    return found


def measure(options: argparse.Namespace, rows: list) -> dict:
    mark = f"quayside-bench-{secrets.token_hex(4)}"
    engine = Engine(mark)
    folder = data_folder()
    bench = Bench(options.binary, options.image, options.modules, options.claims, mark, folder, engine, sizes_of(options), [], say)
    try:
        about = machine(bench)
        say(f"{about['cpus']} x {about['cpu']}, kernel {about['kernel']}, {about['quayside']}, "
            f"{number(about['fsyncsPerSecond'])} fsyncs/s, load average {about['loadAverage']:.2f}")
        if about["loadAverage"] > 0.25 * about["cpus"]:
            say("warning: this machine has other work to do; read the ratios with care and the figures not at all")
        about["runners"] = usable_runners(bench, options.runner)
        bench.runners = list(about["runners"])
        for runner, engine_is in about["runners"].items():
            say(f"runner {runner}: {engine_is}")
        for name in options.only:
            rows += MEASUREMENTS[name](bench)
        rows.sort(key=lambda row: row.item)
        return about
    finally:
        # Nothing may stop the tidying up, a second Ctrl-C least of all.
        for one in (signal.SIGINT, signal.SIGTERM):
            signal.signal(one, signal.SIG_IGN)
        for system in reversed(bench.started):
            system.stop()
        with contextlib.suppress(BenchError):
            if left := engine.remove_all():
                say(f"removed {left} containers that were left behind")
        shutil.rmtree(folder, ignore_errors=True)


def interrupted(number: int, _frame):
    raise SystemExit(128 + number)


def main() -> int:
    options = arguments()
    if options.check:
        return 0
    if not (options.binary and options.claims and options.image and options.modules):
        print("error: start tests/bench/run.sh instead: it prepares what this needs", file=sys.stderr)
        return 2
    for one in (signal.SIGINT, signal.SIGTERM):
        signal.signal(one, interrupted)
    rows: list = []
    started = time.monotonic()
    try:
        about = measure(options, rows)
    except BenchError as error:
        if rows:
            print(table(rows, colour=False))
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(table(rows, colour=sys.stdout.isatty() and "NO_COLOR" not in os.environ))
    print(f"\nMeasured in {time.monotonic() - started:.0f} s, alternating. The ratio is the median of the rounds' ratios; above 1 "
          "Quayside is the better one.")
    if options.quick:
        print("Smoke test (--quick): too few runs for a verdict.")
    if options.json:
        text = json.dumps({"machine": about, "quick": options.quick, "sizes": vars(sizes_of(options)), "rows": [row.to_json() for row in rows]})
        options.json.write_text(text + "\n")
    missed = [f"{row.item} {row.what} ({row.ours_name})" for row in rows if row.passed is False]
    if missed:
        print(f"Bars missed: {'; '.join(missed)}")
    return 1 if missed and not options.quick else 0


def sizes_of(options: argparse.Namespace) -> Sizes:
    sizes = Sizes.quick() if options.quick else Sizes()
    sizes.rounds = options.rounds or sizes.rounds
    return sizes


if __name__ == "__main__":
    sys.exit(main())
