"""Statistics and the printed table. A ratio above 1 always means that Quayside is the better one."""

import math
from dataclasses import asdict, dataclass, field
from statistics import median


def percentile(samples: list[float], level: float) -> float:
    """Nearest rank: a value that was really measured, never one between two."""
    ordered = sorted(samples)
    return ordered[max(0, math.ceil(level / 100 * len(ordered)) - 1)]


@dataclass
class Row:
    """One line of the table: a figure of Quayside, mostly beside a peer's with their ratio round by round."""

    item: str               # S1 to S9
    what: str
    unit: str
    ours_name: str
    ours: float
    peer_name: str = ""
    peer: float | None = None
    counts: list[int] = field(default_factory=list)     # runs or submissions behind the figures, the peer's first
    ratios: list[float] = field(default_factory=list)   # one a round
    bar: float | None = None            # of the ratio, or of the figure itself where there is no peer
    stretch: float | None = None
    at_most: bool = False               # the bar is above the figure, not below it
    rounds: list = field(default_factory=list)          # what was measured, for --json

    @property
    def ratio(self) -> float | None:
        return median(self.ratios) if self.ratios else None

    def reached(self, bar: float | None) -> bool | None:
        if bar is None:
            return None
        figure = self.ours if self.ratio is None else self.ratio
        return figure <= bar if self.at_most else figure >= bar

    @property
    def passed(self) -> bool | None:
        return self.reached(self.bar)

    @classmethod
    def of_samples(cls, item, what, unit, level, rounds, peer, ours, **bars) -> "Row":
        """Times, less is better; `rounds` a list of dictionaries from a system's label to its samples. The two figures are
        percentiles of all samples of a side, the ratios those of each round."""
        pooled = [[sample for one in rounds for sample in one[side]] for side in (peer, ours)]
        ratios = [percentile(one[peer], level) / percentile(one[ours], level) for one in rounds]
        theirs, mine = (percentile(side, level) for side in pooled)
        return cls(item, what, unit, ours, mine, peer, theirs, [len(side) for side in pooled], ratios,
                   rounds=[[one[peer], one[ours]] for one in rounds], **bars)

    @classmethod
    def of_values(cls, item, what, unit, rounds, counts, peer, ours, more_is_better, **bars) -> "Row":
        """One value a round and side: rates, CPU time, percentiles that the generator worked out. The two figures are medians."""
        pairs = [[one[peer], one[ours]] for one in rounds]
        ratios = [mine / theirs if more_is_better else theirs / mine for theirs, mine in pairs]
        theirs, mine = (median(pair[side] for pair in pairs) for side in (0, 1))
        return cls(item, what, unit, ours, mine, peer, theirs, counts, ratios, rounds=pairs, **bars)

    @classmethod
    def alone(cls, item, what, unit, ours, value, count, rounds=None, **bars) -> "Row":
        """A figure of Quayside's that has no peer."""
        return cls(item, what, unit, ours, value, counts=[count], rounds=rounds or [value], **bars)

    def to_json(self) -> dict:
        return asdict(self) | {"ratio": self.ratio, "passed": self.passed, "stretchReached": self.reached(self.stretch)}


def number(value: float) -> str:
    """Three digits that mean something."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def of_unit(value: float, unit: str) -> str:
    return f"{number(value)} {unit}".rstrip()


def bar_text(bar: float | None, at_most: bool, unit: str) -> str:
    return "" if bar is None else f"{'<=' if at_most else '>='} {bar:g} {unit}".rstrip()


def cells(row: Row) -> list[str]:
    """A row's texts, for the printed table and the one in the documentation."""
    alone = row.ratio is None
    return [
        row.item, row.what, row.peer_name, "" if row.peer is None else of_unit(row.peer, row.unit), row.ours_name,
        of_unit(row.ours, row.unit), "" if alone else f"{number(row.ratio)} x",
        bar_text(row.bar, row.at_most, row.unit if alone else "x"),
    ]


def table(rows: list[Row], colour: bool) -> str:
    """The rows as text, then how many runs and the ratio of every round."""
    green, red, plain = ("\033[32m", "\033[31m", "\033[0m") if colour else ("", "", "")
    head = ["", "measured", "peer", "peer's", "Quayside", "its", "ratio", "bar", "", "runs", "ratio of each round"]
    lines = [head]
    for row in rows:
        mark = {None: "", True: "pass", False: "FAIL"}[row.passed]
        counts, ratios = (" ".join(f"{count:,}" for count in row.counts), " ".join(number(ratio) for ratio in row.ratios))
        lines.append([*cells(row), mark, counts, ratios])
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    right = {3, 5, 6, 7, 9}
    out = []
    for index, line in enumerate(lines):
        texts = [text.rjust(width) if column in right else text.ljust(width)
                 for column, (text, width) in enumerate(zip(line, widths))]
        if line[8] in ("pass", "FAIL"):
            texts[8] = f"{green if line[8] == 'pass' else red}{texts[8]}{plain}"
        out.append("  ".join(texts).rstrip())
        if index == 0:
            out.append("  ".join("-" * width for width in widths))
    return "\n".join(out)
