"""S7: claim and finish with a runner that does nothing, and what a long line changes. `claims.rs` measures it."""

import json
import subprocess

from measures import Bench
from report import Row
from systems import BenchError

OURS = "Quayside"


def claims(bench: Bench) -> list[Row]:
    """Runs a second through the whole worker, from a line of just these runs and from one with many more behind them."""
    folder = bench.work_dir / "claims"
    folder.mkdir()
    runs, line = bench.sizes.claims
    done = subprocess.run([bench.claims, str(folder), str(runs), str(line), str(bench.sizes.claim_rounds)], capture_output=True, text=True)
    if done.returncode != 0:
        raise BenchError(f"{bench.claims} ended with {done.returncode}: {done.stderr[-1000:]}")
    return rows_of([json.loads(text) for text in done.stdout.splitlines()])


def rows_of(rounds: list[dict]) -> list[Row]:
    runs, line = rounds[0]["runs"], rounds[0]["line"]
    rates = {name: sorted(one[name] for one in rounds)[len(rounds) // 2] for name in ("empty", "long")}
    changes = sorted(100 * (one["empty"] - one["long"]) / one["empty"] for one in rounds)
    counted = runs * len(rounds)
    return [
        Row.alone("S7", "claim + finish, no-op runner, nothing else queued", "/s", OURS, rates["empty"], counted,
                  rounds=rounds, bar=1000, stretch=5000),
        Row.alone("S7", f"the same, {line:,} more queued", "/s", OURS, rates["long"], counted, rounds=rounds, bar=1000, stretch=5000),
        # Below zero the long line was the faster one.
        Row.alone("S7", "slower with the long line by", "%", OURS, changes[len(changes) // 2], counted, rounds=rounds, bar=20, stretch=5,
                  at_most=True),
    ]
