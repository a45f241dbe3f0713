"""One side against the best of the others."""

from __future__ import annotations

from dataclasses import dataclass

from mlxfleet.bench.compare.figure import Figure
from mlxfleet.bench.report.figures import OUTPUT_RATE
from mlxfleet.bench.report.groups import Group, Load

COMPARED = [
    OUTPUT_RATE,
    *(Figure(path) for path in ("ttft_ms.p50", "ttft_ms.p99", "itl_ms.p50", "itl_ms.p99")),
]


@dataclass(frozen=True)
class Ratio:
    """A side's median by that of the side that is best in this figure."""

    figure: Figure
    load: Load
    best_side: str
    value: float


def ratios(group: Group, ours: str) -> list[Ratio]:
    """For each load and figure; none without another side."""
    found = []
    for load in group.loads:
        for figure in COMPARED:
            others = [
                (value, side)
                for side in group.sides
                if side != ours and (value := group.median(figure, side, load)) is not None
            ]
            own = group.median(figure, ours, load)
            if not others or own is None:
                continue
            best, side = max(others) if figure.higher_is_better else min(others)
            if best:
                found.append(Ratio(figure, load, side, own / best))
    return found
