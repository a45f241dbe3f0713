"""Stop strings in any cut of the text."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mlxfleet.detokenizer_proc.stop import StopMatcher, held_length

ALPHABET = "ab"


def run(pieces: list[str], stops: list[str]) -> tuple[str, bool]:
    matcher = StopMatcher(stops)
    shown = ""
    for piece in pieces:
        shown += matcher.push(piece)
        if matcher.stopped:
            return shown, True
    return shown + matcher.flush(), False


@given(
    st.lists(st.text(ALPHABET, max_size=3), max_size=12),
    st.lists(st.text(ALPHABET, min_size=1, max_size=5), max_size=3),
)
def test_shows_the_text_before_the_first_stop(pieces: list[str], stops: list[str]) -> None:
    shown, stopped = run(pieces, stops)
    text = "".join(pieces)
    assert stopped == any(stop in text for stop in stops)
    if not stopped:
        assert shown == text
        return
    assert text.startswith(shown)
    assert any(text[len(shown) :].startswith(stop) for stop in stops)
    assert not any(stop in shown for stop in stops)


@given(st.lists(st.text(ALPHABET, max_size=3), max_size=12), st.text(ALPHABET, min_size=1))
def test_never_shows_the_beginning_of_a_stop_that_follows(pieces: list[str], stop: str) -> None:
    matcher = StopMatcher([stop])
    shown = ""
    for piece in pieces:
        shown += matcher.push(piece)
        if matcher.stopped:
            break
    text = "".join(pieces)
    if stop in text:
        assert shown == text[: text.index(stop)]


def test_without_stops_nothing_is_held_back() -> None:
    assert StopMatcher([]).push("abc") == "abc"


def test_held_length() -> None:
    assert held_length("xyab", "abc") == 2
    assert held_length("xyz", "abc") == 0
    assert held_length("ab", "ab") == 0
