"""What the endpoints honour, through the official client, on the tiny model."""

from __future__ import annotations

import math

import openai
import pytest

from tests.integration.fleet import Fleet

MODEL = "tiny"
PROMPT = "The quick brown fox jumps over the lazy dog and"


def complete(fleet: Fleet, **options: object) -> openai.types.Completion:
    settings = {"model": MODEL, "prompt": PROMPT, "max_tokens": 24, "temperature": 0, **options}
    return fleet.client().completions.create(**settings)


def stream_text(fleet: Fleet, **options: object) -> tuple[str, str]:
    settings = {"model": MODEL, "prompt": PROMPT, "max_tokens": 24, "temperature": 0, **options}
    chunks = list(fleet.client().completions.create(stream=True, **settings))
    text = "".join(chunk.choices[0].text for chunk in chunks)
    return text, chunks[-1].choices[0].finish_reason


def test_length_and_usage(tiny_fleet: Fleet) -> None:
    answer = complete(tiny_fleet)
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.completion_tokens == 24
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 24


def test_counts_in_every_chunk(tiny_fleet: Fleet) -> None:
    chunks = tiny_fleet.client().completions.create(
        model=MODEL,
        prompt=PROMPT,
        max_tokens=24,
        stream=True,
        stream_options={"include_usage": True, "continuous_usage_stats": True},
        extra_body={"ignore_eos": True},
    )
    usages = [chunk.usage for chunk in chunks]
    counts = [usage.completion_tokens for usage in usages]
    assert counts == sorted(counts)
    assert 1 <= counts[0] < counts[-1] == 24
    assert all(u.total_tokens == u.prompt_tokens + u.completion_tokens for u in usages)


def test_stream_equals_whole(tiny_fleet: Fleet) -> None:
    assert stream_text(tiny_fleet) == (complete(tiny_fleet).choices[0].text, "length")


def test_token_ids_equal_their_text(tiny_fleet: Fleet) -> None:
    text = complete(tiny_fleet, prompt="Hello world")
    ids = complete(tiny_fleet, prompt=[19556, 905])
    assert text.usage.prompt_tokens == ids.usage.prompt_tokens == 2
    assert text.choices[0].text == ids.choices[0].text


def test_many_prompts_and_choices_in_order(tiny_fleet: Fleet) -> None:
    prompts = ["one", "two words", "three words here"]
    alone = [complete(tiny_fleet, prompt=prompt).choices[0].text for prompt in prompts]
    together = complete(tiny_fleet, prompt=prompts, n=2)
    assert [choice.index for choice in together.choices] == list(range(6))
    assert [choice.text for choice in together.choices] == [t for t in alone for _ in range(2)]
    lists = complete(tiny_fleet, prompt=[[19556], [19556, 905]])
    assert len(lists.choices) == 2


def test_seed_repeats_and_choices_differ(tiny_fleet: Fleet) -> None:
    options = {"temperature": 1.0, "top_p": 0.95, "seed": 7, "n": 3}
    first = [choice.text for choice in complete(tiny_fleet, **options).choices]
    second = [choice.text for choice in complete(tiny_fleet, **options).choices]
    assert first == second
    assert len(set(first)) == 3
    other = [c.text for c in complete(tiny_fleet, **{**options, "seed": 8, "n": 1}).choices]
    assert other[0] != first[0]


def test_seeded_choice_does_not_depend_on_its_company(tiny_fleet: Fleet) -> None:
    alone = complete(tiny_fleet, temperature=1.0, seed=11).choices[0].text
    crowd = complete(tiny_fleet, prompt=[PROMPT, "a", "b c d", "e"], temperature=1.0, seed=11)
    assert crowd.choices[0].text == alone


@pytest.mark.parametrize("length", [1, 3, 9])
def test_stop_string_ends_generation(tiny_fleet: Fleet, length: int) -> None:
    whole = complete(tiny_fleet, max_tokens=60).choices[0].text
    stop = whole[30 : 30 + length]
    expected = whole[: whole.index(stop)]
    answer = complete(tiny_fleet, max_tokens=60, stop=["never said", stop])
    assert answer.choices[0].text == expected
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.completion_tokens < 60
    assert stream_text(tiny_fleet, max_tokens=60, stop=stop) == (expected, "stop")


def test_top_k_one_is_greedy(tiny_fleet: Fleet) -> None:
    sampled = complete(tiny_fleet, temperature=2.0, extra_body={"top_k": 1})
    assert sampled.choices[0].text == complete(tiny_fleet).choices[0].text
    certain = complete(tiny_fleet, temperature=2.0, extra_body={"min_p": 1.0})
    assert certain.choices[0].text == sampled.choices[0].text


def test_logit_bias_forbids_and_forces(tiny_fleet: Fleet) -> None:
    forced = complete(tiny_fleet, max_tokens=4, logit_bias={"905": 100}, logprobs=0)
    assert forced.choices[0].logprobs.tokens == [" world"] * 4


def test_penalties_change_the_text(tiny_fleet: Fleet) -> None:
    forced = {"logit_bias": {"905": 12.0}, "max_tokens": 30, "logprobs": 0}
    plain = complete(tiny_fleet, **forced).choices[0].logprobs.tokens.count(" world")
    for penalty in (
        {"presence_penalty": 2.0},
        {"frequency_penalty": 2.0},
        {"extra_body": {"repetition_penalty": 5.0}},
    ):
        assert (
            complete(tiny_fleet, **forced, **penalty).choices[0].logprobs.tokens.count(" world")
            < plain
        )


def test_completion_logprobs(tiny_fleet: Fleet) -> None:
    answer = complete(tiny_fleet, logprobs=3, max_tokens=8).choices[0]
    logprobs = answer.logprobs
    assert len(logprobs.tokens) == len(logprobs.token_logprobs) == len(logprobs.top_logprobs) == 8
    for value, top in zip(logprobs.token_logprobs, logprobs.top_logprobs, strict=True):
        assert value == pytest.approx(max(top.values()))
        assert 3 <= len(top) <= 4 or len(top) < 3  # texts of two tokens can be the same
        assert sum(math.exp(v) for v in top.values()) <= 1 + 1e-4
    assert logprobs.text_offset[0] == 0


def test_chat_logprobs_streamed_and_not(tiny_fleet: Fleet) -> None:
    settings = {
        "model": MODEL,
        "messages": [{"role": "user", "content": "Hi"}],
        "max_tokens": 6,
        "temperature": 0,
        "logprobs": True,
        "top_logprobs": 2,
    }
    client = tiny_fleet.client()
    whole = client.chat.completions.create(**settings).choices[0].logprobs.content
    chunks = client.chat.completions.create(**settings, stream=True)
    streamed = [
        entry
        for chunk in chunks
        if chunk.choices and chunk.choices[0].logprobs
        for entry in chunk.choices[0].logprobs.content
    ]
    assert len(whole) == 6
    assert [e.token for e in whole] == [e.token for e in streamed]
    for entry in whole:
        assert len(entry.top_logprobs) == 2
        assert entry.logprob == pytest.approx(entry.top_logprobs[0].logprob)
        assert bytes(entry.bytes).decode(errors="replace") == entry.token


def test_max_tokens_under_both_names(tiny_fleet: Fleet) -> None:
    client = tiny_fleet.client()
    for name in ("max_tokens", "max_completion_tokens"):
        answer = client.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": "Hi"}], **{name: 5}
        )
        assert answer.usage.completion_tokens == 5


def test_content_parts_and_developer_role(tiny_fleet: Fleet) -> None:
    def ask(role: str, content: object) -> str:
        answer = tiny_fleet.client().chat.completions.create(
            model=MODEL,
            messages=[{"role": role, "content": content}, {"role": "user", "content": "Hi"}],
            max_tokens=8,
            temperature=0,
        )
        return answer.choices[0].message.content

    parts = [{"type": "text", "text": "Be "}, {"type": "text", "text": "brief"}]
    assert ask("developer", parts) == ask("system", "Be brief")


def test_models(tiny_fleet: Fleet) -> None:
    client = tiny_fleet.client()
    assert [model.id for model in client.models.list().data] == [MODEL]
    assert client.models.retrieve(MODEL).id == MODEL
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")


def test_metrics_count_what_happened(tiny_fleet: Fleet) -> None:
    before = tiny_fleet.metric("mlxfleet_output_tokens_total")
    done = tiny_fleet.metric(
        "mlxfleet_requests_answered_total", endpoint="completions", outcome="ok"
    )
    complete(tiny_fleet, max_tokens=10)
    assert tiny_fleet.metric("mlxfleet_output_tokens_total") == before + 10
    assert (
        tiny_fleet.metric("mlxfleet_requests_answered_total", endpoint="completions", outcome="ok")
        == done + 1
    )
    assert tiny_fleet.metric("mlxfleet_node_ready", node="node-0") == 1
    assert tiny_fleet.metric("mlxfleet_kv_limit_bytes", node="node-0") > 0
