"""Every message survives its link, is plain MessagePack, and is refused if its columns differ."""

from __future__ import annotations

import types
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import msgpack
import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec import Meta, Struct

from mlxfleet.common import messages
from mlxfleet.common.messages import (
    Finish,
    Prefill,
    Sampling,
    Step,
    Text,
    Tokenized,
    TokenLogprobs,
    Tokens,
    TokenTextLogprobs,
)
from mlxfleet.common.tally import BUCKETS, Tally

UNIONS = {
    name: getattr(messages, name)
    for name in (
        "RouterToTokenizer",
        "TokenizerToRouter",
        "RouterToNode",
        "NodeToRouter",
        "NodeToDetokenizer",
        "RouterToDetokenizer",
        "DetokenizerToRouter",
        "SchedulerToWorker",
        "WorkerToScheduler",
    )
}
LINKS = [
    pytest.param(union, kind, id=f"{name}-{kind.__name__}")
    for name, union in UNIONS.items()
    for kind in get_args(union) or (union,)
]
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)


def within(kind: Any, limits: Meta) -> st.SearchStrategy[Any]:
    """Values of a type within the limits of a field."""
    if kind is int:
        return st.integers(limits.ge or 0, limits.le or 2**63 - 1)
    if kind is float:
        least = limits.gt if limits.ge is None else limits.ge
        above = limits.ge is None and limits.gt is not None
        return st.floats(least, limits.le, exclude_min=above, allow_nan=False)
    if kind is str:
        return st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8)
    return values(kind).filter(lambda value: len(value) >= (limits.min_length or 0))


def values(hint: Any) -> st.SearchStrategy[Any]:
    """Values of a field's type."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return within(*arguments)
    if origin is Literal:
        return st.sampled_from(arguments)
    if origin in (Union, types.UnionType):
        return st.one_of(*map(values, arguments))
    if origin is list:
        return st.lists(values(arguments[0]), max_size=3)
    if origin is dict:
        return st.dictionaries(*map(values, arguments), max_size=3)
    if origin is tuple:
        return st.tuples(*map(values, arguments))
    if hint is Tally:
        counts = st.lists(st.integers(0, 2**63 - 1), min_size=BUCKETS, max_size=BUCKETS)
        return st.builds(Tally, counts, st.floats(allow_nan=False))
    if isinstance(hint, type) and issubclass(hint, Struct):
        return structs(hint)
    simple: dict[Any, st.SearchStrategy[Any]] = {
        int: st.integers(-(2**63), 2**63 - 1),
        float: st.floats(allow_nan=False),
        str: TEXT,
        bool: st.booleans(),
        bytes: st.binary(max_size=8),
        type(None): st.none(),
    }
    return simple[hint]


COLUMNS: dict[type[Struct], tuple[str, ...]] = {
    Prefill: ("rids", "tokens"),
    Step: ("rids", "ids"),
    Tokens: ("rids", "attempts", "starts", "ids"),
    Text: ("rids", "attempts", "starts", "ids", "offsets", "texts"),
    Tokenized: ("token_ids", "block_hashes"),
}


def structs(kind: type[Struct]) -> st.SearchStrategy[Any]:
    """Structs of a type, with columns that fit each other."""
    fields = {
        name: values(hint)
        for name, hint in get_type_hints(kind, include_extras=True).items()
        if not name.startswith("__")
    }
    if kind in COLUMNS:
        return columns(kind, fields)
    return st.builds(kind, **fields)


@st.composite
def columns(
    draw: st.DrawFn, kind: type[Struct], fields: dict[str, st.SearchStrategy[Any]]
) -> Struct:
    """A struct whose lists all have one length and whose dicts point into them."""
    length = draw(st.integers(0, 3))
    made = {name: draw(field) for name, field in fields.items()}
    for name, value in made.items():
        if name in (
            "rids",
            "attempts",
            "starts",
            "ids",
            "offsets",
            "texts",
            "tokens",
            "token_ids",
            "block_hashes",
        ):
            item = fields[name].filter(bool).map(lambda items: items[0])
            made[name] = draw(st.lists(item, min_size=length, max_size=length))
        elif isinstance(value, dict):
            made[name] = {k: v for k, (_, v) in enumerate(value.items()) if k < length}
    if kind in (Tokens, Text):
        entry = values(TokenLogprobs if kind is Tokens else TokenTextLogprobs)
        made["logprobs"] = {
            position: draw(st.lists(entry, min_size=len(ids), max_size=len(ids)))
            for position, ids in enumerate(made["ids"])
            if draw(st.booleans())
        }
    return kind(**made)


few = settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@pytest.mark.parametrize(("union", "kind"), LINKS)
def test_a_message_survives_its_link(union: Any, kind: type[Struct]) -> None:
    @few
    @given(message=structs(kind))
    def check(message: Struct) -> None:
        frame = msgspec.msgpack.encode(message)
        assert msgspec.msgpack.decode(frame, type=union) == message

    check()


@pytest.mark.parametrize(("union", "kind"), LINKS)
def test_any_messagepack_library_reads_and_writes_it(union: Any, kind: type[Struct]) -> None:
    @few
    @given(message=structs(kind))
    def check(message: Struct) -> None:
        plain = msgpack.unpackb(msgspec.msgpack.encode(message), strict_map_key=False)
        assert plain["type"] == kind.__struct_config__.tag
        assert msgspec.msgpack.decode(msgpack.packb(plain), type=union) == message

    check()


def test_default_sampling_costs_nothing_on_the_wire() -> None:
    plain = msgpack.unpackb(msgspec.msgpack.encode(Sampling(seed=1, max_tokens=2)))
    assert plain == {"seed": 1, "max_tokens": 2}


# --- columns --------------------------------------------------------------------------------------

LOGPROBS = {"logprob": -1.0, "top_ids": [1], "top_logprobs": [-1.0]}
FINISH = {"reason": "stop", "cached_tokens": 0}
STEP: dict[str, Any] = {
    "type": "step",
    "epoch": "e",
    "rids": ["a", "b"],
    "ids": [1, 2],
    "finish": {1: "stop"},
    "logprobs": {0: LOGPROBS},
    "prefilled": [["c", 8]],
    "decode_s": 0.1,
    "prefill_s": 0.1,
}
TOKENS: dict[str, Any] = {
    "type": "tokens",
    "rids": ["a", "b"],
    "attempts": ["1", "2"],
    "starts": [0, 5],
    "ids": [[1], [2, 3]],
    "finish": {1: FINISH},
    "logprobs": {1: [LOGPROBS, LOGPROBS]},
}
NEW_TEXT: dict[str, Any] = {
    "type": "text",
    "rids": ["a", "b"],
    "attempts": ["1", "2"],
    "starts": [0, 5],
    "ids": [[1], [2, 3]],
    "offsets": [0, 9],
    "texts": ["x", "y"],
    "finish": {1: FINISH},
    "logprobs": {},
}
WHOLE = [(Step, STEP), (Tokens, TOKENS), (Text, NEW_TEXT)]
BROKEN: list[tuple[type[Struct], dict[str, Any], dict[str, Any]]] = [
    (Step, STEP, {"rids": ["a"]}),
    (Step, STEP, {"ids": [1]}),
    (Step, STEP, {"ids": [1, 2, 3]}),
    (Step, STEP, {"finish": {2: "stop"}}),
    (Step, STEP, {"finish": {-1: "stop"}}),
    (Step, STEP, {"logprobs": {2: LOGPROBS}}),
    (Step, STEP, {"logprobs": {-1: LOGPROBS}}),
    (Step, STEP, {"rids": [], "ids": []}),
    (Tokens, TOKENS, {"rids": ["a"]}),
    (Tokens, TOKENS, {"attempts": ["1"]}),
    (Tokens, TOKENS, {"attempts": ["1", ""]}),
    (Tokens, TOKENS, {"starts": [0, 5, 6]}),
    (Tokens, TOKENS, {"starts": [0, -1]}),
    (Tokens, TOKENS, {"ids": [[1]]}),
    (Tokens, TOKENS, {"finish": {2: FINISH}}),
    (Tokens, TOKENS, {"finish": {-1: FINISH}}),
    (Tokens, TOKENS, {"logprobs": {2: [LOGPROBS]}}),
    (Tokens, TOKENS, {"logprobs": {1: [LOGPROBS]}}),
    (Tokens, TOKENS, {"logprobs": {0: []}}),
    (Text, NEW_TEXT, {"rids": ["a"]}),
    (Text, NEW_TEXT, {"attempts": []}),
    (Text, NEW_TEXT, {"starts": [0]}),
    (Text, NEW_TEXT, {"starts": [0, -5]}),
    (Text, NEW_TEXT, {"ids": [[1], [2], [3]]}),
    (Text, NEW_TEXT, {"offsets": []}),
    (Text, NEW_TEXT, {"offsets": [0, -9]}),
    (Text, NEW_TEXT, {"texts": ["x"]}),
    (Text, NEW_TEXT, {"finish": {2: FINISH}}),
    (Text, NEW_TEXT, {"logprobs": {2: []}}),
]


@pytest.mark.parametrize(("kind", "frame"), WHOLE)
def test_columns_that_fit_are_taken(kind: type[Struct], frame: dict[str, Any]) -> None:
    assert isinstance(msgspec.msgpack.decode(msgpack.packb(frame), type=kind), kind)


@pytest.mark.parametrize(("kind", "frame", "change"), BROKEN)
def test_columns_that_do_not_fit_are_refused(
    kind: type[Struct], frame: dict[str, Any], change: dict[str, Any]
) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.msgpack.decode(msgpack.packb({**frame, **change}), type=kind)


def test_a_message_that_does_not_fit_cannot_be_made() -> None:
    with pytest.raises(ValueError, match="columns"):
        Tokens(["a"], ["1"], [0], [], {}, {})
    with pytest.raises(ValueError, match="position"):
        Tokens(["a"], ["1"], [0], [[1]], {1: Finish("stop")}, {})


@pytest.mark.parametrize(
    ("kind", "frame"),
    [
        (messages.Resend, {"type": "resend", "rid": "a", "detokenizer": "d", "start": -1}),
        (messages.Prefill, {"type": "prefill", "rid": "a", "tokens": -1}),
        (
            messages.OpenStream,
            {
                "type": "open_stream",
                "rid": "a",
                "prompt_tail": [],
                "output_ids": [],
                "sent_chars": -1,
                "stop": [],
            },
        ),
    ],
)
def test_counts_are_not_negative(kind: type[Struct], frame: dict[str, Any]) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.msgpack.decode(msgpack.packb(frame), type=kind)
