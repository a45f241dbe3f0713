"""Nothing of prompts and answers is shown unless it is asked for, whatever message it is in."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from typing import Any, get_args, get_type_hints

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import Struct

from mlxfleet.common import messages
from mlxfleet.common.messages import (
    Finish,
    Generate,
    NodeStatus,
    Sampling,
    Step,
    Text,
    TokenizeChat,
    TokenText,
    TokenTextLogprobs,
)
from mlxfleet.common.tap.lines import as_json, as_text, plain
from mlxfleet.common.tap.selection import look
from mlxfleet.common.tap.stream import Frame
from mlxfleet.common.tap.visibility import HIDDEN, SHOWN, redact

KINDS = {
    kind.__struct_config__.tag: kind
    for kind in vars(messages).values()
    if isinstance(kind, type) and issubclass(kind, Struct) and kind.__struct_config__.tag
}


def structures_in(hint: Any) -> Iterator[type]:
    """Structures with named fields that a type has in it, in whatever containers."""
    if (isinstance(hint, type) and dataclasses.is_dataclass(hint)) or (
        isinstance(hint, type)
        and issubclass(hint, Struct)
        and not hint.__struct_config__.array_like
    ):
        yield hint
    for argument in get_args(hint):
        yield from structures_in(argument)


def paths_of(kind: type, before: str = "") -> Iterator[tuple[str, frozenset[str]]]:
    """Every field, and every field of the structures in it, with the paths that lead to it."""
    for name, hint in get_type_hints(kind).items():
        if name.startswith("__"):
            continue
        inner = [
            path for made in structures_in(hint) for path in paths_of(made, f"{before}{name}.")
        ]
        yield from inner or [f"{before}{name}"]


def covered(path: str, names: frozenset[str]) -> bool:
    """Whether a field, or what it is in, is in a table."""
    parts = path.split(".")
    return any(".".join(parts[: i + 1]) in names for i in range(len(parts)))


@pytest.mark.parametrize("tag", KINDS)
def test_every_field_is_either_shown_or_hidden(tag: str) -> None:
    shown, hidden = SHOWN[tag], HIDDEN.get(tag, frozenset())
    paths = set(paths_of(KINDS[tag]))
    for path in paths:
        assert covered(path, shown) != covered(path, hidden), f"{tag}: decide about {path}"
    for name in shown | hidden:
        assert any(path == name or path.startswith(f"{name}.") for path in paths), name


def test_the_tables_have_no_other_messages() -> None:
    assert set(SHOWN) == set(KINDS)
    assert set(HIDDEN) <= set(KINDS)


def test_what_is_shown_whole_has_no_structures_whose_fields_are_not_known() -> None:
    """So that a text that is put into Finish one day is not shown with it."""
    for tag, kind in KINDS.items():
        for path in paths_of(kind):
            if covered(path, SHOWN[tag]):
                assert path in SHOWN[tag]


SECRET = "xyzzy"
SECRET_ID = 987_654_321


def seen(message: Struct) -> tuple[str, str]:
    """The lines that show a message."""
    frame = Frame(
        process="router",
        number=1,
        time=0.0,
        direction="sent",
        link="nodes",
        peer="",
        frame=msgspec.msgpack.encode(message),
    )
    return as_text(look(frame), show_prompts=False), as_json(look(frame), show_prompts=False)


PRIVATE = [
    Generate(
        rid="r",
        attempt="1",
        detokenizer="d",
        prompt_ids=[SECRET_ID],
        output_ids=[SECRET_ID],
        sampling=Sampling(seed=1, max_tokens=2, logit_bias={SECRET_ID: 1.0}),
    ),
    TokenizeChat("r", [{"role": "user", "content": SECRET}], 5),
    Text(
        ["r"],
        ["1"],
        [0],
        [[SECRET_ID]],
        [0],
        [SECRET],
        {0: Finish("stop")},
        {0: [TokenTextLogprobs(TokenText(SECRET, [1], -0.5), [TokenText(SECRET, [1], -1.0)])]},
    ),
    Step(epoch="e", rids=["r"], ids=[SECRET_ID]),
]


@pytest.mark.parametrize("message", PRIVATE, ids=lambda message: type(message).__name__)
def test_no_line_has_a_part_of_a_prompt_or_an_answer(message: Struct) -> None:
    for line in seen(message):
        assert SECRET not in line
        assert str(SECRET_ID) not in line


def test_lengths_are_shown() -> None:
    text, line = seen(PRIVATE[2])
    assert "ids=<1>" in text
    assert "texts=<5>" in text
    message = json.loads(line)["message"]
    assert message["texts"] == {"hidden": [5]}
    assert message["finish"] == {"0": {"reason": "stop", "cached_tokens": 0}}
    assert json.loads(seen(PRIVATE[3])[1])["message"]["ids"] == {"hidden": 1}


def test_what_is_harmless_is_shown() -> None:
    sampling = json.loads(seen(PRIVATE[0])[1])["message"]["sampling"]
    assert sampling == {"seed": 1, "max_tokens": 2, "logit_bias": {"hidden": 1}}


def test_a_structure_that_is_absent_is_shown_as_absent() -> None:
    assert redact("node_status", {"model": None}) == {"model": None}
    assert "model" in get_type_hints(NodeStatus)


ANYTHING = st.recursive(
    st.one_of(st.just(SECRET), st.just(SECRET_ID), st.just(SECRET.encode()), st.none()),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.one_of(st.integers(0, 3), st.sampled_from("abc")), inner, max_size=3),
    ),
    max_leaves=8,
)


@settings(max_examples=200)
@given(
    kind=st.one_of(st.sampled_from(sorted(KINDS)), st.just("from_the_future")),
    names=st.lists(st.sampled_from(["prompt", "model", "finish", "sampling"]), max_size=3),
    value=ANYTHING,
)
def test_unknown_fields_are_hidden(kind: str, names: list[str], value: Any) -> None:
    shown = SHOWN.get(kind, frozenset())
    message = {name: value for name in names if name not in shown}
    line = json.dumps(redact(kind, message), default=plain)
    assert SECRET not in line
    assert str(SECRET_ID) not in line
