"""How long the stages of requests take."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from mlxfleet.common.tally import Tally
from mlxfleet.router import metric_families as families

Stage = Literal["validate", "tokenize", "admission", "route", "send", "detokenize"]


class Stages(Collector):
    """A tally per model and stage. Most are measured here; detokenizers tell of theirs."""

    def __init__(self) -> None:
        self._tallies: dict[tuple[str, Stage], Tally] = defaultdict(Tally)

    def observe(self, model: str, stage: Stage, seconds: float) -> None:
        """Record what a stage of a request for a model took."""
        self._tallies[model, stage].observe(seconds)

    @contextmanager
    def timed(self, model: str, stage: Stage) -> Iterator[None]:
        """Measure a stage, unless it fails."""
        began = time.perf_counter()
        yield
        self.observe(model, stage, time.perf_counter() - began)

    def grow(self, model: str, stage: Stage, before: Tally, now: Tally) -> None:
        """Add what another process has counted between two reports."""
        self._tallies[model, stage].grow(before, now)

    def collect(self) -> Iterator[Metric]:
        """The one family."""
        yield families.STAGE.of_buckets(
            (labels, tally.counts, tally.total_s) for labels, tally in self._tallies.items()
        )
