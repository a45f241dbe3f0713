"""The first thing a user does: ask the demo model something through the official client."""

from __future__ import annotations

from tests.integration.fleet import Fleet

QUESTION = [{"role": "user", "content": "What is the capital of France?"}]


def test_answers_a_question(demo_fleet: Fleet) -> None:
    client = demo_fleet.client()
    model = client.models.list().data[0].id
    answer = client.chat.completions.create(model=model, messages=QUESTION, temperature=0)
    assert "Paris" in answer.choices[0].message.content
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.prompt_tokens == 37
    assert answer.usage.completion_tokens == 8
    assert answer.usage.total_tokens == 45
    assert answer.usage.prompt_tokens_details.cached_tokens == 0


def test_streams_the_same_answer(demo_fleet: Fleet) -> None:
    client = demo_fleet.client()
    chunks = list(
        client.chat.completions.create(
            model="SmolLM2-135M-Instruct",
            messages=QUESTION,
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == "The capital of France is Paris."
    assert chunks[0].choices[0].delta.role == "assistant"
    reasons = [c.choices[0].finish_reason for c in chunks if c.choices]
    assert reasons[-1] == "stop"
    assert not any(reasons[:-1])
    assert chunks[-1].usage.completion_tokens == 8
    assert [chunk.usage for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)


def test_continues_a_text(demo_fleet: Fleet) -> None:
    client = demo_fleet.client()
    answer = client.completions.create(
        model="SmolLM2-135M-Instruct",
        prompt="The capital of France is",
        max_tokens=2,
        temperature=0,
    )
    assert answer.choices[0].text == " Paris."
    assert answer.choices[0].finish_reason == "length"
