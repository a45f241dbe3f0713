"""The figure that sides are compared by."""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_type_hints

from mlxfleet.bench.records import Distribution, Summary
from mlxfleet.common.errors import ConfigError

HIGHER_IS_BETTER = (
    "requests_per_s",
    "input_tokens_per_s",
    "output_tokens_per_s",
    "cached_tokens_per_s",
    "goodput_per_s",
    "within_slos",
    "fairness",
)
LOWER_IS_BETTER = ("duration_s", "longest_gap_ms")


@dataclass(frozen=True)
class Figure:
    """A field of Summary, with `.p50` and the like for distributions of times."""

    path: str

    @property
    def higher_is_better(self) -> bool:
        """Of rates and shares; times are better if they are short."""
        return self.path in HIGHER_IS_BETTER

    def of(self, summary: Summary) -> float | None:
        """Its value, which is more than 0; None if the run has none."""
        found: object = summary
        for name in self.path.split("."):
            found = getattr(found, name, None)
        return float(found) if isinstance(found, int | float) and found > 0 else None


def parse_figure(path: str) -> Figure:
    """ConfigError, with those there are, if there is no such figure."""
    if path not in all_paths():
        known = ", ".join(all_paths())
        raise ConfigError(f"--figure {path}: there is no such figure; there are {known}")
    return Figure(path)


def all_paths() -> list[str]:
    """Everything that can be compared."""
    times = [name for name, kind in get_type_hints(Summary).items() if is_distribution(kind)]
    parts = Distribution.__struct_fields__
    return [
        *HIGHER_IS_BETTER,
        *LOWER_IS_BETTER,
        *(f"{name}.{part}" for name in times for part in parts),
    ]


def is_distribution(kind: object) -> bool:
    """Whether a field's type is a distribution or nothing."""
    return kind == Distribution | None
