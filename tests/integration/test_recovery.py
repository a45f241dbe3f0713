"""Processes die in the middle of streams; the streams do not notice."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.integration.fleet import Fleet, wait_for
from tests.integration.streams import (
    KILL_AFTER_CHUNKS,
    MAX_TOKENS,
    MODEL,
    STREAMS,
    Stream,
    make_streams,
)


@pytest.fixture(scope="module")
def undisturbed(tiny_fleet: Fleet) -> list[Stream]:
    streams = make_streams()
    with ThreadPoolExecutor(STREAMS) as pool:
        list(pool.map(lambda stream: stream.run(tiny_fleet), streams))
    return streams


@pytest.mark.parametrize(
    "victims",
    [
        ["worker-0"],
        ["detokenizer-0"],
        ["scheduler-0"],
        ["tokenizer-0"],
        ["worker-0", "detokenizer-0"],
        ["scheduler-0", "worker-0"],
    ],
    ids="+".join,
)
def test_streams_survive(tiny_fleet: Fleet, undisturbed: list[Stream], victims: list[str]) -> None:
    streams = make_streams()
    with ThreadPoolExecutor(STREAMS) as pool:
        running = [pool.submit(stream.run, tiny_fleet) for stream in streams]
        wait_for(
            lambda: all(stream.chunks >= KILL_AFTER_CHUNKS for stream in streams),
            "every stream to be under way",
        )
        for victim in victims:
            tiny_fleet.kill(victim)
        assert not any(stream.done.is_set() for stream in streams), "killed too late to matter"
        for future in running:
            future.result()
    for stream, expected in zip(streams, undisturbed, strict=True):
        assert stream.text == expected.text
        assert stream.finish_reason == "length"
        assert stream.completion_tokens == MAX_TOKENS
    for victim in victims:
        tiny_fleet.process_named(victim)
    wait_for(lambda: tiny_fleet.get("/ready")[0] == 200, "ready again")
    assert tiny_fleet.metric("mlxfleet_sequences_in_flight") == 0


def test_prompts_survive_their_tokenizer(tiny_fleet: Fleet) -> None:
    tiny_fleet.kill("tokenizer-0")
    answer = tiny_fleet.client().completions.create(
        model=MODEL, prompt="still here", max_tokens=4, temperature=0
    )
    assert answer.usage.completion_tokens == 4


def test_restarts_are_counted(tiny_fleet: Fleet) -> None:
    assert tiny_fleet.metric("mlxfleet_process_restarts_total", process="tokenizer-0") >= 1
    assert tiny_fleet.metric("mlxfleet_process_restarts_total", process="detokenizer-0") >= 1
    assert tiny_fleet.metric("mlxfleet_process_restarts_total", process="node-0") >= 1


def test_a_new_router_starts_with_empty_nodes(tiny_fleet: Fleet) -> None:
    """Its clients are gone with it; what they held is free again."""
    stream = Stream({"prompt": "Once", "max_tokens": 8000, "extra_body": {"ignore_eos": True}})
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(stream.run, tiny_fleet)
        wait_for(lambda: stream.chunks > 3, "the stream to be under way")
        tiny_fleet.kill("router")
        with pytest.raises(Exception, match=r"(?i)peer|connection|read"):
            running.result()
    wait_for(lambda: answers(tiny_fleet), "the new router")
    wait_for(lambda: tiny_fleet.get("/ready")[0] == 200, "ready again")
    wait_for(lambda: tiny_fleet.metric("mlxfleet_running_sequences", node="node-0") == 0, "no rows")
    answer = tiny_fleet.client().completions.create(model=MODEL, prompt="Hi", max_tokens=3)
    assert answer.usage.completion_tokens == 3


def answers(fleet: Fleet) -> bool:
    """Whether the router takes connections."""
    try:
        return fleet.get("/health")[0] == 200
    except OSError:
        return False
