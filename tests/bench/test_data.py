"""Conversations out of shapes and files."""

from __future__ import annotations

import asyncio
import json
from itertools import islice, product
from pathlib import Path
from typing import Any

import pytest

from mlxfleet.bench.arrivals import ClosedLoop, OpenLoop
from mlxfleet.bench.conversations import Conversation, Message
from mlxfleet.bench.lengths import Fixed, Uniform
from mlxfleet.bench.plans import Plan, Source, plans, warm_up
from mlxfleet.bench.prompt_tokens import WordBook
from mlxfleet.bench.serve_options import ArrivalOptions, DataOptions
from mlxfleet.bench.synthetic import Shape, synthetic
from mlxfleet.common.errors import ConfigError

BOOK = WordBook(
    ["".join(letters) for letters in product("abcd", repeat=3)],
    lambda text: len(text.split()),
    lambda text: len(text.split()),
)


def words(conversation: Conversation) -> list[str]:
    return conversation.turns[0].text.split()


def made(path: Path, flag: str, data: Any, **options: Any) -> list[Conversation]:
    """Conversations of a file with these lines, or this JSON."""
    text = json.dumps(data) if flag == "sharegpt" else "\n".join(map(json.dumps, data))
    path.write_text(text)
    requests = options.pop("requests", None)
    source = Source(DataOptions(**{flag: path, **options}), BOOK)
    return asyncio.run(source.conversations(Plan(seed=0), requests))


def test_same_seed_gives_the_same_conversations() -> None:
    shape = Shape(input=Uniform(5, 50), output=Uniform(1, 9), turns=2)
    first, second, other = (
        list(islice(synthetic(shape, BOOK, seed), 5)) for seed in ("a", "a", "b")
    )
    assert first == second != other
    assert all(len(words(one)) == one.turns[0].input_tokens for one in first)


def test_prompts_of_a_group_begin_alike_and_go_on_apart() -> None:
    shape = Shape(input=Fixed(10), output=Fixed(1), groups=3, prefix_tokens=20)
    found = [words(one) for one in islice(synthetic(shape, BOOK, "a"), 30)]
    assert all(len(one) == 30 for one in found)
    assert len({tuple(one[:20]) for one in found}) == 3
    assert len({tuple(one[20:]) for one in found}) == 30


def test_equal_hash_ids_of_a_trace_give_equal_prefixes(tmp_path: Path) -> None:
    lines = [
        {"timestamp": 0, "input_length": 1100, "output_length": 5, "hash_ids": [1, 2, 3]},
        {"timestamp": 9, "input_length": 1536, "output_length": 7, "hash_ids": [1, 2, 4]},
        {"timestamp": 9, "input_length": 600, "output_length": 7, "hash_ids": [9, 2]},
    ]
    first, second, third = made(tmp_path / "trace", "trace", lines)
    assert [len(words(one)) for one in (first, second, third)] == [1100, 1536, 600]
    assert words(first)[:1024] == words(second)[:1024]
    assert words(first)[1024:] != words(second)[1024:1100]
    assert words(third)[512:] == words(first)[512:600]
    assert words(third)[:512] != words(first)[:512]
    assert first.turns[0].max_tokens == 5


def test_prompts_are_texts_objects_or_chats(tmp_path: Path) -> None:
    lines = [
        "one two",
        {"prompt": "three", "max_tokens": 7},
        {"messages": [{"role": "system", "content": "S"}, {"role": "user", "content": "U"}]},
    ]
    path = tmp_path / "prompts"
    plain, long, chat = made(path, "prompts", lines, output_tokens="9")
    assert (plain.turns[0].text, plain.turns[0].max_tokens) == ("one two", 9)
    assert plain.turns[0].input_tokens == 2
    assert long.turns[0].max_tokens == 7
    assert (chat.before, chat.turns[0].text) == ((Message("system", "S"),), "U")


def test_a_bad_line_is_told_by_its_number(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="line 2"):
        made(tmp_path / "prompts", "prompts", ["fine", {"prompt": 3}])
    with pytest.raises(ConfigError, match="line 1 has neither"):
        made(tmp_path / "prompts", "prompts", [{"max_tokens": 3}])


TALK = {
    "conversations": [
        {"from": "human", "value": "first question"},
        {"from": "gpt", "value": "an answer of five words"},
        {"from": "human", "value": "second"},
        {"from": "gpt", "value": "short"},
    ]
}


def test_sharegpt_asks_the_humans_turns_for_answers_as_long_as_the_files(tmp_path: Path) -> None:
    one, again = made(tmp_path / "talks", "sharegpt", [TALK], turns=2, requests=3)
    assert [(turn.text, turn.max_tokens) for turn in one.turns] == [
        ("first question", 5),
        ("\nsecond\n", 1),
    ]
    assert again.turns == one.turns[:1]


def test_sharegpt_without_a_question_is_refused(tmp_path: Path) -> None:
    talk = {"conversations": [{"from": "gpt", "value": "hello?"}]}
    with pytest.raises(ConfigError, match="has a question"):
        made(tmp_path / "talks", "sharegpt", [talk])


def test_a_trace_arrives_by_its_timestamps_unless_told_otherwise(tmp_path: Path) -> None:
    path = tmp_path / "trace"
    path.write_text('{"timestamp": 500, "prompt": "a"}\n{"timestamp": 2500, "prompt": "b"}\n')
    data = DataOptions(trace=path)
    source = Source(data, None)
    options = ArrivalOptions(trace_speed=2.0)
    [replay] = plans(options, data)
    assert source.arrival(replay, options, 2) == OpenLoop([0.0, 1.0])
    [closed] = plans(ArrivalOptions(concurrency=(3,)), data)
    assert source.arrival(closed, options, 2) == ClosedLoop(3)


def test_a_sweep_has_a_run_and_a_seed_for_each_rate() -> None:
    found = plans(ArrivalOptions(request_rate=(1.0, 2.0)), DataOptions(seed=7))
    assert [(plan.rate, plan.seed) for plan in found] == [(1.0, 7), (2.0, 8)]


def test_random_prompts_without_a_tokenizer_are_refused_with_the_way_out() -> None:
    with pytest.raises(ConfigError, match="--tokenizer DIR"):
        Source(DataOptions(), None)


def test_warm_up_is_as_long_and_says_something_else() -> None:
    source = Source(DataOptions(input_tokens="30"), BOOK)
    conversations = asyncio.run(source.conversations(Plan(concurrency=1, seed=0), 3))
    found = warm_up(conversations, 2, "0")
    assert [len(words(one)) for one in found] == [30, 30]
    assert not set(words(found[0])) & set(words(conversations[0]))
