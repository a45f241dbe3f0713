"""What mlx-lm's caches cost."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import pytest
from mlx_lm.models.cache import (
    ArraysCache,
    CacheList,
    ChunkedKVCache,
    KVCache,
    QuantizedKVCache,
    RotatingKVCache,
    make_prompt_cache,
)

from mlxfleet.workers.kv_cost import flatten, measure
from mlxfleet.workers.mlx_lm_storage import prefill
from tests.workers.tiny_models import HEAD_DIM, WINDOW, build

KV_HEADS = 2
FLOAT32 = 4
# Keys and values of one token in one layer.
TOKEN_BYTES = 2 * KV_HEADS * HEAD_DIM * FLOAT32


def used(cache: Any, tokens: int, head_dim: int = HEAD_DIM) -> Any:
    """A cache that holds some tokens."""
    keys = mx.zeros((1, KV_HEADS, tokens, head_dim))
    cache.update_and_fetch(keys, keys)
    return cache


def test_a_token_costs_its_keys_and_values_whatever_is_allocated() -> None:
    cache = used(KVCache(), 3)
    assert cache.keys.shape[2] == KVCache.step
    assert measure([cache]) == (0, TOKEN_BYTES, [])
    assert measure([cache, used(KVCache(), 300)]) == (0, 2 * TOKEN_BYTES, [])


def test_keys_and_values_may_differ_in_size() -> None:
    cache = KVCache()
    cache.update_and_fetch(mx.zeros((1, 1, 3, 24)), mx.zeros((1, 1, 3, 4), dtype=mx.float16))
    assert measure([cache]) == (0, 24 * 4 + 4 * 2, [])


def test_quantized_tokens_cost_their_packed_values_scales_and_biases() -> None:
    cache = used(QuantizedKVCache(group_size=32, bits=8), 3, head_dim=32)
    per_row = 32 + 2 * FLOAT32
    assert measure([cache]) == (0, 2 * KV_HEADS * per_row, [])


def test_windows_cost_up_to_their_size_and_are_added_up_by_size() -> None:
    caches = [used(RotatingKVCache(size), 3) for size in (8, 16, 8)]
    assert measure(caches) == (0, 0, [(8, 2 * TOKEN_BYTES), (16, TOKEN_BYTES)])


def test_a_chunk_and_the_next_token_are_a_window() -> None:
    assert measure([used(ChunkedKVCache(8), 3)]) == (0, 0, [(9, TOKEN_BYTES)])


def test_a_recurrent_state_costs_the_same_however_long_the_sequence() -> None:
    cache = ArraysCache(2)
    cache[0] = mx.zeros((1, 2, 5))
    cache[1] = mx.zeros((1, 3), dtype=mx.float16)
    assert measure([cache]) == (40 + 6, 0, [])


def test_lists_of_caches_are_the_sum_of_what_is_in_them() -> None:
    state = ArraysCache(1)
    state[0] = mx.zeros((1, 4))
    inner = CacheList(state, used(KVCache(), 3))
    cache = [CacheList(inner, used(RotatingKVCache(8), 3)), used(KVCache(), 3)]
    assert len(flatten(cache)) == 4
    assert measure(cache) == (16, 2 * TOKEN_BYTES, [(8, TOKEN_BYTES)])


def test_an_unused_cache_costs_nothing() -> None:
    assert measure([KVCache(), RotatingKVCache(8), ArraysCache(2)]) == (0, 0, [])


@pytest.mark.parametrize(
    "name",
    [
        "llama",
        "gpt_oss",
        "mamba",
        "rwkv7",
        "falcon_h1",
        "lfm2",
        "deepseek_v3",
        "deepseek_v32",
        "llama4",
        "deepseek_v41",
        "gemma4_text",
        "minimax_m3_vl",
        "recurrent_gemma",
    ],
)
def test_what_is_measured_on_three_tokens_is_enough_for_many(name: str) -> None:
    model = build(name)
    fixed, per_token, windowed = measure(prefill(model, [1, 2, 3]))
    cache = prefill(model, [1] * 7)
    for tokens in range(8, 60):
        model(mx.array([[1]]), cache=cache)
        mx.eval([layer.state for layer in cache])
        holds = sum(held_bytes(layer) for layer in flatten(cache))
        windows = sum(min(tokens, window) * size for window, size in windowed)
        assert holds <= fixed + tokens * per_token + windows


def held_bytes(cache: Any) -> int:
    """Bytes of a cache without what is allocated ahead."""
    if hasattr(cache, "keys_and_values"):
        return sum(array.nbytes for array in cache.keys_and_values())
    return int(cache.nbytes)


def test_a_window_is_really_smaller_than_what_the_tests_decode() -> None:
    sizes = {getattr(layer, "max_size", None) for layer in make_prompt_cache(build("gpt_oss"))}
    assert sizes == {None, WINDOW}
