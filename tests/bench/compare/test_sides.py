"""Sides are URLs or commands; loads are the same for all but those that are one server."""

from __future__ import annotations

import pytest

from mlxfleet.bench.compare.options import CompareOptions
from mlxfleet.bench.compare.seeds import Seeds
from mlxfleet.bench.compare.sides import parse_sides, sharing
from mlxfleet.bench.serve_options import ArrivalOptions
from mlxfleet.common.errors import ConfigError


def test_urls_and_commands() -> None:
    running, started = parse_sides(
        ["http://10.0.0.1:8000/", "serve --port={port} 'a b' --x {port}"]
    )
    assert (running.name, running.url, running.spec) == ("A", "http://10.0.0.1:8000", None)
    assert started.name == "B"
    assert started.spec is not None
    port = started.url.rpartition(":")[2]
    assert started.spec.command == ["serve", f"--port={port}", "a b", "--x", port]


@pytest.mark.parametrize(
    ("given", "why"),
    [
        (["http://a"], "2 to 8 sides"),
        (["http://a"] * 9, "2 to 8 sides"),
        (["http://a", "serve --port 80"], "side B: .* neither a URL nor a command with {port}"),
        (["http://a", "serve '{port}"], "side B: No closing quotation"),
    ],
)
def test_what_is_no_side(given: list[str], why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        parse_sides(given)


def test_only_sides_that_are_one_server_get_loads_of_their_own() -> None:
    sides = parse_sides(["http://a", "http://b", "http://a/"])
    assert sharing(sides) == {"A", "C"}
    seeds = Seeds(7, sharing(sides))
    assert seeds.of("1", "A") != seeds.of("1", "C")
    paired = Seeds(7, ())
    assert paired.of("1", "A") == paired.of("1", "C") != paired.of("2", "A")
    assert paired.of("1", "A") != Seeds(8, ()).of("1", "A")


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (CompareOptions(blocks=7), "--blocks must be 8 to"),
        (CompareOptions(figure=("ttft_ms.p50", "itl_ms.p99"), blocks=8), "2 verdicts .* need 9"),
        (CompareOptions(confidence=1.0), "--confidence"),
        (CompareOptions(figure=("speed",)), "--figure speed"),
        (CompareOptions(gate="1.0"), "--gate"),
        (CompareOptions(warmup_windows=13), "--warmup-limit"),
        (CompareOptions(cooldown_s=-1.0), "--cooldown-s"),
        (CompareOptions(gate_sees=0.0), "--gate-sees"),
    ],
)
def test_options_that_cannot_be_used(options: CompareOptions, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        options.checked(2, ArrivalOptions())


def test_a_sweep_or_a_fixed_warm_up_cannot_be_compared() -> None:
    for arrival in (ArrivalOptions(concurrency=(1, 8)), ArrivalOptions(warmup=8)):
        with pytest.raises(ConfigError):
            CompareOptions().checked(2, arrival)
