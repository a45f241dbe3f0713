"""A stream's text, its end, and its rebuilding after a restart."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlxfleet.common.messages import Finish, OpenStream, TokenLogprobs
from mlxfleet.detokenizer_proc.stream import GapError, Stream
from mlxfleet.detokenizer_proc.vocabulary import Vocabulary
from tests.detokenizer_proc.tokenizers_for_tests import byte_level

WORDS = Vocabulary(byte_level())
EOS = WORDS.tokenizer.token_to_id("</s>")


def opened(
    output_ids: list[int] | None = None, sent_chars: int = 0, stop: list[str] | None = None
) -> Stream:
    opening = OpenStream(
        rid="r",
        attempt="1",
        prompt_tail=[],
        output_ids=output_ids or [],
        sent_chars=sent_chars,
        stop=stop or [],
        max_tokens=0,
        vocab_size=0,
    )
    return Stream(WORDS, opening)


def ids_of(text: str) -> list[int]:
    """A character a token, or several for characters beyond ASCII."""
    encode = WORDS.tokenizer.encode
    return [token for letter in text for token in encode(letter, add_special_tokens=False).ids]


def test_text_and_end() -> None:
    stream = opened()
    ids = ids_of("hello")
    piece = stream.push(0, ids, None, [])
    assert (piece.start, piece.offset, piece.ids, piece.text) == (0, 0, ids, "hello")
    last = stream.push(len(ids), [EOS], Finish("stop", 3), [])
    assert (last.offset, last.text, last.finish) == (5, "", Finish("stop", 3))
    assert stream.push(len(ids) + 1, ids, None, []) is None


def test_end_of_sequence_token_is_not_text_even_if_it_is_printable() -> None:
    stream = opened()
    token = ids_of("x")[0]
    assert stream.push(0, [token], Finish("stop"), []).text == ""


def test_half_a_character_is_flushed_at_the_end() -> None:
    stream = opened()
    first = ids_of("日")[:1]
    assert stream.push(0, first, None, []).text == ""
    assert stream.push(1, first, Finish("length"), []).text == "\ufffd\ufffd"


def test_stop_string_wins_over_length_and_cuts_tokens() -> None:
    stream = opened(stop=["lo w"])
    ids = ids_of("hello world")
    piece = stream.push(0, ids, Finish("length"), [])
    assert piece.text == "hel"
    assert piece.finish == Finish("stop")
    assert len(piece.ids) < len(ids)


def test_stop_string_in_what_was_held_back() -> None:
    stream = opened(stop=["\ufffd"])
    piece = stream.push(0, ids_of("日")[:1], Finish("length"), [])
    assert (piece.text, piece.finish.reason) == ("", "stop")


def test_gap_and_duplicates() -> None:
    stream = opened()
    ids = ids_of("hello world")
    stream.push(0, ids[:3], None, [])
    with pytest.raises(GapError):
        stream.push(5, ids[5:], None, [])
    assert stream.push(1, ids[1:3], None, []) is None
    piece = stream.push(1, ids[1:5], None, [])
    assert (piece.start, piece.ids) == (3, ids[3:5])


def test_a_finish_without_new_tokens_ends_the_stream() -> None:
    stream = opened()
    ids = ids_of("hello")
    stream.push(0, ids, None, [])
    assert stream.push(len(ids), [], Finish("length"), []).finish == Finish("length")


def test_logprobs_have_texts_and_bytes() -> None:
    stream = opened()
    token, half = ids_of("h")[0], ids_of("日")[0]
    entry = TokenLogprobs(-0.5, [token, half], [-0.5, -1.0])
    described = stream.push(0, [token], None, [entry]).logprobs[0]
    assert (described.chosen.token, described.chosen.bytes) == ("h", [104])
    assert described.top[1].bytes == list(WORDS.bytes_of(half))


@settings(deadline=None)
@given(st.data())
def test_rebuilt_stream_continues_exactly(data: st.DataObject) -> None:
    ids = data.draw(st.lists(st.integers(0, WORDS.tokenizer.get_vocab_size() - 1), max_size=30))
    stops = data.draw(st.lists(st.text("helo wrd", min_size=1, max_size=3), max_size=2))
    whole = opened(stop=stops)
    expected = [whole.push(i, [token], None, []) for i, token in enumerate(ids)]
    done = [piece for piece in expected if piece is not None]
    cut = data.draw(st.integers(0, len(done)))
    if cut and done[cut - 1].finish is not None:
        return
    before = "".join(piece.text for piece in done[:cut])
    again = opened(output_ids=ids[:cut], sent_chars=len(before), stop=stops)
    for i, piece in enumerate(done[cut:], start=cut):
        assert again.push(i, [ids[i]], None, []) == piece
