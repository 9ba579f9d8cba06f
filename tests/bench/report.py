"""Statistics and the printed table. A ratio above 1 always means that Quayside is the better one."""

import math
from dataclasses import asdict, dataclass
from statistics import median


def percentile(samples: list[float], level: float) -> float:
    """Nearest rank: a value that was really measured, never one between two."""
    ordered = sorted(samples)
    return ordered[max(0, math.ceil(level / 100 * len(ordered)) - 1)]


@dataclass
class Row:
    """One line of the table: a figure of the peer and of Quayside, and their ratio round by round."""

    item: str
    what: str
    unit: str
    peer_name: str
    peer: float
    ours: float
    counts: list[int]       # runs or submissions behind the two figures
    ratios: list[float]     # one a round
    bar: float | None
    rounds: list            # what was measured, for --json

    @property
    def ratio(self) -> float:
        return median(self.ratios)

    @property
    def passed(self) -> bool | None:
        return None if self.bar is None else self.ratio >= self.bar

    @classmethod
    def of_samples(cls, item, what, unit, level, rounds, peer_name, bar=None) -> "Row":
        """Times in milliseconds, `rounds[round][side]` a list. The two figures are percentiles of all samples of a side."""
        pooled = [[sample for both in rounds for sample in both[side]] for side in (0, 1)]
        ratios = [percentile(peer, level) / percentile(ours, level) for peer, ours in rounds]
        return cls(item, what, unit, peer_name, *(percentile(side, level) for side in pooled),
                   [len(side) for side in pooled], ratios, bar, rounds)

    @classmethod
    def of_percentiles(cls, item, what, unit, rounds, counts, peer_name) -> "Row":
        """Percentiles that the generator worked out itself, one a round; the two figures are their medians."""
        return cls(item, what, unit, peer_name, *(median(both[side] for both in rounds) for side in (0, 1)), counts,
                   [peer / ours for peer, ours in rounds], None, rounds)

    @classmethod
    def of_rates(cls, item, what, unit, rounds, counts, peer_name, bar=None) -> "Row":
        """Rates, more is better; the two figures are medians of the rounds."""
        return cls(item, what, unit, peer_name, *(median(both[side] for both in rounds) for side in (0, 1)), counts,
                   [ours / peer for peer, ours in rounds], bar, rounds)

    def to_json(self) -> dict:
        return asdict(self) | {"ratio": self.ratio, "passed": self.passed}


def number(value: float) -> str:
    """Three digits that mean something."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def table(rows: list[Row], colour: bool) -> str:
    """The rows as text: peer, ours, the ratio and its bar, then how many runs and the ratio of every round."""
    green, red, plain = ("\033[32m", "\033[31m", "\033[0m") if colour else ("", "", "")
    head = ["measured", "peer", "peer's", "Quayside", "ratio", "bar", "", "runs (peer, ours)", "ratio of each round"]
    lines = [head]
    for row in rows:
        mark = {None: "", True: "pass", False: "FAIL"}[row.passed]
        lines.append([
            row.what, row.peer_name, f"{number(row.peer)} {row.unit}", f"{number(row.ours)} {row.unit}", f"{row.ratio:.2f} x",
            "" if row.bar is None else f">= {row.bar:g} x", mark, f"{row.counts[0]:,} {row.counts[1]:,}",
            " ".join(f"{ratio:.2f}" for ratio in row.ratios),
        ])
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    right = {2, 3, 4, 5, 7}
    out = []
    for index, line in enumerate(lines):
        cells = [cell.rjust(width) if column in right else cell.ljust(width)
                 for column, (cell, width) in enumerate(zip(line, widths))]
        if line[6] in ("pass", "FAIL"):
            cells[6] = f"{green if line[6] == 'pass' else red}{cells[6]}{plain}"
        out.append("  ".join(cells).rstrip())
        if index == 0:
            out.append("  ".join("-" * width for width in widths))
    return "\n".join(out)
