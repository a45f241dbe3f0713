"""The ratio of two sides in every block of a comparison."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean, median

from mlxfleet.bench.compare.figure import Figure
from mlxfleet.bench.records import Round, Summary, Verdict
from mlxfleet.bench.report.figures import FIGURES
from mlxfleet.bench.report.loaded import Loaded, LoadedComparison


@dataclass(frozen=True)
class Ratio:
    """Of a side's figure to the first side's, so arranged that more than 1 is better: of a block,
    or of a round that was thrown out."""

    block: int
    value: float
    thrown_out: str = ""


@dataclass(frozen=True)
class Row:
    """A figure with its ratios, and what was found if it is one of those that were compared."""

    figure: Figure
    ratios: list[Ratio]
    verdict: Verdict | None = None

    @property
    def middle(self) -> float | None:
        """The verdict's ratio, or else the median of the blocks."""
        if self.verdict is not None:
            return self.verdict.ratio
        counted = [ratio.value for ratio in self.ratios if not ratio.thrown_out]
        return median(counted) if counted else None


def rows_of(loaded: Loaded, found: LoadedComparison, side: str) -> list[Row]:
    """A side against the first: the figures that were compared, then the others that both have."""
    verdicts = {one.figure: one for one in found.verdicts if one.side == side}
    paths = dict.fromkeys([*verdicts, *(figure.path for figure in FIGURES)])
    summaries = {one.run.id: summary for one, summary in loaded.finished}
    against = next(iter(found.comparison.sides))
    rows = [
        Row(figure, ratios_of(found.rounds, summaries, figure, (side, against)), verdicts.get(path))
        for path, figure in ((path, Figure(path)) for path in paths)
    ]
    return [row for row in rows if row.ratios]


def ratios_of(
    rounds: Sequence[Round],
    summaries: dict[str, Summary],
    figure: Figure,
    sides: tuple[str, str],
) -> list[Ratio]:
    """Of each block the geometric mean over its rounds; rounds that were thrown out for
    themselves."""
    blocks: dict[int, list[float]] = {}
    out = []
    for own, base in pairs(rounds, *sides):
        value, against = (
            figure.of(summaries[one.run]) if one.run in summaries else None for one in (own, base)
        )
        if value is None or against is None:
            continue
        log = math.log(value / against) * (1 if figure.higher_is_better else -1)
        if why := own.thrown_out or base.thrown_out:
            out.append(Ratio(own.block, math.exp(log), why))
        else:
            blocks.setdefault(own.block, []).append(log)
    return [Ratio(block, math.exp(fmean(logs))) for block, logs in blocks.items()] + out


def pairs(rounds: Iterable[Round], side: str, against: str) -> list[tuple[Round, Round]]:
    """Both sides' turns in the same round. A round that was thrown out has its number again when it
    is repeated; the turns of each time are in the order in which they were."""
    turns: dict[tuple[str, int, bool], list[Round]] = {}
    for one in rounds:
        turns.setdefault((one.side, one.number, bool(one.thrown_out)), []).append(one)
    return [
        pair
        for (name, number, out), own in turns.items()
        if name == side
        for pair in zip(own, turns.get((against, number, out), []), strict=False)
    ]
