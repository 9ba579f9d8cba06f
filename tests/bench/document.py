#!/usr/bin/env python3
"""Writes what `run.sh --json` measured into docs/performance.md and draws docs/performance.svg: no figure is typed by hand."""

import argparse
import json
import sys
from html import escape
from pathlib import Path

from report import Row, cells, number, of_unit

DOCS = Path(__file__).parents[2] / "docs"
BEGIN, END = "<!-- measured: {} -->", "<!-- end -->"


def row_of(text: dict) -> Row:
    return Row(**{name: value for name, value in text.items() if name not in ("ratio", "passed", "stretchReached")})


def results(rows: list[Row]) -> str:
    """The table of all figures."""
    lines = ["| | measured | peer | peer's | Quayside | its | ratio | bar | stretch | rounds' ratios | N |", "| --- " * 11 + "|"]
    for row in rows:
        item, what, peer, theirs, ours, figure, ratio, bar = cells(row)
        verdict = {None: "", True: f"{bar}, reached", False: f"{bar}, **missed**"}[row.passed]
        stretch = "" if row.stretch is None else f"{row.stretch:g}, {'reached' if row.reached(row.stretch) else 'no'}"
        spread = f"{number(min(row.ratios))} to {number(max(row.ratios))}" if row.ratios else ""
        counts = " / ".join(f"{count:,}" for count in row.counts)
        texts = [item, what, peer, theirs, ours.removeprefix("Quayside/"), figure, ratio, verdict, stretch, spread, counts]
        lines.append(f"| {' | '.join(text.replace('|', '/') for text in texts)} |")
    return "\n".join(lines)


def conditions(measured: dict) -> str:
    """The machine, the versions and the amounts."""
    about, sizes = measured["machine"], measured["sizes"]
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    runners = "\n".join(f"- runner `{name}`: {engine}" for name, engine in about["runners"].items())
    return (
        f"- {about['date']}, {about['quayside']}; {about['cpus']} cores ({about['cpu']}), {about['memoryGiB']} GiB, kernel {about['kernel']}, "
        f"control groups {about['cgroups']}, {number(about['fsyncsPerSecond'])} plain fsyncs a second, load average at the start "
        f"{about['loadAverage']:.2f}\n{runners}\n"
        f"- {versions}\n"
        f"- {sizes['rounds']} rounds; a round and side: {sizes['idle_runs']} paced runs with {sizes['idle_pause']} s of rest before each; "
        f"{sizes['loop_seconds']} s under load, of Quayside at least {sizes['loop_runs']} runs; {sizes['session_seconds']} s of a session; "
        f"{sizes['accept_seconds']} s of submissions; CPU time from `{about['cpuTime']}`"
    )


def replaced(text: str, name: str, content: str) -> str:
    begin = BEGIN.format(name)
    before, found, rest = text.partition(begin)
    _, closed, after = rest.partition(END)
    if not (found and closed):
        raise SystemExit(f"error: {begin} … {END} is not in docs/performance.md")
    return f"{before}{begin}\n{content}\n{END}{after}"


# The picture: small multiples of bars, one colour for the peers and one for ours, every bar with its figure.
WIDTH, BAR, GAP, LEFT, TITLE, PAD = 760, 18, 7, 172, 30, 24
STYLE = """
text { font: 13px system-ui, sans-serif; fill: #1f2328 } .title { font-weight: 600 } .note { font-size: 11px; fill: #59636e }
.peer { fill: #9aa4af } .ours { fill: #0969da }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3 } .note { fill: #9198a1 } .peer { fill: #59636e } .ours { fill: #4493f8 }
}
"""


def bars(rows: list[Row], item: str, what: str) -> list[tuple[str, float, bool]]:
    """Label, figure and whether it is ours, of everybody who takes part in a figure, each once."""
    found: dict[str, tuple[float, bool]] = {}
    for row in rows:
        if row.item == item and row.what.startswith(what):
            found.setdefault(row.peer_name, (row.peer, False))
            found.setdefault(row.ours_name, (row.ours, True))
    # The peers first, each side in the order of the table.
    return sorted(((name, *value) for name, value in found.items()), key=lambda one: one[2])


NAMES = {"S": "docker run in the request", "C": "Celery + docker SDK", "B": "BullMQ + dockerode", "J": "process jail", "R": "FastAPI + Redis",
         "R+": "the same, uvloop", ("S5", "C"): "Celery, send_task"}
PANELS = (
    ("S1", "submit -> result, paced, p50", "Submit to result, paced, p50", "ms, less is better"),
    ("S2", "runs a second", "Fresh containers a second, four clients", "more is better"),
    ("S3", "CPU time a run", "CPU time of a run, everything included", "ms, less is better"),
    ("S4", "a message in a kept session, p50", "A message in a kept session, p50", "ms, less is better"),
    ("S5", "accepted a second, 32 clients", "Submissions accepted a second, 32 clients", "more is better"),
)


def picture(rows: list[Row]) -> str:
    """Bars from zero, each panel on its own linear scale: what looks half as long is half as much."""
    y, parts = PAD, []
    for item, what, title, note in PANELS:
        if not (figures := bars(rows, item, what)):
            continue
        parts.append(f'<text class="title" x="{PAD}" y="{y}">{item}  {escape(title)}</text>'
                     f'<text class="note" x="{WIDTH - PAD}" y="{y}" text-anchor="end">{escape(note)}</text>')
        y += TITLE - BAR // 2
        longest = max(value for _, value, _ in figures)
        room = WIDTH - 2 * PAD - LEFT - 80
        for name, value, ours in figures:
            length = max(1.0, room * value / longest)
            parts.append(f'<text x="{PAD + LEFT - 8}" y="{y + BAR - 5}" text-anchor="end" font-size="12">{escape(NAMES.get((item, name)) or NAMES.get(name, name))}</text>'
                         f'<rect class="{"ours" if ours else "peer"}" x="{PAD + LEFT}" y="{y}" width="{length:.1f}" height="{BAR}" rx="2"/>'
                         f'<text x="{PAD + LEFT + length + 6:.1f}" y="{y + BAR - 5}">{number(value)}</text>')
            y += BAR + GAP
        y += TITLE
    height = y - TITLE + PAD // 2
    return (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" role="img" '
            f'aria-label="Quayside and its peers: the figures of the table in docs/performance.md"><style>{STYLE}</style>\n' + "\n".join(parts) + "\n</svg>\n")


def summary(rows: list[Row]) -> str:
    """One sentence a bar, for whoever reads no table."""
    lines = []
    for row in rows:
        if row.bar is not None:
            whose = row.ours_name.removeprefix("Quayside/")
            figure = of_unit(row.ours, row.unit) if row.ratio is None else f"{number(row.ratio)} x {row.peer_name}"
            lines.append(f"- {'reached' if row.passed else '**missed**'}: {row.item} {row.what} ({whose}): {figure}, bar {cells(row)[7]}")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(prog="document.py", description=__doc__)
    parser.add_argument("figures", type=Path, help="what run.sh --json wrote")
    parser.add_argument("--docs", type=Path, default=DOCS, help="the folder with performance.md")
    options = parser.parse_args()
    measured = json.loads(options.figures.read_text())
    if measured["quick"] and options.docs == DOCS:
        raise SystemExit("error: figures of --quick mean nothing and are not written down")
    rows = [row_of(text) for text in measured["rows"]]
    page = options.docs / "performance.md"
    text = page.read_text()
    for name, content in (("conditions", conditions(measured)), ("bars", summary(rows)), ("figures", results(rows))):
        text = replaced(text, name, content)
    page.write_text(text)
    (options.docs / "performance.svg").write_text(picture(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
