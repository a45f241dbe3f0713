"""Processes die in the middle of streams; the streams do not notice."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest
import zmq

from mlxfleet.common.messages import Finish, Hello, OpenStream, StreamLost, Text, Tokens
from tests.integration.fleet import Fleet, wait_for
from tests.integration.streams import (
    KILL_AFTER_CHUNKS,
    MAX_TOKENS,
    MODEL,
    STREAMS,
    Stream,
    make_streams,
)
from tests.integration.test_frames import against_false_server


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


def test_last_tokens_that_overtake_their_stream_are_asked_for_again(tiny_model: Path) -> None:
    """Tokens and streams come over different links, and after the last ones no gap shows up."""
    with (
        against_false_server("detokenizer-0", tiny_model) as (_, server, _),
        zmq.Context() as context,
        context.socket(zmq.PUSH) as node,
    ):
        decoder = msgspec.msgpack.Decoder(Hello | StreamLost | Text)

        def next_but_hello() -> StreamLost | Text:
            end = time.monotonic() + 30.0
            while time.monotonic() < end and server.poll(30_000):
                message = decoder.decode(server.recv_multipart()[1])
                if not isinstance(message, Hello):
                    return message
            raise AssertionError("the detokenizer says nothing")

        def send_tokens(rid: str) -> None:
            tokens = Tokens([rid], ["1"], [0], [[5, 6]], {0: Finish("length")}, {})
            node.send(msgspec.msgpack.encode(tokens))

        assert server.poll(60_000), "the process is silent"
        sender, frame = server.recv_multipart()
        node.linger = 0
        node.connect(decoder.decode(frame).token_address)
        opening = msgspec.msgpack.encode(
            OpenStream(
                rid="late",
                attempt="1",
                prompt_tail=[1],
                output_ids=[],
                sent_chars=0,
                stop=[],
                max_tokens=2,
                vocab_size=0,
            )
        )
        send_tokens("late")
        assert next_but_hello() == StreamLost("late", "1")
        send_tokens("late")
        # When this is answered, what was sent before it has been looked at.
        send_tokens("unknown")
        assert next_but_hello() == StreamLost("unknown", "1")
        server.send_multipart([sender, opening])
        assert next_but_hello() == StreamLost("late", "1")
        server.send_multipart([sender, opening])
        send_tokens("late")
        answer = next_but_hello()
        while not isinstance(answer, Text):
            # Again they were faster.
            assert answer == StreamLost("late", "1")
            server.send_multipart([sender, opening])
            send_tokens("late")
            answer = next_but_hello()
        assert answer.ids == [[5, 6]]
        assert answer.finish == {0: Finish("length")}
