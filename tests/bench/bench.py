"""Measures Quayside against the design it replaces and prints the table. `run.sh` prepares everything and calls this."""

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
from pathlib import Path

from measures import MEASUREMENTS, Bench, Sizes
from report import number, table
from systems import BenchError, Engine


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="run.sh", description="Measures Quayside against the design it replaces, alternating, on this machine.",
        epilog="Exit codes: 0 every bar reached (or --quick), 1 a bar missed, 2 nothing measured. QUAYSIDE_BIN names "
               "another binary than target/release/quayside.")
    parser.add_argument("--quick", action="store_true", help="small counts: shows that it works, the figures mean nothing")
    parser.add_argument("--only", metavar="NAMES", type=names, default=list(MEASUREMENTS),
                        help=f"only these, with commas between: {', '.join(MEASUREMENTS)}")
    parser.add_argument("--rounds", metavar="N", type=positive, help="alternations of peer and Quayside (default 5)")
    parser.add_argument("--json", metavar="FILE", type=Path, help="also write everything that was measured to FILE")
    # run.sh fills these in; --check lets it turn a wrong argument down before it installs and builds anything.
    parser.add_argument("--check", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--binary", help=argparse.SUPPRESS)
    parser.add_argument("--image", help=argparse.SUPPRESS)
    return parser.parse_args()


def names(text: str) -> list[str]:
    chosen = text.split(",")
    if unknown := [name for name in chosen if name not in MEASUREMENTS]:
        raise argparse.ArgumentTypeError(f"no measurement is called {', '.join(unknown)}; there are {', '.join(MEASUREMENTS)}")
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


def machine(engine: Engine, binary: str, folder: Path) -> dict:
    version = engine.call("GET", "/version")
    models = [line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line]
    quayside = subprocess.run([binary, "--version"], capture_output=True, text=True)
    return {
        "cpus": os.cpu_count(), "cpu": models[0] if models else platform.machine(), "kernel": platform.release(),
        "engine": version["Version"], "quayside": quayside.stdout.strip(), "binary": binary,
        "loadAverage": os.getloadavg()[0], "fsyncsPerSecond": syncs_a_second(folder),
    }


def measure(options: argparse.Namespace, rows: list) -> dict:
    mark = f"quayside-bench-{secrets.token_hex(4)}"
    engine = Engine(mark)
    sizes = Sizes.quick() if options.quick else Sizes()
    sizes.rounds = options.rounds or sizes.rounds
    folder = data_folder()
    bench = Bench(options.binary, options.image, mark, folder, engine, sizes, [], say)
    try:
        about = machine(engine, options.binary, folder)
        say(f"{about['cpus']} x {about['cpu']}, kernel {about['kernel']}, Docker {about['engine']}, {about['quayside']}, "
            f"{number(about['fsyncsPerSecond'])} fsyncs/s, load average {about['loadAverage']:.2f}")
        if about["loadAverage"] > 0.25 * about["cpus"]:
            say("warning: this machine has other work to do; read the ratios with care and the figures not at all")
        for name in options.only:
            rows += MEASUREMENTS[name](bench)
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
    if not (options.binary and options.image):
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
        options.json.write_text(json.dumps({"machine": about, "quick": options.quick, "rows": [row.to_json() for row in rows]},
                                           indent=1) + "\n")
    missed = [row.what for row in rows if row.passed is False]
    if missed:
        print(f"Bars missed: {'; '.join(missed)}")
    return 1 if missed and not options.quick else 0


if __name__ == "__main__":
    sys.exit(main())
