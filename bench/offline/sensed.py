"""What the machine's sensors said while a border was measured, which is several runs."""

from __future__ import annotations

import time

import msgspec

from mlxfleet.bench.records import Sample


class Sensed:
    """Samples since now."""

    def __init__(self) -> None:
        self._began = time.perf_counter()
        self._samples: list[Sample] = []

    def add(self, sample: Sample) -> None:
        """One more, at a time since the beginning."""
        self._samples.append(sample)

    def of_run(self, run: str, duration_s: float) -> list[Sample]:
        """Those of a run that has just ended, at times since its start, and the last before it,
        which is what was known when it began: a run may be shorter than the time between two."""
        start_s = time.perf_counter() - self._began - duration_s
        before = sum(sample.at_s < start_s for sample in self._samples)
        return [
            msgspec.structs.replace(sample, run=run, at_s=max(sample.at_s - start_s, 0.0))
            for sample in self._samples[max(before - 1, 0) :]
        ]
