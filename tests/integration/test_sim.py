"""Simulated nodes, started with the real command: they die, hang, and share processes."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from tests.integration.collector import PROTOBUF
from tests.integration.fleet import Fleet, wait_for
from tests.integration.streams import KILL_AFTER_CHUNKS, MAX_TOKENS, STREAMS, Stream, make_streams

NODES = ["node-0", "node-1"]
SPEED = ["--sim-step-ms", "8", "--sim-row-ms", "0.2", "--sim-prefill-tokens-per-s", "5000"]


@pytest.fixture(scope="module")
def faults(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sim") / "faults"


@pytest.fixture(scope="module")
def sim_fleet(tiny_model: Path, faults: Path) -> Iterator[Fleet]:
    arguments = ["--model", str(tiny_model), "--engine", "sim", "--nodes", "2", *SPEED]
    with Fleet(*arguments, "--sim-faults", str(faults)) as fleet:
        wait_for_nodes(fleet, NODES)
        yield fleet


def wait_for_nodes(fleet: Fleet, nodes: list[str]) -> None:
    wait_for(
        lambda: all(fleet.metric("mlxfleet_node_ready", node=node) for node in nodes), "the nodes"
    )


def run_all(fleet: Fleet, streams: list[Stream]) -> None:
    with ThreadPoolExecutor(len(streams)) as pool:
        list(pool.map(lambda stream: stream.run(fleet), streams))


@pytest.fixture(scope="module")
def undisturbed(sim_fleet: Fleet) -> list[Stream]:
    streams = make_streams()
    run_all(sim_fleet, streams)
    assert all(stream.completion_tokens == MAX_TOKENS for stream in streams)
    return streams


def test_no_process_has_mlx_or_opentelemetry(sim_fleet: Fleet) -> None:
    sim_fleet.post("/v1/completions", {"prompt": "Hi", "max_tokens": 2})
    if not Path("/proc/self/maps").exists():
        pytest.skip("maps are read from /proc")
    parent = psutil.Process(sim_fleet.process.pid)
    for process in [parent, *parent.children(recursive=True)]:
        maps = Path(f"/proc/{process.pid}/maps").read_text()
        assert "libmlx" not in maps
        assert "openblas-pthread" not in maps
        assert PROTOBUF not in maps
    assert "openblas" not in sim_fleet.output


def test_a_request_of_the_same_prompt_and_seed_gets_the_same_text(sim_fleet: Fleet) -> None:
    def text(seed: int, temperature: float) -> str:
        body = {"prompt": "Once", "max_tokens": 20, "seed": seed, "temperature": temperature}
        status, answer, _ = sim_fleet.post("/v1/completions", body)
        assert status == 200
        assert answer["choices"][0]["finish_reason"] == "length"
        return str(answer["choices"][0]["text"])

    assert text(1, 1.0) == text(1, 1.0) != text(2, 1.0)
    assert text(1, 0.0) == text(2, 0.0)


@pytest.mark.parametrize("victims", [["worker-0"], ["scheduler-1"], ["worker-0", "worker-1"]])
def test_streams_survive_the_death_of_a_process(
    sim_fleet: Fleet, undisturbed: list[Stream], victims: list[str]
) -> None:
    streams = make_streams()
    with ThreadPoolExecutor(STREAMS) as pool:
        running = [pool.submit(stream.run, sim_fleet) for stream in streams]
        wait_for(
            lambda: all(stream.chunks >= KILL_AFTER_CHUNKS for stream in streams),
            "every stream to be under way",
        )
        for victim in victims:
            sim_fleet.kill(victim)
        assert not any(stream.done.is_set() for stream in streams), "killed too late to matter"
        for future in running:
            future.result()
    assert [stream.text for stream in streams] == [stream.text for stream in undisturbed]
    assert all(stream.completion_tokens == MAX_TOKENS for stream in streams)
    wait_for_nodes(sim_fleet, NODES)


def test_a_fault_on_command(sim_fleet: Fleet, undisturbed: list[Stream], faults: Path) -> None:
    """A node hangs: its heartbeats go on, its steps do not, until the line is gone."""
    streams = make_streams()
    with ThreadPoolExecutor(STREAMS) as pool:
        running = [pool.submit(stream.run, sim_fleet) for stream in streams]
        wait_for(
            lambda: all(stream.chunks >= KILL_AFTER_CHUNKS for stream in streams),
            "every stream to be under way",
        )
        faults.write_text("* hang\n")
        try:
            wait_for(lambda: hangs(sim_fleet), "steps to stand still")
            assert all(sim_fleet.metric("mlxfleet_running_sequences", node=node) for node in NODES)
        finally:
            faults.unlink()
        for future in running:
            future.result()
    assert [stream.text for stream in streams] == [stream.text for stream in undisturbed]


def hangs(fleet: Fleet) -> bool:
    """Whether no node makes a step from one report to the one after the next."""

    def steps() -> list[float]:
        return [fleet.metric("mlxfleet_worker_steps_total", node=node) for node in NODES]

    before = steps()
    threading.Event().wait(0.6)
    return steps() == before


def test_many_nodes_in_few_processes(tiny_model: Path) -> None:
    arguments = ["--model", str(tiny_model), "--engine", "sim", "--nodes", "16"]
    arguments += ["--sim-nodes-per-process", "8", "--sim-step-ms", "40"]
    nodes = [f"node-{i}" for i in range(16)]
    with Fleet(*arguments) as fleet:
        wait_for_nodes(fleet, nodes)
        streams = [
            Stream(
                {
                    "prompt": f"{i} once upon a time " * (1 + i % 9),
                    "max_tokens": 40,
                    "seed": i,
                    "extra_body": {"ignore_eos": True},
                }
            )
            for i in range(64)
        ]
        run_all(fleet, streams)
        assert all(stream.completion_tokens == 40 for stream in streams)
        assert all(stream.finish_reason == "length" for stream in streams)
        assert all(fleet.metric("mlxfleet_prefilled_tokens_total", node=node) for node in nodes)
        # Who dies takes its seven neighbours along, and their streams go on all the same.
        again = [Stream(stream.options) for stream in streams]
        with ThreadPoolExecutor(len(again)) as pool:
            running = [pool.submit(stream.run, fleet) for stream in again]
            wait_for(lambda: all(stream.chunks >= 3 for stream in again), "streams under way")
            fleet.kill("sim-nodes-1")
            for future in running:
                future.result()
        assert [stream.text for stream in again] == [stream.text for stream in streams]
