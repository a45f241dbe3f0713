"""Continuous batching gives every request the tokens that mlx-lm gives it alone, for every
architecture. Random float32 weights, see tiny_models."""

from __future__ import annotations

import random
from typing import Any

import pytest

from mlxfleet.common.messages import FinishReason, Sampling
from mlxfleet.workers.engine import Engine
from tests.workers.engine_driver import Driver, Reference, Request, Result, generate_alone
from tests.workers.tiny_models import VOCAB_SIZE, build

# Tokens can only be compared if rounding cannot change them.
LEAST_LEAD = 1e-4
LOGPROB_TOLERANCE = 2e-3

THOROUGH = [
    # Dense attention, also within a window; mixtures of experts.
    "llama",
    "qwen3",
    "gemma3_text",
    "gpt_oss",
    # Recurrent.
    "mamba",
    "mamba2",
    "rwkv7",
    # Both.
    "falcon_h1",
    "granitemoehybrid",
    "jamba",
    "qwen3_next",
    "recurrent_gemma",
    # Multi-head latent attention.
    "deepseek_v2",
    "deepseek_v3",
    # Chunks of attention, in caches that cannot be merged.
    "llama4",
]

SHORT = [
    "Klear",
    "afm7",
    "afmoe",
    "apertus",
    "baichuan_m1",
    "bailing_hybrid",
    "bailing_moe",
    "bailing_moe_linear",
    "bailing_moe_v3",
    "cohere",
    "cohere2",
    "dbrx",
    "deepseek",
    "deepseek_v32",
    "deepseek_v41",
    "dots1",
    "ernie4_5",
    "ernie4_5_moe",
    "exaone",
    "exaone4",
    "exaone_moe",
    "gear",
    "gemma",
    "gemma2",
    "gemma3",
    "gemma3n",
    "gemma4",
    "gemma4_text",
    "glm",
    "glm4",
    "glm4_moe",
    "glm4_moe_lite",
    "glm_moe_dsa",
    "gpt2",
    "gpt_bigcode",
    "gpt_neox",
    "gptj",
    "granite",
    "granitemoe",
    "helium",
    "hunyuan",
    "hunyuan_v1_dense",
    "internlm2",
    "internlm3",
    "iquestloopcoder",
    "kimi_k25",
    "kimi_k3",
    "kimi_linear",
    "kimi_vl",
    "laguna",
    "lfm2",
    "lfm2-vl",
    "lfm2_moe",
    "lille-130m",
    "llama4_text",
    "longcat_flash",
    "longcat_flash_ngram",
    "mellum",
    "mimo",
    "mimo_v2_flash",
    "minicpm",
    "minicpm3",
    "minimax",
    "minimax_m3_vl",
    "ministral3",
    "mistral3",
    "mistral4",
    "mixtral",
    "muse_glimmer",
    "nanbeige",
    "nanochat",
    "nemotron",
    "nemotron-nas",
    "nemotron_h",
    "olmo2",
    "olmo3",
    "olmo_hybrid",
    "olmoe",
    "openelm",
    "phi",
    "phi3",
    "phimoe",
    "phixtral",
    "pixtral",
    "plamo",
    "plamo2",
    "plamo3",
    "qwen",
    "qwen2",
    "qwen2_moe",
    "qwen2_vl",
    "qwen3_5",
    "qwen3_5_moe",
    "qwen3_moe",
    "qwen3_vl",
    "qwen3_vl_moe",
    "seed_oss",
    "smollm3",
    "solar_open",
    "spark2_5",
    "stablelm",
    "starcoder2",
    "step3p5",
    "talkie",
    "telechat3",
    "youtu_llm",
]


def prompt_of(length: int) -> list[int]:
    """Random token ids, the same for the same length."""
    draw = random.Random(length)
    return [draw.randrange(VOCAB_SIZE) for _ in range(length)]


def greedy(max_tokens: int, **others: Any) -> Sampling:
    return Sampling(seed=0, temperature=0.0, max_tokens=max_tokens, **others)


def expected(
    reference: Reference, eos_id: int | None, sampling: Sampling
) -> tuple[list[int], FinishReason]:
    """Tokens of a request and why it ends."""
    ids = reference.ids[: sampling.max_tokens]
    if eos_id in ids and not sampling.ignore_eos:
        return ids[: ids.index(eos_id) + 1], "stop"
    return ids, "length"


def check(result: Result, reference: Reference, eos_id: int | None, request: Request) -> None:
    ids, finish = expected(reference, eos_id, request.sampling)
    assert result.ids == ids
    assert result.finish == finish
    assert result.prefilled == len(request.prompt) - 1
    if request.sampling.logprobs is not None:
        logprobs = [token.logprob for token in result.logprobs]
        assert logprobs == pytest.approx(reference.logprobs[: len(ids)], abs=LOGPROB_TOLERANCE)


@pytest.mark.parametrize("name", THOROUGH)
def test_eight_requests_together_equal_each_alone(name: str) -> None:
    model = build(name)
    shapes = [(1, 24), (2, 3), (5, 40), (16, 1), (17, 16), (33, 9), (48, 20), (70, 12)]
    arrivals = [0, 0, 1, 4, 9, 14, 15, 30]
    references = [generate_alone(model, prompt_of(n), tokens) for n, tokens in shapes]
    assert min(reference.lead for reference in references) > LEAST_LEAD
    eos_id = references[4].ids[10]
    requests = [
        Request(
            rid=str(i),
            prompt=prompt_of(n),
            sampling=greedy(tokens, ignore_eos=i % 4 == 0, logprobs=2 if i % 2 else None),
            arrives=arrivals[i],
        )
        for i, (n, tokens) in enumerate(shapes)
    ]
    aborted = [
        Request(
            rid="aborted while decoding",
            prompt=prompt_of(20),
            sampling=greedy(100, ignore_eos=True),
            arrives=2,
            abort_after=(19, 5),
        ),
        Request(
            rid="aborted while prefilling",
            prompt=prompt_of(60),
            sampling=greedy(100),
            arrives=3,
            abort_after=(20, 0),
        ),
    ]
    engine = Engine(model, vocab_size=VOCAB_SIZE, eos_ids=frozenset({eos_id}))
    results = Driver(engine, requests + aborted, chunks=(1, 7, 16)).run()
    for request, reference in zip(requests, references, strict=True):
        check(results[request.rid], reference, eos_id, request)
    assert len(results["aborted while decoding"].ids) == 5
    assert results["aborted while prefilling"].ids == []
    assert results["aborted while prefilling"].prefilled < 59


@pytest.mark.parametrize("name", SHORT)
def test_four_requests_together_equal_each_alone(name: str) -> None:
    model = build(name)
    shapes = [(1, 16), (9, 5), (18, 10), (40, 8)]
    references = [generate_alone(model, prompt_of(n), tokens) for n, tokens in shapes]
    assert min(reference.lead for reference in references) > LEAST_LEAD
    requests = [
        Request(
            rid=str(i),
            prompt=prompt_of(n),
            sampling=greedy(tokens, logprobs=0 if i % 2 else None),
            arrives=4 * i,
        )
        for i, (n, tokens) in enumerate(shapes)
    ]
    aborted = Request(
        rid="aborted", prompt=prompt_of(12), sampling=greedy(100), abort_after=(11, 2)
    )
    engine = Engine(model, vocab_size=VOCAB_SIZE, eos_ids=frozenset())
    results = Driver(engine, [*requests, aborted], chunks=(7, 16)).run()
    for request, reference in zip(requests, references, strict=True):
        check(results[request.rid], reference, None, request)
    assert len(results["aborted"].ids) == 2
