"""What a worker says while it loads: to its scheduler at a bounded rate, and in the log."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable

from msgspec import structs

from mlxfleet.common.load_progress import describe
from mlxfleet.common.messages import LoadProgress, LoadStage

log = logging.getLogger(__name__)

REPORT_S = 0.5
LOG_S = 10.0


class LoadReport:
    """Follows the loading of a model. `send` takes the progress: at once when a stage begins, else
    at most each REPORT_S, and never without progress."""

    def __init__(
        self,
        send: Callable[[LoadProgress], object],
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._send = send
        self._now = now
        self._progress = LoadProgress(stage="starting")
        self._stage_began_s = now()
        self._sent_s = self._logged_s = -math.inf

    @property
    def progress(self) -> LoadProgress:
        """How far it is."""
        return self._progress

    def begin(self, stage: LoadStage) -> None:
        """The next stage begins."""
        self._stage_began_s = self._now()
        self._advance(structs.replace(self._progress, stage=stage, done=0, remaining_s=None))

    def knows_model(self, *, context_length: int, total_bytes: int) -> None:
        """The configuration is read: the context in tokens, and the bytes of the weights."""
        self._advance(
            structs.replace(self._progress, context_length=context_length, total_bytes=total_bytes)
        )

    def loaded(self, size: int) -> None:
        """So many more bytes of weights are there."""
        before = self._progress
        loaded = before.loaded_bytes + size
        left = max(before.total_bytes - loaded, 0)
        spent_s = self._now() - self._stage_began_s
        self._advance(
            structs.replace(
                before,
                done=before.done + 1,
                loaded_bytes=loaded,
                remaining_s=round(spent_s / loaded * left, 1) if loaded else None,
            )
        )

    def step(self) -> None:
        """One more piece of the stage's work is done."""
        self._advance(structs.replace(self._progress, done=self._progress.done + 1))

    def _advance(self, progress: LoadProgress) -> None:
        before, self._progress = self._progress, progress
        now, new_stage = self._now(), progress.stage != before.stage
        if new_stage or now - self._sent_s >= REPORT_S:
            self._sent_s = now
            self._send(progress)
        if new_stage or now - self._logged_s >= LOG_S:
            self._logged_s = now
            log.info("%s", describe(progress))


def unreported() -> LoadReport:
    """For who loads a model with nobody to tell."""
    return LoadReport(lambda _: None)
