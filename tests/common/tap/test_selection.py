"""What a tap lets through: by request, process, link, type; of columns only the request's own."""

from __future__ import annotations

import json
from typing import Any, get_type_hints

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Struct

from mlxfleet.common import messages
from mlxfleet.common.messages import (
    Drop,
    Finish,
    Hello,
    Ping,
    Prefill,
    Step,
    Text,
    TokenLogprobs,
    Tokens,
)
from mlxfleet.common.tap.lines import as_json, as_text
from mlxfleet.common.tap.recorder import Direction
from mlxfleet.common.tap.selection import COLUMNS, PAIRS, Selection, look, rid_of
from mlxfleet.common.tap.stream import Frame


def frame_of(
    message: Struct | bytes,
    *,
    process: str = "router",
    link: str = "nodes",
    direction: Direction = "sent",
) -> Frame:
    frame = message if isinstance(message, bytes) else msgspec.msgpack.encode(message)
    return Frame(
        process=process, number=1, time=0.0, direction=direction, link=link, peer="", frame=frame
    )


def cut(message: Struct, rid: str) -> Struct | None:
    """What is left of a message for a request."""
    seen = Selection(rid=rid).see(frame_of(message))
    return None if seen is None else msgspec.convert(seen.message, type(message))


LOGPROBS = [TokenLogprobs(-0.5, [], [])]


def test_tokens_of_others_are_left_out() -> None:
    tokens = Tokens(
        ["a-0", "b-0", "a-1"],
        ["1", "2", "3"],
        [4, 5, 6],
        [[1], [2], [3]],
        {1: Finish("stop"), 2: Finish("length", 7)},
        {0: LOGPROBS, 1: LOGPROBS},
    )
    assert cut(tokens, "a") == Tokens(
        ["a-0", "a-1"], ["1", "3"], [4, 6], [[1], [3]], {1: Finish("length", 7)}, {0: LOGPROBS}
    )
    assert cut(tokens, "b-0") == Tokens(
        ["b-0"], ["2"], [5], [[2]], {0: Finish("stop")}, {0: LOGPROBS}
    )
    assert cut(tokens, "c") is None


def test_text_of_others_is_left_out() -> None:
    text = Text(
        ["a", "b"], ["1", "2"], [0, 1], [[1], [2]], [2, 3], ["A", "B"], {1: Finish("stop")}, {}
    )
    assert cut(text, "b") == Text(["b"], ["2"], [1], [[2]], [3], ["B"], {0: Finish("stop")}, {})


def test_steps_and_passes_of_others_are_left_out() -> None:
    step = Step(
        epoch="e", rids=["a", "b"], ids=[1, 2], finish={0: "stop"}, prefilled=[("b", 3), ("c", 4)]
    )
    assert cut(step, "b") == Step(epoch="e", rids=["b"], ids=[2], prefilled=[("b", 3)])
    assert cut(step, "c") == Step(epoch="e", prefilled=[("c", 4)])
    assert cut(Prefill(["a", "b"], [5, 6], 1), "b") == Prefill(["b"], [6], 1)


def test_a_row_that_was_preempted_still_belongs_to_its_request() -> None:
    assert cut(Drop("a-0.1"), "a-0") == Drop("a-0.1")
    assert cut(Drop("b-0"), "a-0") is None
    assert cut(Ping(), "a-0") is None


@pytest.mark.parametrize("name", ["chatcmpl-abc", "cmpl-abc", "abc"])
def test_an_answer_names_its_request(name: str) -> None:
    assert rid_of(name) == "abc"


def test_every_columnar_field_is_known() -> None:
    for kind in vars(messages).values():
        if not (isinstance(kind, type) and issubclass(kind, Struct)):
            continue
        hints = get_type_hints(kind)
        if "rids" not in hints or kind is messages.TokensOf:
            continue
        tag = kind.__struct_config__.tag
        columns = COLUMNS[tag]
        known = {*columns.dense, *columns.sparse, PAIRS.get(tag, "rids")}
        containers = {
            name for name, hint in hints.items() if str(hint).startswith(("list", "dict"))
        }
        assert containers == known


@given(
    frame=st.one_of(
        st.binary(max_size=60),
        st.recursive(
            st.one_of(st.none(), st.integers(0, 5), st.sampled_from(["a", "rids", "step"])),
            lambda inner: st.one_of(
                st.lists(inner, max_size=3),
                st.dictionaries(
                    st.sampled_from([0, 1, "type", "rid", "rids", "ids", "finish", "prefilled"]),
                    inner,
                    max_size=4,
                ),
            ),
            max_leaves=10,
        ).map(msgspec.msgpack.encode),
        st.fixed_dictionaries(
            {"type": st.sampled_from(sorted(COLUMNS))},
            optional={
                name: st.one_of(
                    st.none(), st.just(3), st.lists(st.sampled_from(["a", 1, [], ["a", 1]]))
                )
                for name in ("rids", "ids", "starts", "finish", "prefilled", "tokens")
            },
        ).map(msgspec.msgpack.encode),
    )
)
def test_any_frame_can_be_looked_at(frame: bytes) -> None:
    seen = look(frame_of(frame))
    assert isinstance(seen.rids, list)
    Selection(rid="a").see(frame_of(frame))
    for show_prompts in (True, False):
        assert as_text(seen, show_prompts=show_prompts).isprintable()
        assert json.loads(as_json(seen, show_prompts=show_prompts))["bytes"] == len(frame)


def test_a_malformed_frame_is_shown_as_one() -> None:
    seen = look(frame_of(Drop("a"), direction="malformed"))
    assert (seen.kind, seen.message, seen.rids) == ("malformed", {}, [])
    assert look(frame_of(b"\xc1")).kind == "malformed"


SELECTIONS: list[tuple[dict[str, Any], Frame, bool]] = [
    ({"processes": ["worker-*"]}, frame_of(Drop("a"), process="worker-3"), True),
    ({"processes": ["worker-*"]}, frame_of(Drop("a"), process="router"), False),
    ({"processes": ["x", "router"]}, frame_of(Drop("a")), True),
    ({"links": ["tokens-?"]}, frame_of(Drop("a"), link="tokens-0"), True),
    ({"links": ["tokens-?"]}, frame_of(Drop("a")), False),
    ({"kinds": ["drop"]}, frame_of(Drop("a")), True),
    ({"kinds": ["admit"]}, frame_of(Drop("a")), False),
    ({}, frame_of(Hello(name="x", incarnation="y")), False),
    ({"heartbeats": True}, frame_of(Hello(name="x", incarnation="y")), True),
    ({"kinds": ["hello"]}, frame_of(Hello(name="x", incarnation="y")), True),
    ({"kinds": ["malformed"]}, frame_of(b"\xc1"), True),
]


@pytest.mark.parametrize(("options", "frame", "expected"), SELECTIONS)
def test_a_selection(options: dict[str, Any], frame: Frame, expected: bool) -> None:
    assert (Selection(**options).see(frame) is not None) == expected
