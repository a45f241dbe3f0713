"""How a node's weight follows the condition of its machine."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxfleet.common.messages import Telemetry
from mlxfleet.router.weights import FLOOR, HOLD_S, RISE_PER_S, Weights, condition
from tests.router.reports import node_status

REPORT_S = 0.25


class Nodes:
    """Nodes that report four times a second."""

    def __init__(self, *, wanted: bool = True) -> None:
        self.now = 0.0
        self.weights = Weights(wanted=wanted)

    def report(
        self, name: str, slowdown: float = 1.0, seconds: float = REPORT_S, **sensors: int
    ) -> None:
        status = node_status(name=name, slowdown=slowdown, telemetry=Telemetry(**sensors))
        end = self.now + seconds
        while self.now < end:
            self.weights.report(status, self.now)
            self.now += REPORT_S

    def weight(self, name: str) -> float:
        """Beside one that is well."""
        return self.weights.among([name, "well"])[name]


@pytest.mark.parametrize(
    ("slowdown", "sensors", "weight"),
    [
        (1.0, {}, 1.0),
        (1.05, {}, 1.0),
        (1.43, {}, 0.7),
        (50.0, {}, FLOOR),
        (1.0, {"memory_pressure": 1}, 0.7),
        (1.0, {"memory_pressure": 2}, 0.25),
        (1.0, {"thermal_state": 3, "memory_pressure": 0}, 0.5),
        (1.25, {"thermal_state": 2}, 0.8),
        (4.0, {"thermal_state": 1, "memory_pressure": 1}, 0.25),
        (1.0, {"thermal_state": 7}, 0.5),
    ],
)
def test_the_worst_sign_counts(slowdown: float, sensors: dict[str, int], weight: float) -> None:
    found = condition(slowdown, Telemetry(**sensors))  # type: ignore[arg-type]
    assert found == pytest.approx(weight, rel=0.01)


def test_without_telemetry_slowdown_alone_counts() -> None:
    assert condition(2.0, None) == 0.5


def test_a_weight_falls_at_once() -> None:
    nodes = Nodes()
    nodes.report("hot", seconds=5.0)
    nodes.report("hot", slowdown=2.0)
    assert nodes.weight("hot") == 0.5


def test_it_rises_slowly_after_a_while() -> None:
    nodes = Nodes()
    nodes.report("hot", slowdown=2.0)
    nodes.report("hot", seconds=HOLD_S)
    assert nodes.weight("hot") == 0.5
    nodes.report("hot", seconds=5.0)
    assert nodes.weight("hot") == pytest.approx(0.5 + 5 * RISE_PER_S, abs=0.05)
    nodes.report("hot", seconds=20.0)
    assert nodes.weight("hot") == 1.0


def test_trouble_that_comes_again_and_again_keeps_it_down() -> None:
    nodes = Nodes()
    for _ in range(10):
        nodes.report("swaps", slowdown=4.0, seconds=1.0)
        assert nodes.weight("swaps") == 0.25
        nodes.report("swaps", seconds=3.0)
        assert nodes.weight("swaps") == 0.25


def test_it_recovers_to_what_the_machine_can_do() -> None:
    nodes = Nodes()
    nodes.report("hot", slowdown=2.0)
    nodes.report("hot", slowdown=1.25, seconds=60.0)
    assert nodes.weight("hot") == pytest.approx(0.8, rel=0.06)


def test_the_best_of_those_that_share_work_has_all_its_weight() -> None:
    nodes = Nodes()
    nodes.report("hot", slowdown=2.0)
    nodes.report("hotter", slowdown=4.0)
    assert nodes.weights.among(["hot", "hotter"]) == {"hot": 1.0, "hotter": 0.5}
    assert nodes.weights.among(["hotter"]) == {"hotter": 1.0}
    assert nodes.weights.among([]) == {}


def test_who_is_forgotten_or_unwanted_has_all() -> None:
    nodes = Nodes()
    nodes.report("hot", slowdown=2.0)
    nodes.weights.keep({"well"})
    assert nodes.weight("hot") == 1.0
    off = Nodes(wanted=False)
    off.report("hot", slowdown=2.0)
    assert off.weight("hot") == 1.0


@given(
    st.lists(
        st.tuples(
            st.sampled_from("abc"),
            st.floats(1, 1e6),
            st.one_of(st.none(), st.integers(0, 2)),
            st.one_of(st.none(), st.integers(0, 3)),
        )
    )
)
def test_nobody_is_starved(reports: list[tuple[str, float, int | None, int | None]]) -> None:
    weights = Weights()
    for second, (name, slowdown, pressure, thermal) in enumerate(reports):
        telemetry = Telemetry(memory_pressure=pressure, thermal_state=thermal)
        status = node_status(name=name, slowdown=slowdown, telemetry=telemetry)
        weights.report(status, float(second))
    values = weights.among("abc").values()
    assert max(values) == 1.0
    assert min(values) >= FLOOR
