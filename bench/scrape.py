"""What a server's /metrics say."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from mlxfleet.bench.servers import ServerError


class Scrape:
    """Metrics at one time."""

    def __init__(self, text: str) -> None:
        families = text_string_to_metric_families(text)
        self._samples = [sample for family in families for sample in family.samples]

    def value(self, name: str, **labels: str) -> float:
        """One sample; ServerError if it is not there."""
        for sample in self._samples:
            if sample.name == name and labels.items() <= sample.labels.items():
                return float(sample.value)
        raise ServerError(f"there is no metric {name} {labels}")

    def total(self, name: str) -> float:
        """The sum of a metric's samples."""
        return sum(float(sample.value) for sample in self._samples if sample.name == name)

    def quantile_s(self, name: str, share: float, **labels: str) -> float:
        """Upper border of the histogram's bucket in which a share of the observations ends."""
        wanted = share * self.value(f"{name}_count", **labels)
        buckets = [
            (float(sample.labels["le"]), sample.value)
            for sample in self._samples
            if sample.name == f"{name}_bucket" and labels.items() <= sample.labels.items()
        ]
        return min(border for border, count in buckets if count >= wanted)
