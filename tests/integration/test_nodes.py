"""Several nodes behind one router: one is lost under streams, and they go on on another."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.integration.fleet import Fleet, wait_for
from tests.integration.streams import KILL_AFTER_CHUNKS, MAX_TOKENS, STREAMS, Stream, make_streams

NODES = ["node-0", "node-1"]


@pytest.fixture(scope="module")
def two_nodes(tiny_model: Path) -> Iterator[Fleet]:
    # By default prompts that begin alike would share a node.
    spread = ["--nodes", "2", "--routing", "least_loaded"]
    with Fleet("--model", str(tiny_model), "--memory-gb", "1", *spread) as fleet:
        wait_for(
            lambda: all(fleet.metric("mlxfleet_node_ready", node=node) for node in NODES),
            "both nodes",
        )
        yield fleet


@pytest.fixture(scope="module")
def undisturbed(two_nodes: Fleet) -> list[Stream]:
    streams = make_streams()
    with ThreadPoolExecutor(STREAMS) as pool:
        list(pool.map(lambda stream: stream.run(two_nodes), streams))
    return streams


def test_both_nodes_work(two_nodes: Fleet, undisturbed: list[Stream]) -> None:
    assert all(stream.completion_tokens == MAX_TOKENS for stream in undisturbed)
    assert all(two_nodes.metric("mlxfleet_prefilled_tokens_total", node=node) for node in NODES)


@pytest.mark.parametrize("victims", [["scheduler-0"], ["worker-1"], ["worker-0", "scheduler-0"]])
def test_streams_of_a_node_that_hangs_go_on_on_another(
    two_nodes: Fleet, undisturbed: list[Stream], victims: list[str]
) -> None:
    before = two_nodes.metric("mlxfleet_failovers_total")
    streams = make_streams()
    stopped = [two_nodes.process_named(victim) for victim in victims]
    with ThreadPoolExecutor(STREAMS) as pool:
        running = [pool.submit(stream.run, two_nodes) for stream in streams]
        wait_for(
            lambda: all(stream.chunks >= KILL_AFTER_CHUNKS for stream in streams),
            "every stream to be under way",
        )
        for process in stopped:
            process.suspend()
        try:
            for future in running:
                future.result()
        finally:
            for process in stopped:
                process.resume()
    assert [stream.text for stream in streams] == [stream.text for stream in undisturbed]
    assert all(stream.completion_tokens == MAX_TOKENS for stream in streams)
    assert two_nodes.metric("mlxfleet_failovers_total") - before >= 1
    wait_for(
        lambda: all(two_nodes.metric("mlxfleet_node_ready", node=node) for node in NODES),
        "both nodes again",
    )
    for node in NODES:
        wait_for(
            lambda node=node: two_nodes.metric("mlxfleet_running_sequences", node=node) == 0,
            f"no row to be left on {node}",
        )


def test_without_a_node_requests_wait_and_then_fail(tiny_model: Path) -> None:
    arguments = ["--model", str(tiny_model), "--memory-gb", "1", "--node-wait-s", "1"]
    with Fleet(*arguments) as fleet:
        stream = Stream({"prompt": "Once", "max_tokens": 8000, "extra_body": {"ignore_eos": True}})
        worker = fleet.process_named("worker-0")
        with ThreadPoolExecutor(1) as pool:
            running = pool.submit(stream.run, fleet)
            wait_for(lambda: stream.chunks > 3, "the stream to be under way")
            worker.suspend()
            try:
                with pytest.raises(Exception, match="no other"):
                    running.result()
            finally:
                worker.resume()
        wait_for(lambda: fleet.get("/ready")[0] == 200, "ready again")
        assert fleet.metric("mlxfleet_sequences_in_flight") == 0
