"""The whole report: one HTML page that needs nothing else."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from mlxfleet.bench.compare.figure import Figure
from mlxfleet.bench.records import Summary, Verdict
from mlxfleet.bench.report.cautions import cautions
from mlxfleet.bench.report.curves import curves
from mlxfleet.bench.report.distributions import distributions
from mlxfleet.bench.report.facts import Fact, facts
from mlxfleet.bench.report.figures import name_of
from mlxfleet.bench.report.forest import forests
from mlxfleet.bench.report.groups import Group, groups_of, in_words
from mlxfleet.bench.report.loaded import Loaded
from mlxfleet.bench.report.markup import Markup, join, tag
from mlxfleet.bench.report.method import method
from mlxfleet.bench.report.plain_table import html_table
from mlxfleet.bench.report.style import style
from mlxfleet.bench.report.tables import (
    number,
    rounds_table,
    runs_table,
    sides_table,
    starts_table,
    times_table,
)
from mlxfleet.bench.report.timeline import timeline

Draw = Callable[[Group], list[Markup]]


def page(loaded: Loaded, title: str) -> str:
    """The report as HTML."""
    groups = groups_of(loaded)
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("title", title),
        tag("style", Markup(style())),
    )
    body = tag(
        "main",
        tag("h1", title),
        tag("p", overview(loaded), class_="under"),
        warnings(cautions(loaded)),
        *(verdict_card(verdict) for found in loaded.comparisons for verdict in found.verdicts),
        tiles(groups),
        *(group_section(group, len(groups) > 1) for group in groups),
        section(
            "Paired ratios",
            forests(loaded),
            *(html_table(rounds_table(one)) for one in loaded.comparisons),
        ),
        section("Over time", timeline(loaded.runs, loaded.thrown_out())),
        section("Every run", every_run(loaded)),
        section("How it was measured", [tag("p", paragraph) for paragraph in method(loaded)]),
        section("With what", [fact_list(facts(loaded))]),
    )
    return "<!doctype html>\n" + tag("html", head, tag("body", body), lang="en") + "\n"


def overview(loaded: Loaded) -> str:
    """A line under the title."""
    runs = [one.run for one in loaded.runs]
    requests = sum(summary.requests for _, summary in loaded.finished)
    day = min((run.began for run in runs), default="")[:10]
    machines = dict.fromkeys(run.machine.processor for run in runs)
    return " · ".join(
        filter(None, [day, f"{len(runs)} runs", f"{requests:,} requests", ", ".join(machines)])
    )


def section(title: str, parts: Sequence[Markup], *more: Markup) -> Markup | None:
    """A part of the page with its heading; None if there is nothing in it."""
    if not parts and not more:
        return None
    return tag("section", tag("h2", title), *parts, *more)


def every_run(loaded: Loaded) -> list[Markup]:
    """The tables of all runs, and of the servers that were started for them."""
    tables = [runs_table(loaded), times_table(loaded), starts_table(loaded)]
    return [html_table(table) for table in tables if table.rows]


def warnings(sentences: Sequence[str]) -> Markup | None:
    """What has to be known first."""
    if not sentences:
        return None
    items = (tag("li", sentence) for sentence in sentences)
    return tag(
        "div",
        tag("b", "Before believing these figures"),
        tag("ul", *items),
        class_="caution",
        role="note",
    )


VERDICTS = {
    "faster": "is faster than",
    "slower": "is slower than",
}


def verdict_card(verdict: Verdict) -> Markup:
    """What a comparison found."""
    name, sure = name_of(Figure(verdict.figure)), percent(verdict.confidence)
    if (words := VERDICTS.get(verdict.verdict)) is not None:
        claim = f"{verdict.side} {words} {verdict.against}"
    else:
        claim = f"No difference shown between {verdict.side} and {verdict.against}"
    return tag(
        "div",
        tag("p", claim, class_="word"),
        tag(
            "p",
            f"Ratio of {name}: {verdict.ratio:.3f}, {sure} interval {verdict.low:.3f} to"
            f" {verdict.high:.3f}, from {verdict.rounds} rounds of each; more than 1 is better."
            f" A difference of {verdict.smallest_visible:.1%} would have shown in 80 of 100"
            " comparisons like this.",
        ),
        class_="verdict",
    )


def percent(share: float) -> str:
    """With as many digits as it needs: 95%, 99.5%."""
    return f"{100 * share:.4g}%"


def tiles(groups: Sequence[Group]) -> Markup | None:
    """The figures of a single run, large."""
    if len(groups) != 1 or len(groups[0].runs) != 1:
        return None
    summary = groups[0].runs[0][1]
    cards = (
        tag("div", tag("b", value), tag("span", name), class_="tile")
        for name, value in single_figures(summary)
        if value
    )
    return tag("div", *cards, class_="tiles")


def single_figures(summary: Summary) -> list[tuple[str, str]]:
    """Names and values."""
    times = [
        (f"{name} {part}, ms", number(Figure(f"{name.lower()}_ms.{part}").of(summary)))
        for name in ("TTFT", "TPOT")
        for part in ("p50", "p99")
    ]
    return [
        ("output tokens/s", number(summary.output_tokens_per_s)),
        ("requests/s", number(summary.requests_per_s)),
        ("goodput, requests/s", number(summary.goodput_per_s)),
        *times,
        ("longest gap, ms", number(summary.longest_gap_ms)),
        ("failed requests", f"{summary.requests - summary.completed:,}"),
    ]


def group_section(group: Group, named: bool) -> Markup:
    """Pictures and table of runs that belong together."""
    words = in_words(group.data.items())
    title = f"{group.model}: {', '.join(group.sides)}" if named else "Latency and throughput"
    large, small = curves(group), distributions(group)
    return tag(
        "section",
        tag("h2", title),
        tag("p", words, class_="under") if words else None,
        html_table(sides_table(group)) if len(group.sides) > 1 or len(group.loads) > 1 else None,
        tag("div", *large, class_="pictures large") if large else None,
        tag("h3", "Distributions") if small else None,
        tag("div", *small, class_="pictures") if small else None,
    )


def fact_list(known: Sequence[Fact]) -> Markup:
    """Names and what is so."""
    return tag("dl", join([join((tag("dt", name), tag("dd", value))) for name, value in known]))
