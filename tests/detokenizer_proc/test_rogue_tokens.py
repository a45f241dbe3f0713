"""A detokenizer under messages that no node should send."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from mlxfleet.bench.rogue.mutations import mutated
from mlxfleet.common.config import DetokenizerProcess
from mlxfleet.common.messages import (
    Finish,
    OpenStream,
    StreamBroken,
    Text,
    TokenLogprobs,
    Tokens,
)
from mlxfleet.detokenizer_proc.main import DetokenizerService
from mlxfleet.detokenizer_proc.vocabulary import Vocabulary
from tests.detokenizer_proc.tokenizers_for_tests import byte_fallback, byte_level

VOCABULARIES = (Vocabulary(byte_level()), Vocabulary(byte_fallback()))
TOLD = DetokenizerProcess(
    name="d", model_dir=Path(), router_address="", token_address="", trust_remote_code=False
)


class Router:
    """Keeps what it is sent."""

    def __init__(self) -> None:
        self.sent: list[Any] = []

    def send(self, message: Any) -> bool:
        self.sent.append(message)
        return True


class Bench:
    """A detokenizer with the streams `mine` and `other`."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.service = DetokenizerService(TOLD)
        self.service.context.term()
        self.router = Router()
        service: Any = self.service
        service._vocabulary = vocabulary
        service.router = self.router
        for rid in ("mine", "other"):
            service.on_message(
                OpenStream(
                    rid=rid,
                    attempt=f"attempt of {rid}",
                    prompt_tail=[],
                    output_ids=[],
                    sent_chars=0,
                    stop=[],
                    max_tokens=8,
                    vocab_size=250,
                )
            )

    def take(self, frame: bytes) -> None:
        """Take a frame in as the channel does."""
        try:
            tokens = msgspec.msgpack.decode(frame, type=Tokens)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            self.service._on_malformed(b"", str(error), frame)
        else:
            self.service._on_tokens(tokens)

    def broken(self) -> list[str]:
        return [m.rid for m in self.router.sent if isinstance(m, StreamBroken)]


def tokens(rid: str, ids: list[int], **fields: Any) -> Tokens:
    return Tokens(
        **{
            "rids": [rid],
            "attempts": [f"attempt of {rid}"],
            "starts": [0],
            "ids": [ids],
            "finish": {},
            "logprobs": {},
            **fields,
        }
    )


FULL = tokens(
    "mine",
    [40, 41],
    finish={0: Finish("stop", 1)},
    logprobs={0: [TokenLogprobs(-1.0, [1, 2], [-1.0, -2.0])] * 2},
)


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from(VOCABULARIES))
def test_no_mutated_message_harms_another_stream(seed: int, vocabulary: Vocabulary) -> None:
    bench = Bench(vocabulary)
    frame, _ = mutated(FULL, random.Random(seed))
    bench.take(frame)
    assert set(bench.broken()) <= {"mine"}
    bench.take(msgspec.msgpack.encode(tokens("other", [40, 41])))
    texts = [m for m in bench.router.sent if isinstance(m, Text) and m.rids == ["other"]]
    assert [(text.ids, text.starts) for text in texts] == [([[40, 41]], [0])]
    # What goes to the router is what the router takes.
    for message in bench.router.sent:
        msgspec.msgpack.decode(msgspec.msgpack.encode(message), type=type(message))


def test_a_malformed_message_breaks_the_streams_whose_attempts_it_has() -> None:
    bench = Bench(VOCABULARIES[0])
    wire = msgspec.to_builtins(FULL) | {"ids": "nonsense"}
    bench.take(msgspec.msgpack.encode(wire))
    assert bench.broken() == ["mine"]


def test_nobody_can_have_another_nodes_stream_broken() -> None:
    bench = Bench(VOCABULARIES[0])
    wire = msgspec.to_builtins(FULL) | {"rids": ["other"], "ids": "nonsense"}
    bench.take(msgspec.msgpack.encode(wire))
    bench.take(msgspec.msgpack.encode(tokens("other", [-1], attempts=["attempt of mine"])))
    assert bench.broken() == []


def test_one_entry_that_is_broken_leaves_the_others_of_its_message() -> None:
    bench = Bench(VOCABULARIES[0])
    both = Tokens(
        rids=["mine", "other"],
        attempts=["attempt of mine", "attempt of other"],
        starts=[0, 0],
        ids=[[2**63], [40]],
        finish={},
        logprobs={},
    )
    bench.take(msgspec.msgpack.encode(both))
    assert bench.broken() == ["mine"]
    assert [m.rids for m in bench.router.sent if isinstance(m, Text)] == [["other"]]
