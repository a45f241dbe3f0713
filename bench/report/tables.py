"""The figures behind the pictures, as tables."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from mlxfleet.bench.compare.figure import Figure
from mlxfleet.bench.records import Distribution, Summary
from mlxfleet.bench.report.figures import OUTPUT_RATE, name_of
from mlxfleet.bench.report.groups import Group, Load, load_of, side_of
from mlxfleet.bench.report.loaded import Loaded, LoadedComparison, LoadedRun
from mlxfleet.bench.report.plain_table import PlainTable
from mlxfleet.bench.report.ratios import ratios

DISTRIBUTIONS = ("TTFT", "TPOT", "ITL", "E2E")
PARTS = ("mean", "p50", "p90", "p95", "p99", "max")
SIDE_FIGURES = [
    OUTPUT_RATE,
    *(Figure(f"{name}_ms.{part}") for name in ("ttft", "tpot", "itl") for part in ("p50", "p99")),
]
MB = 1e6


def runs_table(loaded: Loaded) -> PlainTable:
    """A line for each run."""
    headings = [
        "run",
        "load",
        "requests",
        "failed",
        "req/s",
        "output tok/s",
        "input tok/s",
        "cached tok/s",
        "goodput/s",
        "within SLOs",
        "fairness",
        "longest gap, ms",
        "client CPU",
    ]
    thrown_out = loaded.thrown_out()
    rows = [run_cells(one, summary, thrown_out) for one, summary in loaded.finished]
    caption = "Every run; tokens are those of requests that did not fail"
    return PlainTable(caption, headings, rows).without_empty()


def run_cells(one: LoadedRun, summary: Summary, thrown_out: dict[str, str]) -> list[str]:
    """One line of that table."""
    return [
        run_name(one, thrown_out),
        load_of(one.run.arrival).words,
        f"{summary.requests:,}",
        ", ".join(f"{kind} {count}" for kind, count in summary.errors.items()) or "0",
        number(summary.requests_per_s),
        number(summary.output_tokens_per_s),
        number(summary.input_tokens_per_s),
        number(summary.cached_tokens_per_s),
        number(summary.goodput_per_s),
        "" if summary.within_slos is None else f"{summary.within_slos:.1%}",
        "" if summary.fairness is None else f"{summary.fairness:.3f}",
        number(summary.longest_gap_ms),
        f"{summary.client.cpu_share:.0%}",
    ]


def run_name(one: LoadedRun, thrown_out: dict[str, str]) -> str:
    """A run's side and round."""
    round_words = f", round {one.run.round}" if one.run.round else ""
    out = ", thrown out" if one.run.id in thrown_out else ""
    return f"{side_of(one.run)}{round_words}{out}"


def times_table(loaded: Loaded) -> PlainTable:
    """All statistics of all times, a line for each run and kind."""
    thrown_out = loaded.thrown_out()
    rows = []
    for one, summary in loaded.finished:
        for name in DISTRIBUTIONS:
            found: Distribution | None = getattr(summary, f"{name.lower()}_ms")
            if found is not None:
                figures = [number(getattr(found, part)) for part in PARTS]
                load = load_of(one.run.arrival)
                rows.append([run_name(one, thrown_out), load.words, name, *figures])
    return PlainTable("Times of every run, in ms", ["run", "load", "time", *PARTS], rows)


def sides_table(group: Group) -> PlainTable:
    """Medians over the rounds for each side and load, and the ratio to the first side."""
    several = len(group.sides) > 1
    repeated = any(len(group.at(side, load)) > 1 for side in group.sides for load in group.loads)
    headings = [
        "load",
        *(["side"] if several else []),
        *(name_of(figure) for figure in SIDE_FIGURES),
        *(["rounds", "range of tokens/s"] if repeated else []),
        *([f"tokens/s by {group.sides[0]}'s"] if several else []),
    ]
    rows = [
        side_cells(group, side, load, several, repeated)
        for load in group.loads
        for side in group.sides
        if group.at(side, load)
    ]
    caption = "Medians over the rounds; times in ms" if repeated else "Times in ms"
    return PlainTable(caption, headings, rows)


def side_cells(group: Group, side: str, load: Load, several: bool, repeated: bool) -> list[str]:
    """One line of that table."""
    values = group.values(OUTPUT_RATE, side, load)
    ratio = ratio_to_first(group, OUTPUT_RATE, side, load)
    return [
        load.words,
        *([side] if several else []),
        *(number(group.median(figure, side, load)) for figure in SIDE_FIGURES),
        *([str(len(values)), value_range(values)] if repeated else []),
        *(["" if ratio is None else f"{ratio:.2f}"] if several else []),
    ]


def value_range(values: Sequence[float]) -> str:
    """From the lowest to the highest."""
    return f"{number(min(values))} – {number(max(values))}" if values else ""


def ratio_to_first(group: Group, figure: Figure, side: str, load: Load) -> float | None:
    """A side's median by the first side's."""
    own, base = (group.median(figure, name, load) for name in (side, group.sides[0]))
    return own / base if own is not None and base else None


def ratios_table(group: Group, ours: str) -> PlainTable:
    """Our figures by those of whoever is best in them."""
    rows = [
        [
            ratio.load.words,
            name_of(ratio.figure),
            f"{ratio.value:.2f}",
            "higher" if ratio.figure.higher_is_better else "lower",
            ratio.best_side,
        ]
        for ratio in ratios(group, ours)
    ]
    headings = ["load", "figure", "ratio", "better is", "best of the others"]
    return PlainTable(f"{ours} / best of the others, medians", headings, rows)


def starts_table(loaded: Loaded) -> PlainTable:
    """How long each server takes to start, and what its processes hold after their last load."""
    rows = []
    for side in dict.fromkeys(start.side for start in loaded.starts):
        ready = [
            start.ready_s
            for start in loaded.starts
            if start.side == side and start.ready_s is not None
        ]
        uses = [one.use for one in loaded.runs if one.run.side == side and one.use is not None]
        processes = uses[-1].processes if uses else []
        rows.append(
            [
                side,
                f"{median(ready):.1f}" if ready else "",
                f"{sum(use.rss_bytes for use in processes) / MB:,.0f}" if processes else "",
                ", ".join(f"{use.name} {use.rss_bytes / MB:,.0f}" for use in processes),
            ]
        )
    headings = ["server", "ready after, s", "MB", "of which, MB"]
    return PlainTable("Start, and resident memory after the last load", headings, rows)


def verdicts_table(found: LoadedComparison) -> PlainTable:
    """What a comparison found."""
    rows = [
        [
            name_of(Figure(one.figure)),
            f"{one.side} / {one.against}",
            one.verdict,
            f"{one.ratio:.3f}",
            f"{one.low:.3f} – {one.high:.3f}",
            f"{one.confidence:.4g}",
            f"{one.smallest_visible:.1%}",
            str(one.rounds),
        ]
        for one in found.verdicts
    ]
    headings = [
        "figure",
        "sides",
        "verdict",
        "ratio",
        "interval",
        "confidence",
        "would have shown",
        "rounds of each",
    ]
    sides = "; ".join(f"{name} is {given}" for name, given in found.comparison.sides.items())
    return PlainTable(f"{sides}. Ratios of more than 1 are better", headings, rows)


def rounds_table(found: LoadedComparison) -> PlainTable:
    """A line for each round of a comparison."""
    rows = [
        [
            one.side,
            str(one.number),
            str(one.block),
            number(one.value),
            number(one.cooled_s),
            one.thrown_out,
        ]
        for one in found.rounds
    ]
    figure = name_of(Figure(found.comparison.figure))
    headings = ["side", "round", "block", figure, "cooled before, s", "thrown out"]
    caption = "Every turn, in the order in which they were"
    return PlainTable(caption, headings, rows).without_empty()


def number(value: float | None) -> str:
    """With as many digits as one can trust: three or four."""
    if value is None:
        return ""
    digits = 0 if abs(value) >= 1000 else 1 if abs(value) >= 10 else 2
    return f"{value:,.{digits}f}"
