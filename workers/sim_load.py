"""The loading of a simulated model: nothing is read, but it takes its time and reports progress."""

from __future__ import annotations

import time
from collections.abc import Callable

from mlxfleet.common.messages import ModelInfo
from mlxfleet.workers.load_report import LoadReport
from mlxfleet.workers.sim_faults import Faults

STEP_S = 0.05


class SimLoad:
    """Loads for `load_s` seconds. Whoever runs it calls `turn` until that is over; a node that the
    faults file lets hang gets no further meanwhile."""

    def __init__(
        self,
        model: ModelInfo,
        load_s: float,
        faults: Faults,
        report: LoadReport,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._bytes_per_s = model.weights_bytes / load_s if load_s else 0.0
        self._left_s = load_s
        self._faults = faults
        self._report = report
        self._clock = clock
        self._before_s = clock()
        report.knows_model(context_length=model.context_length, total_bytes=model.weights_bytes)
        report.begin("reading")

    def turn(self) -> float:
        """Load on; the seconds until the next turn, 0 when the model is loaded."""
        now = self._clock()
        self._faults.look(now)
        if not self._faults.now.hang:
            spent_s = min(now - self._before_s, self._left_s)
            self._left_s -= spent_s
            if spent_s:
                self._report.loaded(round(spent_s * self._bytes_per_s))
        self._before_s = now
        if self._left_s <= 0:
            return 0.0
        return STEP_S if self._faults.now.hang else min(STEP_S, self._left_s)
