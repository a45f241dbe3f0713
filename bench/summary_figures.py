"""The figures of a run that people compare, and where they stand in its summary."""

from __future__ import annotations

from dataclasses import dataclass

from mlxfleet.bench.records import Summary


@dataclass(frozen=True)
class Figure:
    """A figure: its name, the field of Summary, with `.p50` and the like for distributions."""

    name: str
    path: str
    unit: str
    higher_is_better: bool = False

    def of(self, summary: Summary) -> float | None:
        """Its value in a run; None if the run has none."""
        value: object = summary
        for field in self.path.split("."):
            value = getattr(value, field, None)
        return float(value) if isinstance(value, (int, float)) else None


OUTPUT_RATE = Figure("output tokens/s", "output_tokens_per_s", "tok/s", higher_is_better=True)
REQUEST_RATE = Figure("requests/s", "requests_per_s", "req/s", higher_is_better=True)
GOODPUT = Figure("goodput", "goodput_per_s", "req/s", higher_is_better=True)
TIMES = [
    Figure(f"{name} {part}", f"{name.lower()}_ms.{part}", "ms")
    for name in ("TTFT", "TPOT", "ITL", "E2E")
    for part in ("p50", "p99")
]
FIGURES = [OUTPUT_RATE, REQUEST_RATE, GOODPUT, *TIMES]


def figure_at(path: str) -> Figure:
    """The figure of a path; one that is not in the list is called by it."""
    known = {figure.path: figure for figure in FIGURES}
    return known.get(path, Figure(path, path, "ms" if "_ms" in path else ""))
