"""Memory: shares that add up, and passes that are measured before they are run."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxfleet.common.config import WorkerOptions
from mlxfleet.common.errors import ModelError
from mlxfleet.workers.memory import (
    LEAST_BUFFER_CACHE_BYTES,
    MemoryPlan,
    measure_activations,
    memory_limit_bytes,
    pass_bytes,
    plan_memory,
    set_memory_limits,
)
from tests.workers.engine_driver import storage_for
from tests.workers.tiny_models import COMMON, VOCAB_SIZE, build

GB = 10**9
BLOCK_BYTES = 1000


def plan(prefix_cache_gb: float | None = None, **sizes: Any) -> MemoryPlan:
    return plan_memory(
        WorkerOptions(prefix_cache_gb=prefix_cache_gb),
        **{
            "limit_bytes": 10 * GB,
            "weights_bytes": 4 * GB,
            "activation_bytes": 2 * GB,
            "block_bytes": BLOCK_BYTES,
            **sizes,
        },
    )


def test_a_quarter_of_what_is_left_is_for_prefixes() -> None:
    assert plan().prefix_cache_bytes == GB
    assert plan().kv_bytes == 3 * GB


def test_prefixes_get_what_the_options_say() -> None:
    assert plan(2.5).prefix_cache_bytes == 2.5 * GB
    assert plan(2.5).kv_bytes == 1.5 * GB


def test_no_prefix_cache_leaves_all_to_sequences() -> None:
    assert plan(0.0).prefix_cache_bytes == 0
    assert plan(0.0).kv_bytes == 4 * GB


@pytest.mark.parametrize("prefix_cache_gb", [None, 0.0])
def test_a_model_without_reusable_prefixes_has_no_prefix_cache(
    prefix_cache_gb: float | None,
) -> None:
    assert plan(prefix_cache_gb, block_bytes=0).prefix_cache_bytes == 0


def test_a_prefix_cache_is_refused_where_it_is_impossible() -> None:
    with pytest.raises(ModelError, match="--prefix-cache-gb"):
        plan(1.0, block_bytes=0)


def test_a_prefix_cache_of_less_than_a_block_is_none() -> None:
    assert plan(1e-7).prefix_cache_bytes == 0


@given(
    limit=st.integers(0, 10**12),
    weights=st.integers(0, 10**12),
    activations=st.integers(0, 10**11),
    block=st.integers(0, 10**8),
)
def test_shares_add_up_whatever_is_asked(
    limit: int, weights: int, activations: int, block: int
) -> None:
    shared = plan(
        limit_bytes=limit, weights_bytes=weights, activation_bytes=activations, block_bytes=block
    )
    parts = (shared.weights_bytes, shared.activation_bytes, shared.prefix_cache_bytes)
    assert sum(parts) + shared.kv_bytes == limit
    assert shared.prefix_cache_bytes >= 0
    assert shared.kv_bytes >= 0 or weights + activations > limit
    assert shared.prefix_cache_bytes % (block or 1) == 0


def test_the_table_adds_up_to_its_last_line() -> None:
    sizes = [float(line.split(" GB")[0].split()[-1]) for line in plan().table(500)]
    assert sum(sizes[:-1]) == sizes[-1] == 10.0


def test_the_table_says_how_many_tokens_fit() -> None:
    table = plan().table(500)
    assert table[2].split() == ["prefix", "cache", "1.000", "GB", "2000000", "tokens"]
    assert table[3].split() == ["KV", "cache", "3.000", "GB", "6000000", "tokens"]


def test_the_table_counts_no_tokens_where_they_cost_nothing() -> None:
    assert not any("tokens" in line for line in plan(block_bytes=0).table(0))


def test_the_limit_is_what_the_options_say_or_a_part_of_the_machine() -> None:
    assert memory_limit_bytes(WorkerOptions(memory_gb=1.5)) == 1.5 * GB
    assert memory_limit_bytes(WorkerOptions(memory_gb=1.5), 0.5) == 1.5 * GB
    whole = memory_limit_bytes(WorkerOptions())
    assert memory_limit_bytes(WorkerOptions(), 0.25) == pytest.approx(whole / 4, rel=0.01)
    assert memory_limit_bytes(WorkerOptions()) > 0


@pytest.mark.parametrize("activation_bytes", [0, 10**9])
def test_free_buffers_are_kept_for_a_pass(
    activation_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits: dict[str, int] = {}
    for name in ("set_memory_limit", "set_cache_limit"):
        monkeypatch.setattr(f"mlx.core.{name}", lambda size, name=name: limits.update({name: size}))
    monkeypatch.setattr("mlx.core.metal.is_available", lambda: False)
    set_memory_limits(5 * GB, activation_bytes)
    assert limits == {
        "set_memory_limit": 5 * GB,
        "set_cache_limit": max(activation_bytes, LEAST_BUFFER_CACHE_BYTES),
    }


# --- activations --------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["llama", "gpt_oss", "mamba2"])
def model(request: pytest.FixtureRequest) -> Any:
    return build(request.param)


def activations(model: Any, **sizes: Any) -> int:
    return measure_activations(
        storage_for(model),
        COMMON,
        **{
            "max_chunk_tokens": 64,
            "max_running": 4,
            "vocab_size": VOCAB_SIZE,
            "context_length": 512,
            **sizes,
        },
    )


def test_a_longer_pass_takes_more(model: Any) -> None:
    assert 0 < pass_bytes(storage_for(model), 16) < pass_bytes(storage_for(model), 200)


def test_activations_grow_with_the_largest_chunk(model: Any) -> None:
    small, medium, large = (activations(model, max_chunk_tokens=n) for n in (16, 64, 512))
    assert 0 < small < medium < large


@pytest.mark.parametrize(
    "larger", [{"max_running": 64}, {"vocab_size": 100_000}, {"context_length": 400_000}], ids=str
)
def test_activations_grow_with_whatever_a_pass_handles(larger: dict[str, int]) -> None:
    model = build("llama")
    assert activations(model, **larger) > activations(model)


def test_the_largest_pass_fits_in_what_was_extrapolated() -> None:
    model = build("llama")
    assert pass_bytes(storage_for(model), 400) <= activations(model, max_chunk_tokens=400)


def test_a_storage_is_empty_after_it_was_measured() -> None:
    storage: Any = storage_for(build("llama"))
    pass_bytes(storage, 16)
    assert storage.allocated_bytes == 0
