"""Continuous batching gives every request the tokens that mlx-lm gives it alone, for every
architecture. Random float32 weights, see tiny_models."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Any

import mlx.core as mx
import pytest

from mlxfleet.common.messages import FinishReason, Sampling
from mlxfleet.workers.engine import Engine
from mlxfleet.workers.mlx_lm_storage import BatchedCache, MlxLmStorage, SeparateCaches
from mlxfleet.workers.slab_storage import SlabStorage
from tests.workers.engine_driver import (
    Driver,
    Reference,
    Request,
    Result,
    engine_for,
    generate_alone,
    storage_for,
)
from tests.workers.tiny_models import VOCAB_SIZE, build

# What mlx-lm 0.32 cannot batch, or batches wrongly; everything else has to run batched.
SEPARATE = {
    "afm7",
    "deepseek_v41",
    "gemma2",
    "gpt_bigcode",
    "llama4",
    "longcat_flash_ngram",
    "minimax_m3_vl",
    "recurrent_gemma",
}

# Keys and values of all tokens, attended through mlx-lm's function: these have to run in slabs.
IN_SLABS = {
    "Klear",
    "apertus",
    "bailing_moe",
    "cohere",
    "dbrx",
    "deepseek",
    "deepseek_v2",
    "dots1",
    "ernie4_5",
    "ernie4_5_moe",
    "exaone",
    "gemma",
    "glm",
    "glm4",
    "glm4_moe",
    "gpt2",
    "gpt_neox",
    "gptj",
    "granite",
    "granitemoe",
    "helium",
    "hunyuan",
    "hunyuan_v1_dense",
    "internlm2",
    "internlm3",
    "lille-130m",
    "llama",
    "llama4_text",
    "mimo",
    "minicpm",
    "minicpm3",
    "minimax",
    "mixtral",
    "nanbeige",
    "nanochat",
    "nemotron",
    "nemotron-nas",
    "olmo2",
    "olmoe",
    "openelm",
    "phi",
    "phi3",
    "phimoe",
    "phixtral",
    "qwen",
    "qwen2",
    "qwen2_moe",
    "qwen2_vl",
    "qwen3",
    "qwen3_moe",
    "qwen3_vl",
    "qwen3_vl_moe",
    "seed_oss",
    "solar_open",
    "starcoder2",
    "talkie",
    "telechat3",
    "youtu_llm",
}

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


def prompts_of(lengths: Sequence[int]) -> list[list[int]]:
    """Random token ids, always the same."""
    draw = random.Random(1)
    return [[draw.randrange(VOCAB_SIZE) for _ in range(length)] for length in lengths]


def storages(names: Sequence[str]) -> list[Any]:
    """Parameters (name, slabs): every model in mlx-lm's caches, most in slabs as well."""
    return [
        pytest.param(name, slabs, id=f"{name}-{'slabs' if slabs else 'mlx-lm'}")
        for name in names
        for slabs in ((False, True) if name in IN_SLABS else (False,))
    ]


def check_storage(model: Any, name: str, slabs: bool) -> None:
    """The model gets the storage that it should."""
    if slabs:
        assert isinstance(storage_for(model), SlabStorage)
        return
    storage = storage_for(model, slabs=False)
    assert isinstance(storage, MlxLmStorage)
    assert storage.running_type is (SeparateCaches if name in SEPARATE else BatchedCache)
    if name not in IN_SLABS:
        assert isinstance(storage_for(model), MlxLmStorage)


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


@pytest.mark.parametrize(("name", "slabs"), storages(THOROUGH))
def test_eight_requests_together_equal_each_alone(name: str, slabs: bool) -> None:
    model = build(name)
    check_storage(model, name, slabs)
    prompts = prompts_of([1, 2, 1, 16, 17, 33, 48, 70, 20, 60])
    max_tokens = [24, 3, 40, 1, 16, 9, 20, 12]
    arrivals = [0, 0, 1, 4, 9, 14, 15, 30]
    references = [
        generate_alone(model, prompt, tokens)
        for prompt, tokens in zip(prompts, max_tokens, strict=False)
    ]
    assert min(reference.lead for reference in references) > LEAST_LEAD
    eos_id = references[4].ids[10]
    requests = [
        Request(
            rid=str(i),
            prompt=prompts[i],
            sampling=greedy(max_tokens[i], ignore_eos=i % 4 == 0, logprobs=2 if i % 2 else None),
            arrives=arrivals[i],
        )
        for i in range(8)
    ]
    aborted = [
        Request(
            rid="aborted while decoding",
            prompt=prompts[8],
            sampling=greedy(100, ignore_eos=True),
            arrives=2,
            abort_after=(19, 5),
        ),
        Request(
            rid="aborted while prefilling",
            prompt=prompts[9],
            sampling=greedy(100),
            arrives=3,
            abort_after=(20, 0),
        ),
    ]
    engine = engine_for(model, {eos_id}, slabs=slabs)
    results = Driver(engine, requests + aborted, chunks=(1, 7, 16)).run()
    for request, reference in zip(requests, references, strict=True):
        check(results[request.rid], reference, eos_id, request)
    assert len(results["aborted while decoding"].ids) == 5
    assert results["aborted while prefilling"].ids == []
    assert results["aborted while prefilling"].prefilled < 59


@pytest.fixture
def uncompiled() -> Iterator[None]:
    """On CPU, MLX runs a C++ compiler for every fused kernel that the machine has not seen."""
    mx.disable_compile()
    yield
    mx.enable_compile()


@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize(("name", "slabs"), storages(SHORT))
def test_five_requests_together_equal_each_alone(name: str, slabs: bool) -> None:
    model = build(name)
    check_storage(model, name, slabs)
    prompts = prompts_of([1, 9, 1, 18, 40, 12])
    max_tokens = [14, 4, 6, 8, 6]
    # The first joins the batch in the same step as the one to be aborted, the third later.
    arrivals = [2, 4, 7, 8, 12]
    references = [
        generate_alone(model, prompt, tokens)
        for prompt, tokens in zip(prompts, max_tokens, strict=False)
    ]
    assert min(reference.lead for reference in references) > LEAST_LEAD
    requests = [
        Request(
            rid=str(i),
            prompt=prompts[i],
            sampling=greedy(max_tokens[i], logprobs=0 if i % 2 else None),
            arrives=arrivals[i],
        )
        for i in range(5)
    ]
    aborted = Request(rid="aborted", prompt=prompts[5], sampling=greedy(100), abort_after=(11, 4))
    engine = engine_for(model, slabs=slabs)
    results = Driver(engine, [*requests, aborted], chunks=(7, 16)).run()
    for request, reference in zip(requests, references, strict=True):
        check(results[request.rid], reference, None, request)
    assert len(results["aborted"].ids) == 4


@pytest.mark.parametrize("temperature", [0.0, 0.8], ids=["greedy", "seeded"])
@pytest.mark.parametrize(
    ("name", "slabs"), storages(["llama", "gemma3_text", "rwkv7", "granitemoehybrid"])
)
def test_a_moved_request_continues_as_if_it_had_stayed(
    name: str, slabs: bool, temperature: float
) -> None:
    model = build(name)
    prompts = prompts_of([1, 30])
    sampling = [
        Sampling(seed=seed, max_tokens=24, temperature=temperature, top_p=0.9, logprobs=1)
        for seed in (11, 12)
    ]

    def engine() -> Engine:
        return engine_for(model, slabs=slabs)

    stayed = [
        Driver(
            engine(), [Request(rid="r", prompt=prompts[i], sampling=sampling[i])], chunks=[100]
        ).run()["r"]
        for i in range(2)
    ]
    moved = [
        Request(
            rid=f"{i} after {n}",
            prompt=prompts[i],
            output=stayed[i].ids[:n],
            sampling=sampling[i],
            arrives=n // 2,
        )
        for i in range(2)
        for n in (1, 2, 13, 23)
    ]
    results = Driver(engine(), moved, chunks=(5, 16)).run()
    for request in moved:
        i, n = int(request.rid[0]), len(request.output)
        result = results[request.rid]
        assert result.ids == stayed[i].ids[n:]
        assert result.finish == "length"
        assert [token.logprob for token in result.logprobs] == pytest.approx(
            [token.logprob for token in stayed[i].logprobs[n:]], abs=LOGPROB_TOLERANCE
        )
