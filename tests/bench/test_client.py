"""What is made of a stream's events."""

from __future__ import annotations

import pytest

from mlxfleet.bench.client import Answer, Chunk, RequestFailed, Target, decode_chunk
from mlxfleet.bench.figures import gaps_s, longest_gap_s, ttft_s
from mlxfleet.bench.records import Request


def make_answer() -> Answer:
    return Answer(Request(run="", index=0, due_s=0.0, sent_s=0.0))


def test_first_text_sets_ttft() -> None:
    answer = make_answer()
    texts = [b"null", b'""', b'"one"', b'" two"', b'""', b'" three"']
    for elapsed_s, text in enumerate(texts):
        answer.take(decode_chunk(b'{"choices": [{"text": %s}]}' % text), elapsed_s)
    assert answer.text == "one two three"
    assert ttft_s(answer.record) == 2
    assert gaps_s(answer.record) == [1, 2]
    assert longest_gap_s(answer.record) == 2


def test_role_is_no_token_and_reasoning_is_one() -> None:
    answer = make_answer()
    deltas = [b'{"role": "assistant", "content": ""}', b'{"reasoning": "hm"}', b'{"content": "a"}']
    for elapsed_s, delta in enumerate(deltas):
        answer.take(decode_chunk(b'{"choices": [{"delta": %s}]}' % delta), elapsed_s)
    assert answer.record.token_times_s == [1, 2]
    assert (answer.text, answer.all_text) == ("a", "hma")


def test_cached_tokens_are_read_of_usage() -> None:
    answer = make_answer()
    usage = b'{"prompt_tokens": 9, "prompt_tokens_details": {"cached_tokens": 5}}'
    answer.take(decode_chunk(b'{"usage": %s}' % usage), 0.0)
    assert (answer.record.input_tokens, answer.record.cached_tokens) == (9, 5)


def test_error_event_fails_the_request() -> None:
    with pytest.raises(RequestFailed, match="gone"):
        make_answer().take(Chunk(error={"message": "gone"}), 0.0)


def test_fields_that_a_server_does_not_take_are_left_out() -> None:
    target = Target(url="", body={"ignore_eos": True}, without=("ignore_eos", "stream_options"))
    assert target.encode({"prompt": "a"}, 3) == (
        b'{"temperature":0.0,"stream":true,"prompt":"a","max_tokens":3}'
    )
