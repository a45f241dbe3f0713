"""Speed over time, above what the machine's sensors said meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise

from mlxfleet.bench.report.axis import Axis, axis_for
from mlxfleet.bench.report.frame import (
    Frame,
    Point,
    area,
    colour,
    curve,
    figure,
    label,
    legend,
    legend_height,
    picture,
    steps,
)
from mlxfleet.bench.report.groups import load_of, side_of
from mlxfleet.bench.report.loaded import LoadedRun, successes
from mlxfleet.bench.report.markup import Markup, tag
from mlxfleet.common.messages import Telemetry

WIDTH = 1100.0
LEFT, RIGHT, TOP = 60.0, 1085.0, 30.0
SPEED_HEIGHT, PANEL_HEIGHT, BETWEEN, FOOT = 190.0, 84.0, 34.0, 44.0
BINS = 220
LEAST_BIN_S = 0.1
# A longer silence of a sensor breaks its line.
GAP_S = 15.0
CHARACTER = 6.4
# Above the highest speed, for the names of runs.
HEADROOM = 1.12

Reading = Callable[[Telemetry], float | None]


@dataclass(frozen=True)
class Panel:
    """Sensors that share an axis: the name of each, and how it is read. Levels keep their value
    until the next reading."""

    label: str
    readings: dict[str, Reading]
    levels: bool = False
    highest: float | None = None
    """The end of the axis, which begins at 0 then."""


PANELS = [
    Panel(
        "temperature, °C",
        {"CPU": lambda t: t.cpu_temperature_c, "GPU": lambda t: t.gpu_temperature_c},
    ),
    Panel(
        "power, W",
        {
            "CPU": lambda t: t.cpu_power_w,
            "GPU": lambda t: t.gpu_power_w,
            "whole machine": lambda t: t.total_power_w,
        },
    ),
    Panel(
        "frequency, GHz",
        {
            "CPU": lambda t: giga(t.cpu_frequency_hz),
            "GPU": lambda t: giga(t.gpu_frequency_hz),
        },
    ),
    Panel(
        "state: 0 normal",
        {
            "memory pressure": lambda t: t.memory_pressure,
            "thermal state": lambda t: t.thermal_state,
        },
        levels=True,
        highest=3.0,
    ),
    Panel(
        "memory, GB",
        {
            "used": lambda t: giga(t.memory_used_bytes),
            "wired": lambda t: giga(t.wired_bytes),
            "swapped out": lambda t: giga(t.swap_used_bytes),
        },
    ),
    Panel(
        "utilization, %",
        {
            "CPU": lambda t: percent(t.cpu_utilization),
            "GPU": lambda t: percent(t.gpu_utilization),
        },
        highest=100.0,
    ),
]


@dataclass(frozen=True)
class Track:
    """A sensor's readings in the order of time, in s since the first run began."""

    name: str
    points: list[Point]


@dataclass(frozen=True)
class Span:
    """When a run was, in s since the first run began; a bin of its tokens is `bin_s` long."""

    one: LoadedRun
    start_s: float
    end_s: float

    def speed(self, bin_s: float) -> list[Point]:
        """Output tokens/s at the start of each bin, and at the end of the last one. A run that is
        shorter than a bin is a bin of its own; what is left at the end of a longer one is not
        shown, where it would look like a fall."""
        length_s = self.end_s - self.start_s
        bin_s = min(bin_s, length_s) or bin_s
        counts = [0.0] * max(1, int(length_s / bin_s))
        for request in successes(self.one.requests):
            chunks = len(request.token_times_s)
            each = (request.output_tokens or chunks) / chunks if chunks else 0.0
            for time_s in request.token_times_s:
                place = int((request.sent_s + time_s) / bin_s)
                if 0 <= place < len(counts):
                    counts[place] += each
        points = [(self.start_s + i * bin_s, count / bin_s) for i, count in enumerate(counts)]
        return [*points, (points[-1][0] + bin_s, points[-1][1])]


def timeline(runs: Sequence[LoadedRun], thrown_out: dict[str, str]) -> list[Markup]:
    """One picture of runs that followed each other; none without any token."""
    spans = spans_of(runs)
    if not any(r.token_times_s for span in spans for r in span.one.requests):
        return []
    tracks = [(panel, found) for panel in PANELS if (found := tracks_of(panel, spans))]
    words = "Output tokens/s over the whole time" + (
        ", above what the machine's sensors said." if tracks else "; no sensor was read."
    )
    return [figure(draw(spans, tracks, thrown_out), words, wide=True)]


def spans_of(runs: Sequence[LoadedRun]) -> list[Span]:
    """When each run was."""
    starts = {id(one): datetime.fromisoformat(one.run.began).timestamp() for one in runs}
    first = min(starts.values(), default=0.0)
    spans = []
    for one in sorted(runs, key=lambda one: starts[id(one)]):
        start_s = starts[id(one)] - first
        spans.append(Span(one, start_s, start_s + length_s(one)))
    return spans


def length_s(one: LoadedRun) -> float:
    """How long a run was, also one without summary."""
    ends = [request.sent_s + request.duration_s for request in one.requests]
    return max(ends or [sample.at_s for sample in one.samples], default=0.0)


def tracks_of(panel: Panel, spans: Sequence[Span]) -> list[Track]:
    """What a panel's sensors said, of each machine that has them."""
    found: dict[str, list[Point]] = {}
    for span in spans:
        for sample in span.one.samples:
            for name, reading in panel.readings.items():
                if (value := reading(sample.telemetry)) is not None:
                    full = f"{sample.node} {name}".strip()
                    found.setdefault(full, []).append((span.start_s + sample.at_s, value))
    return [Track(name, sorted(points)) for name, points in found.items()]


def draw(
    spans: Sequence[Span],
    tracks: Sequence[tuple[Panel, list[Track]]],
    thrown_out: dict[str, str],
) -> Markup:
    """The picture: speed on top, a panel for each kind of sensor below."""
    end_s = max(span.end_s for span in spans) or 1.0
    x = Axis("s since the first run began", 0.0, end_s, count=10)
    bin_s = max(LEAST_BIN_S, end_s / BINS)
    sides = list(dict.fromkeys(side_of(span.one.run) for span in spans))
    speeds = [span.speed(bin_s) for span in spans]
    top, bottom = TOP, TOP + SPEED_HEIGHT
    highest = [speed for points in speeds for _, speed in points]
    room = HEADROOM * max(highest, default=0.0)
    speed_axis = axis_for([*highest, room], "output tokens/s", zero=True, log=False)
    frame = Frame(x, speed_axis, LEFT, top, RIGHT, bottom)
    parts: list[str] = []
    total = bottom + sum(PANEL_HEIGHT + BETWEEN + 4 for _ in tracks)
    parts += [band(frame, span, total, number, thrown_out) for number, span in enumerate(spans)]
    parts.append(frame.grid(x_labels=not tracks))
    for span, points in zip(spans, speeds, strict=True):
        series = sides.index(side_of(span.one.run))
        pixels = steps([frame.at(*point) for point in points])
        parts.append(area(pixels, frame.bottom, f"fill {colour(series)}"))
        parts.append(curve(pixels, f"line thin {colour(series)}"))
    for place, (panel, found) in enumerate(tracks):
        top = bottom + BETWEEN + 4
        bottom = top + PANEL_HEIGHT
        parts.append(draw_panel(panel, found, x, top, bottom, last=place == len(tracks) - 1))
    names = [(side, f"line {colour(number)}") for number, side in enumerate(sides)]
    foot = bottom + FOOT
    height = foot + (legend_height(sides, RIGHT - LEFT) if len(sides) > 1 else 0)
    key = legend(names, LEFT, foot + 8, RIGHT - LEFT) if len(sides) > 1 else ""
    return picture("Output tokens/s over time", describe(spans), WIDTH, height, *parts, key)


def band(
    frame: Frame, span: Span, bottom: float, number: int, thrown_out: dict[str, str]
) -> Markup:
    """The background of a run, with its load if there is room for it."""
    left, right = frame.across(span.start_s), frame.across(span.end_s)
    run = span.one.run
    why = thrown_out.get(run.id)
    words = f"{side_of(run)}, {load_of(run.arrival).words}, round {run.round}"
    short_words = f"{load_of(run.arrival).words}{' thrown out' if why else ''}"
    fits = CHARACTER * len(short_words) < right - left
    return tag(
        "g",
        tag("title", words + (f", thrown out: {why}" if why else "")),
        tag(
            "rect",
            x=left,
            y=frame.top,
            width=max(right - left, 0.5),
            height=bottom - frame.top,
            class_="thrown" if why else f"band{number % 2}",
        ),
        label((left + right) / 2, frame.top + 13, short_words, "tick") if fits else None,
    )


def draw_panel(
    panel: Panel, found: Sequence[Track], x: Axis, top: float, bottom: float, *, last: bool
) -> Markup:
    """One kind of sensor."""
    values = [value for track in found for _, value in track.points]
    if panel.highest is None:
        far = min(values) < max(values) / 3
        y = axis_for(values, panel.label, log=False, zero=far)
    else:
        y = Axis(panel.label, 0.0, panel.highest)
    frame = Frame(x, Axis(y.label, y.low, y.high, count=3), LEFT, top, RIGHT, bottom)
    parts: list[str] = [frame.grid(x_labels=last)]
    for number, track in enumerate(found):
        for piece in pieces(track.points):
            pixels = [frame.at(*point) for point in piece]
            parts.append(
                curve(steps(pixels) if panel.levels else pixels, f"line thin {colour(number)}")
            )
    names = [(track.name, f"line {colour(number)}") for number, track in enumerate(found)]
    parts.append(legend(names, LEFT + 180, top - 8, RIGHT - LEFT - 180))
    return tag("g", *parts)


def pieces(points: Sequence[Point]) -> list[list[Point]]:
    """Readings without the long silences between them."""
    found = [[points[0]]]
    for before, point in pairwise(points):
        if point[0] - before[0] > GAP_S:
            found.append([])
        found[-1].append(point)
    return found


def describe(spans: Sequence[Span]) -> str:
    """The picture in words."""
    words = []
    for span in spans:
        run, summary = span.one.run, span.one.summary
        rate = f"{summary.output_tokens_per_s:,.1f} tokens/s" if summary else "cut short"
        words.append(
            f"{side_of(run)}, {load_of(run.arrival).words}, from {span.start_s:.0f} to"
            f" {span.end_s:.0f} s: {rate}."
        )
    return " ".join(words)


def giga(value: float | None) -> float | None:
    """In billions."""
    return None if value is None else value / 1e9


def percent(share: float | None) -> float | None:
    """Of a share."""
    return None if share is None else 100 * share
