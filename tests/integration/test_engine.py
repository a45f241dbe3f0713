"""What the engine promises, through HTTP: nothing is computed twice, nobody depends on others."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tests.integration.fleet import Fleet, wait_for

VOCABULARY = range(1000, 40_000)
COMMON, OWN = 500, 20


def complete(fleet: Fleet, prompt: list[int], max_tokens: int) -> dict[str, Any]:
    """A greedy answer to a prompt of token ids."""
    body = {"prompt": prompt, "max_tokens": max_tokens, "temperature": 0, "ignore_eos": True}
    answer = fleet.post("/v1/completions", body)
    assert answer[0] == 200
    result: dict[str, Any] = answer[1]
    return result


def texts(answers: list[dict[str, Any]]) -> list[str]:
    return [answer["choices"][0]["text"] for answer in answers]


def wait_for_report(fleet: Fleet, *, computed: int, reused: int) -> None:
    """The node says four times a second how many prompt tokens it has computed and reused."""

    def reported() -> tuple[float, float]:
        return (
            fleet.metric("mlxfleet_prefilled_tokens_total", node="node-0"),
            fleet.metric("mlxfleet_prefix_cache_hit_tokens_total", node="node-0"),
        )

    # A prefix counts as reused before the rest is computed.
    wait_for(lambda: reported() >= (computed, reused), "the report", deadline_s=5)
    assert reported() == (computed, reused)


def test_a_common_prefix_is_computed_once(tiny_model: Path) -> None:
    rng = random.Random(1)
    common = rng.choices(VOCABULARY, k=COMMON)
    # Own parts begin differently, so that no more than the prefix is common.
    prompts = [[*common, 1000 + i, *rng.choices(VOCABULARY, k=OWN - 1)] for i in range(16)]
    with Fleet("--model", str(tiny_model)) as fleet:
        with ThreadPoolExecutor(4) as pool:
            answers = list(pool.map(lambda prompt: complete(fleet, prompt, 8), prompts))
        cached = [answer["usage"]["prompt_tokens_details"]["cached_tokens"] for answer in answers]
        assert sorted(cached) == [0] + [COMMON] * 15
        # A prompt's last token is its first decode input.
        wait_for_report(fleet, computed=COMMON + 16 * (OWN - 1), reused=15 * COMMON)


def test_a_conversation_is_computed_once(tiny_model: Path) -> None:
    rng = random.Random(2)
    with Fleet("--model", str(tiny_model)) as fleet:
        history = rng.choices(VOCABULARY, k=70)
        first = fleet.post(
            "/v1/completions",
            {"prompt": history, "max_tokens": 40, "temperature": 0, "logprobs": 0},
        )[1]
        generated = first["usage"]["completion_tokens"]
        again = complete(fleet, history, generated)
        assert again["usage"]["prompt_tokens_details"]["cached_tokens"] == 69
        assert texts([again]) == texts([first])
        wait_for_report(fleet, computed=69, reused=69)


def test_many_lengths_together_equal_each_alone(tiny_model: Path) -> None:
    rng = random.Random(3)
    prompts = [rng.choices(VOCABULARY, k=rng.randint(50, 3000)) for _ in range(32)]
    with Fleet("--model", str(tiny_model), "--prefix-cache-gb", "0") as fleet:
        with ThreadPoolExecutor(len(prompts)) as pool:
            together = list(pool.map(lambda prompt: complete(fleet, prompt, 24), prompts))
        alone = [complete(fleet, prompt, 24) for prompt in prompts]
    assert texts(together) == texts(alone)
