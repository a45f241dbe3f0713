"""Storage in mlx-lm's caches: which form a model gets, and rows that come and go."""

from __future__ import annotations

import logging
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
)

from mlxfleet.workers.kv_storage import create_storage
from mlxfleet.workers.mlx_lm_storage import (
    BatchedCache,
    MlxLmStorage,
    SeparateCaches,
    can_merge,
    prefill,
    running_cache_for,
)
from tests.workers.tiny_models import build


@pytest.mark.parametrize("cache", [KVCache(), RotatingKVCache(8), ArraysCache(2)])
def test_plain_caches_can_be_merged(cache: Any) -> None:
    assert can_merge(cache)
    assert can_merge(CacheList(cache, CacheList(KVCache())))


@pytest.mark.parametrize("cache", [ChunkedKVCache(8), QuantizedKVCache()])
def test_a_cache_without_a_batched_form_cannot_be_merged_nor_a_list_with_it(cache: Any) -> None:
    assert not can_merge(cache)
    assert not can_merge(CacheList(KVCache(), cache))
    assert not can_merge(CacheList(KVCache(), CacheList(cache)))


@pytest.mark.parametrize("name", ["llama", "gpt_oss", "mamba2", "falcon_h1", "deepseek_v3"])
def test_models_run_batched(name: str) -> None:
    assert running_cache_for(build(name)) == (BatchedCache, None)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("gemma2", "cannot be broadcast"),
        ("gpt_bigcode", "Python scalars"),
        ("longcat_flash_ngram", "shapes"),
        ("afm7", "left padding"),
        ("minimax_m3_vl", "blocks"),
        ("recurrent_gemma", "without a state"),
    ],
)
def test_a_model_that_fails_or_errs_in_a_batch_runs_row_by_row_and_says_why(
    name: str, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        storage = create_storage(build(name), None, budget_bytes=0, cold_blocks=0)
    assert isinstance(storage, MlxLmStorage)
    assert storage.running_type is SeparateCaches
    assert name in caplog.text
    assert why in caplog.text


def test_what_a_configuration_makes_impossible_is_noticed() -> None:
    assert running_cache_for(build("llama", rope_scaling=None)) == (BatchedCache, None)
    dynamic = {"rope_type": "dynamic", "factor": 2.0}
    running, why = running_cache_for(build("llama", rope_scaling=dynamic))
    assert running is SeparateCaches
    assert why


@pytest.mark.parametrize("name", ["llama4", "deepseek_v41"])
def test_caches_that_mlx_lm_cannot_merge_are_not_worth_a_warning(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        storage = create_storage(build(name), None, budget_bytes=0, cold_blocks=0)
    assert isinstance(storage, MlxLmStorage)
    assert storage.running_type is SeparateCaches
    assert not caplog.records


@pytest.mark.parametrize("storage", [BatchedCache, SeparateCaches])
@pytest.mark.parametrize("name", ["llama", "gpt_oss", "mamba2"])
def test_rows_may_come_go_and_change_places(
    name: str, storage: type[BatchedCache] | type[SeparateCaches]
) -> None:
    model = build(name)
    rows = [[5], [1, 2, 3], list(range(40)), [7, 8, 9, 10]]
    cache = storage()
    cache.join([prefill(model, row[:-1]) for row in rows[:3]])
    cache.keep([2, 0])
    cache.join([prefill(model, rows[3][:-1])])
    running = [rows[2], rows[0], rows[3]]
    for token in (11, 12):
        logits = cache.forward(model, mx.array([row[-1] for row in running]))
        alone = mx.concatenate([model(mx.array([row]))[:, -1] for row in running])
        assert mx.allclose(logits, alone, atol=1e-3)
        running = [[*row, token] for row in running]
    cache.keep([])
    cache.join([prefill(model, rows[1][:-1])])
    logits = cache.forward(model, mx.array(rows[1][-1:]))
    assert mx.allclose(logits, model(mx.array([rows[1]]))[:, -1], atol=1e-3)
