"""The figures behind the pictures, as tables."""

from __future__ import annotations

import re
from collections.abc import Sequence

from mlxfleet.bench.records import Distribution, Summary
from mlxfleet.bench.report.groups import Group, Load, load_of, side_of
from mlxfleet.bench.report.loaded import Loaded, LoadedComparison, LoadedRun
from mlxfleet.bench.report.markup import Markup, tag
from mlxfleet.bench.summary_figures import OUTPUT_RATE, Figure, figure_at

NUMERIC = re.compile(r"[-0-9.,%– ]*")
DISTRIBUTIONS = ("TTFT", "TPOT", "ITL", "E2E")
PARTS = ("mean", "p50", "p90", "p95", "p99", "max")
SIDE_FIGURES = [
    OUTPUT_RATE,
    *(
        figure_at(f"{name}_ms.{part}")
        for name in ("ttft", "tpot", "itl")
        for part in ("p50", "p99")
    ),
]


def table(headings: Sequence[str], rows: Sequence[Sequence[str]], caption: str) -> Markup:
    """A table; columns of numbers stand to the right."""
    right = [all(NUMERIC.fullmatch(row[i]) for row in rows) for i in range(len(headings))]

    def line(name: str, cells: Sequence[str]) -> Markup:
        scope = "col" if name == "th" else None
        classes = ("number" if is_right else None for is_right in right)
        shown = (
            tag(name, cell, class_=class_, scope=scope)
            for cell, class_ in zip(cells, classes, strict=True)
        )
        return tag("tr", *shown)

    head, body = line("th", headings), (line("td", row) for row in rows)
    return tag(
        "div",
        tag("table", tag("caption", caption), tag("thead", head), tag("tbody", *body)),
        class_="scroll",
    )


def runs_table(loaded: Loaded) -> Markup:
    """A line for each run."""
    thrown_out = loaded.thrown_out()
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
    rows = [run_cells(one, summary, thrown_out) for one, summary in loaded.finished]
    headings, rows = without_empty(headings, rows)
    return table(headings, rows, "Every run; tokens are those of requests that did not fail")


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


def times_table(loaded: Loaded) -> Markup:
    """All statistics of all times, a line for each run and kind."""
    thrown_out = loaded.thrown_out()
    rows = []
    for one, summary in loaded.finished:
        for name in DISTRIBUTIONS:
            found: Distribution | None = getattr(summary, f"{name.lower()}_ms")
            if found is not None:
                figures = (number(getattr(found, part)) for part in PARTS)
                rows.append(
                    [run_name(one, thrown_out), load_of(one.run.arrival).words, name, *figures]
                )
    return table(["run", "load", "ms", *PARTS], rows, "Times of every run, in ms")


def sides_table(group: Group) -> Markup:
    """Medians over the rounds for each side and load, and the ratio to the first side."""
    several = len(group.sides) > 1
    repeated = any(len(group.at(side, load)) > 1 for side in group.sides for load in group.loads)
    headings = [
        "load",
        *(["side"] if several else []),
        *(figure.name for figure in SIDE_FIGURES),
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
    return table(headings, rows, caption)


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


def rounds_table(found: LoadedComparison) -> Markup:
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
    headings = [
        "side",
        "pair",
        "block",
        figure_at(found.comparison.figure).name,
        "cooled before, s",
        "thrown out",
    ]
    headings, rows = without_empty(headings, rows)
    return table(headings, rows, "Every round, in the order in which they were run")


def without_empty(
    headings: Sequence[str], rows: Sequence[Sequence[str]]
) -> tuple[list[str], list[list[str]]]:
    """A table without the columns in which nothing stands."""
    kept = [i for i in range(len(headings)) if any(row[i] for row in rows)]
    return [headings[i] for i in kept], [[row[i] for i in kept] for row in rows]


def number(value: float | None) -> str:
    """With as many digits as one can trust: three or four."""
    if value is None:
        return ""
    digits = 0 if abs(value) >= 1000 else 1 if abs(value) >= 10 else 2
    return f"{value:,.{digits}f}"
