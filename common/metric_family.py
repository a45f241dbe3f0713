"""Families of metrics, declared once for whoever records them, documents them or asks for them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import accumulate
from types import ModuleType
from typing import Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric

Kind = Literal["counter", "gauge", "histogram"]

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
PASS_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1, 2, 5)
COUNTS = (0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)


@dataclass(frozen=True)
class Family:
    """A metric's name as it is exposed (counters end in `_total`), kind, meaning and labels, and
    for a histogram the upper borders of its buckets."""

    name: str
    kind: Kind
    text: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()

    def counter(self, registry: CollectorRegistry) -> Counter:
        """To be counted up where things happen."""
        return Counter(self.name, self.text, self.labels, registry=registry)

    def gauge(self, registry: CollectorRegistry) -> Gauge:
        """To be set, or to ask a function."""
        return Gauge(self.name, self.text, self.labels, registry=registry)

    def histogram(self, registry: CollectorRegistry) -> Histogram:
        """To be observed where things happen."""
        return Histogram(self.name, self.text, self.labels, buckets=self.buckets, registry=registry)

    def of(self, samples: Iterable[tuple[tuple[str, ...], float]]) -> Metric:
        """Label values and value of each sample, for what is read at scrape time."""
        family: CounterMetricFamily | GaugeMetricFamily
        if self.kind == "counter":
            family = CounterMetricFamily(self.name, self.text, labels=self.labels)
        else:
            family = GaugeMetricFamily(self.name, self.text, labels=self.labels)
        for labels, value in samples:
            family.add_metric(labels, float(value))
        return family

    def of_buckets(self, samples: Iterable[tuple[tuple[str, ...], list[int], float]]) -> Metric:
        """Label values, observations per bucket (one more than borders) and sum of each sample."""
        family = HistogramMetricFamily(self.name, self.text, labels=self.labels)
        for labels, counts, total in samples:
            borders = (*(str(float(border)) for border in self.buckets), "+Inf")
            buckets = list(zip(borders, accumulate(counts), strict=True))
            family.add_metric(labels, buckets=buckets, sum_value=total)
        return family


def counter(name: str, text: str, *labels: str) -> Family:
    """A family that only grows."""
    return Family(name, "counter", text, labels)


def gauge(name: str, text: str, *labels: str) -> Family:
    """A family that goes up and down."""
    return Family(name, "gauge", text, labels)


def histogram(name: str, text: str, *labels: str, buckets: tuple[float, ...] = SECONDS) -> Family:
    """A family of distributions."""
    return Family(name, "histogram", text, labels, buckets)


def families_of(module: ModuleType) -> list[Family]:
    """Those that a module declares, in its order."""
    return [value for value in vars(module).values() if isinstance(value, Family)]
