"""Gates: what they need shown, and what they let pass."""

from __future__ import annotations

import pytest

from mlxfleet.bench.compare.gate import Outcome, parse_gate
from mlxfleet.bench.records import Verdict
from mlxfleet.common.errors import ConfigError


def verdict(low: float, high: float, visible: float = 0.03) -> Verdict:
    return Verdict(
        side="B",
        against="A",
        figure="output_tokens_per_s",
        rounds=20,
        ratio=(low + high) / 2,
        low=low,
        high=high,
        confidence=0.99,
        verdict="",
        smallest_visible=visible,
    )


@pytest.mark.parametrize(
    ("gate", "low", "high", "outcome"),
    [
        (">=1.0", 0.99, 1.01, Outcome.PASSED),
        (">=1.0", 0.95, 0.99, Outcome.FAILED),
        (">=1.0", 1.02, 1.05, Outcome.PASSED),
        (">0.97", 0.98, 1.01, Outcome.PASSED),
        (">0.97", 0.96, 1.01, Outcome.FAILED),
        ("<= 1", 0.99, 1.01, Outcome.PASSED),
        ("<=1", 1.01, 1.02, Outcome.FAILED),
        ("<1", 0.9, 0.99, Outcome.PASSED),
        ("<1", 0.9, 1.01, Outcome.FAILED),
    ],
)
def test_decided_on_the_interval(gate: str, low: float, high: float, outcome: Outcome) -> None:
    assert parse_gate(gate, 0.1).decide(verdict(low, high)) is outcome


def test_a_run_too_noisy_to_see_anything_does_not_pass() -> None:
    noisy = verdict(0.8, 1.25, visible=0.3)
    assert parse_gate(">=1.0", 0.1).decide(noisy) is Outcome.UNDECIDED
    assert parse_gate(">=1.0", 0.3).decide(noisy) is Outcome.PASSED
    assert parse_gate(">1.0", 0.1).decide(noisy) is Outcome.FAILED


@pytest.mark.parametrize("text", ["", "1.0", "=>1", ">=", ">=nan", ">=-1", ">=0", "faster"])
def test_what_is_no_gate(text: str) -> None:
    with pytest.raises(ConfigError, match="--gate"):
        parse_gate(text, 0.1)
