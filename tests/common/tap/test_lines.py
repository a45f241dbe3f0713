"""Lines for people and for tools."""

from __future__ import annotations

import json

import msgspec
import pytest
from msgspec import Struct

from mlxfleet.common.messages import Release, Text, Tokens
from mlxfleet.common.tap.lines import as_json, as_text, brief_rids, clock
from mlxfleet.common.tap.recorder import Direction
from mlxfleet.common.tap.selection import look
from mlxfleet.common.tap.stream import Frame


def frame_of(
    message: Struct,
    *,
    direction: Direction = "sent",
    peer: str = "scheduler-0:abc",
    link: str = "nodes",
) -> Frame:
    return Frame(
        process="router",
        number=12,
        time=1.25,
        direction=direction,
        link=link,
        peer=peer,
        frame=msgspec.msgpack.encode(message),
    )


def words(frame: Frame, *, show_prompts: bool = False) -> list[str]:
    """A line's words after the time of day, which depends on the time zone."""
    return as_text(look(frame), show_prompts=show_prompts).split()[1:]


def test_a_line_says_who_sent_what_to_whom_about_what() -> None:
    size = len(frame_of(Release("r-0", "1")).frame)
    line = ["router", "->", "nodes/scheduler-0", "release", "r-0", str(size), "B", 'attempt="1"']
    assert words(frame_of(Release("r-0", "1"))) == line


@pytest.mark.parametrize(
    ("direction", "arrow"),
    [("sent", "->"), ("received", "<-"), ("unsent", "-x"), ("malformed", "<x")],
)
def test_arrows(direction: Direction, arrow: str) -> None:
    assert words(frame_of(Release("r", "1"), direction=direction))[1] == arrow


def test_a_peer_without_a_name_is_left_out() -> None:
    assert words(frame_of(Release("r", "1"), peer="abcdef", link="worker-0"))[2] == "worker-0"


def test_what_is_empty_is_left_out() -> None:
    line = words(frame_of(Tokens(["r"], ["1"], [7], [[1, 2]], {}, {})))
    assert line[7:] == ['attempts=["1"]', "starts=[7]", "ids=<2>"]


def test_text_is_shown_if_wanted() -> None:
    text = frame_of(Text(["r"], ["1"], [0], [[5]], [0], ["süß\x1b[2J"], {}, {}))
    assert "texts=<7>" in words(text)
    shown = as_text(look(text), show_prompts=True)
    assert 'texts=["süß\\u001b[2J"]' in shown
    assert json.loads(as_json(look(text), show_prompts=True))["message"]["texts"] == ["süß\x1b[2J"]


@pytest.mark.parametrize("change", [{"peer": "\x1b[2J:x"}, {"link": "a\nb"}], ids=str)
def test_a_terminal_is_told_nothing_by_names(change: dict[str, str]) -> None:
    assert as_text(look(frame_of(Release("r", "1"), **change)), show_prompts=False).isprintable()


def test_a_line_of_json() -> None:
    frame = frame_of(Release("r-0", "1"), direction="received")
    assert json.loads(as_json(look(frame), show_prompts=False)) == {
        "time": 1.25,
        "process": "router",
        "number": 12,
        "direction": "received",
        "link": "nodes",
        "peer": "scheduler-0:abc",
        "bytes": len(frame.frame),
        "type": "release",
        "rids": ["r-0"],
        "message": {"type": "release", "rid": "r-0", "attempt": "1"},
    }


def test_many_requests_are_cut_short() -> None:
    assert [brief_rids(rids) for rids in ([], ["a"], ["a", "b"], ["a", "b", "c", "d"])] == [
        "-",
        "a",
        "a,b",
        "a,b+2",
    ]


def test_the_clock_has_microseconds() -> None:
    assert clock(1.25).endswith(":01.250000")
    assert clock(0.9999999).endswith(":00.999999")
