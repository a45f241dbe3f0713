"""Arithmetic for CPUs gives what MLX gives."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx_lm.models.activations
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlxfleet.workers import cpu_math
from mlxfleet.workers.cpu_math import (
    GREATEST_BROADCAST,
    LEAST_SOFTMAX_SIZE,
    LEAST_SWIGLU_SIZE,
    Rope,
    attention,
    compiled_size,
    exp,
    rms_norm,
    rms_norm_of_mlx,
    rope_of_mlx,
    swiglu,
    swiglu_of,
)
from mlxfleet.workers.kv_format import additive

quick = settings(derandomize=True, deadline=None, database=None, max_examples=40)


def normal(*shape: int, seed: int = 0) -> mx.array:
    return mx.array(np.random.default_rng(seed).normal(size=shape).astype(np.float32))


def floats(x: mx.array) -> np.ndarray:
    return np.array(x.astype(mx.float32), dtype=np.float64)


# --- exp ----------------------------------------------------------------------------------------


def assert_exact(x: np.ndarray) -> None:
    """Within 2e-7, and what the last bit of `x` makes."""
    expected = np.exp(x.astype(np.float64))
    errors = np.abs(floats(exp(mx.array(x))) - expected) / expected
    assert (errors <= 2e-7 + np.finfo(np.float32).eps * np.abs(x)).all()


def test_exp_is_as_exact_as_float32_is() -> None:
    assert_exact(np.linspace(-87, 88, 1_000_001, dtype=np.float32))
    assert_exact(np.linspace(-1, 1, 1_000_001, dtype=np.float32))


def test_exp_where_the_exponent_changes() -> None:
    borders = np.log(2) * np.arange(-125, 127).astype(np.float64)
    near = np.linspace(-1e-5, 1e-5, 2_001)
    assert_exact((borders[:, None] + near).astype(np.float32).reshape(-1))


@quick
@given(st.lists(st.floats(-87, 88, width=32), min_size=1, max_size=50))
def test_exp_of_any_number(numbers: list[float]) -> None:
    assert_exact(np.array(numbers, dtype=np.float32))


@quick
@given(st.integers(1, 1 << 20))
def test_exp_is_compiled_for_few_sizes(size: int) -> None:
    compiled = compiled_size(size)
    assert size <= compiled <= size * 1.125 + 1
    assert compiled_size(compiled) == compiled


def test_a_power_of_two_has_eight_sizes() -> None:
    assert len({compiled_size(size) for size in range(4097, 8193)}) == 8


@pytest.mark.parametrize("shape", [(1,), (3, 7), (2, 3, 5, 11), (1023,), (1025,)])
def test_exp_keeps_the_shape(shape: tuple[int, ...]) -> None:
    x = normal(*shape)
    assert exp(x).shape == x.shape
    assert mx.allclose(exp(x), mx.exp(x), rtol=1e-6)


def test_exp_of_0_is_1() -> None:
    assert exp(mx.array([0.0, -0.0])).tolist() == [1, 1]


@pytest.mark.parametrize(("beyond", "border"), [(-88, -87), (-1e30, -87), (89, 88), (1e30, 88)])
def test_exp_is_clamped_to_what_float32_holds(beyond: float, border: float) -> None:
    assert exp(mx.array([beyond])).item() == exp(mx.array([float(border)])).item()


def test_exp_of_infinities_is_finite_and_not_0() -> None:
    least, greatest = floats(exp(mx.array([-mx.inf, mx.inf])))
    assert 0 < least < 1e-37
    assert 1e38 < greatest < np.inf


# --- activation ---------------------------------------------------------------------------------


@pytest.mark.parametrize("columns", [8, LEAST_SWIGLU_SIZE, 3 * LEAST_SWIGLU_SIZE + 1])
def test_swiglu_is_silu_times_x(columns: int) -> None:
    gate, x = 4 * normal(2, 1, columns), normal(2, 1, columns, seed=1)
    expected = nn.silu(gate) * x
    assert mx.allclose(swiglu(gate, x), expected, rtol=1e-5, atol=1e-6)


def test_swiglu_of_large_gates_is_x_times_them_or_0() -> None:
    gate = mx.concatenate([mx.full((LEAST_SWIGLU_SIZE,), 500.0), mx.full((8,), -500.0)])
    gate = gate[None, None]
    result = floats(swiglu(gate, mx.full(gate.shape, 2.0)))[0, 0]
    assert np.allclose(result[:LEAST_SWIGLU_SIZE], 1000)
    assert np.allclose(result[LEAST_SWIGLU_SIZE:], 0, atol=1e-30)


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16])
def test_swiglu_keeps_other_number_formats(dtype: mx.Dtype) -> None:
    gate = normal(1, 1, LEAST_SWIGLU_SIZE).astype(dtype)
    x = normal(1, 1, LEAST_SWIGLU_SIZE, seed=1).astype(dtype)
    assert swiglu(gate, x).dtype == dtype
    assert mx.allclose(swiglu(gate, x), nn.silu(gate) * x, rtol=0.02, atol=0.02)


def test_swiglu_is_compiled_for_passes_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[tuple[int, ...]] = []

    def spy(gate: mx.array, x: mx.array, *bounds: mx.array) -> mx.array:
        compiled.append(gate.shape)
        return swiglu_of(gate, x, *bounds)

    monkeypatch.setattr(cpu_math, "compiled_swiglu", spy)
    for shape in [(8, 1, LEAST_SWIGLU_SIZE), (1, 8, LEAST_SWIGLU_SIZE), (8, 1, 4)]:
        swiglu(normal(*shape), normal(*shape))
    assert compiled == [(8, 1, LEAST_SWIGLU_SIZE)]


# --- norm ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1, 1, 64), (8, 1, 64), (1, 1, 7), (64, 1, 576), (2, 3, 64)])
def test_rms_norm_is_that_of_mlx(shape: tuple[int, ...]) -> None:
    x, weight = 3 * normal(*shape), normal(shape[-1], seed=1)
    assert mx.allclose(rms_norm(x, weight, 1e-5), rms_norm_of_mlx(x, weight, 1e-5), atol=1e-5)
    assert mx.allclose(rms_norm(x, None, 1e-5), rms_norm_of_mlx(x, None, 1e-5), atol=1e-5)


def test_rms_norm_keeps_small_numbers_apart_by_its_epsilon() -> None:
    x, weight = mx.full((1, 1, 8), 1e-3), mx.ones(8)
    for eps in (1e-5, 1e-6):
        assert mx.allclose(rms_norm(x, weight, eps), rms_norm_of_mlx(x, weight, eps), rtol=1e-5)


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16])
def test_rms_norm_keeps_other_number_formats(dtype: mx.Dtype) -> None:
    x, weight = normal(2, 1, 64).astype(dtype), normal(64, seed=1).astype(dtype)
    assert rms_norm(x, weight, 1e-5).dtype == dtype


# --- attention ----------------------------------------------------------------------------------


def assert_attends(
    rows: int,
    heads: int,
    kv_heads: int,
    n: int,
    length: int,
    dim: int = 16,
    value_dim: int | None = None,
    mask: mx.array | None = None,
    seed: int = 0,
) -> None:
    """Same as MLX's attention."""
    queries = 2 * normal(rows, heads, n, dim, seed=seed)
    keys = normal(rows, kv_heads, length, dim, seed=seed + 1)
    values = normal(rows, kv_heads, length, value_dim or dim, seed=seed + 2)
    scale = dim**-0.5
    expected = mx.fast.scaled_dot_product_attention(queries, keys, values, scale=scale, mask=mask)
    output = attention(queries, keys, values, scale, mask)
    assert output.shape == expected.shape
    assert mx.allclose(output, expected, rtol=1e-4, atol=1e-5)


def lengths_mask(rows: int, length: int) -> mx.array:
    """Every row sees another number of keys, from 1 on."""
    seen = mx.arange(length)[None] <= (mx.arange(rows) * 7 % length)[:, None]
    return additive(seen, mx.float32)[:, None, None, :]


def causal_mask(n: int, length: int) -> mx.array:
    start = length - n
    seen = mx.arange(length)[None] <= mx.arange(start, length)[:, None]
    return additive(seen, mx.float32)[None, None]


SMALL, LARGE = 40, 4 * LEAST_SOFTMAX_SIZE // 64
GROUPS = [(4, 4), (4, 2), (8, 1), (9, 3)]


@pytest.mark.parametrize("length", [1, SMALL, LARGE])
@pytest.mark.parametrize(("heads", "kv_heads"), GROUPS)
def test_attention_of_decoding_rows(heads: int, kv_heads: int, length: int) -> None:
    assert_attends(3, heads, kv_heads, 1, length)
    assert_attends(3, heads, kv_heads, 1, length, mask=lengths_mask(3, length))


@pytest.mark.parametrize(("n", "length"), [(2, 2), (5, 9), (64, 64), (100, 700), (3, LARGE)])
@pytest.mark.parametrize(("heads", "kv_heads"), GROUPS)
def test_attention_of_a_chunk(heads: int, kv_heads: int, n: int, length: int) -> None:
    assert_attends(1, heads, kv_heads, n, length, mask=causal_mask(n, length))


def test_sizes_are_on_both_sides_of_the_border() -> None:
    assert 3 * 9 * SMALL < LEAST_SOFTMAX_SIZE <= 3 * 8 * LARGE
    assert 5 * 9 * 9 < LEAST_SOFTMAX_SIZE <= 64 * 64 * 9


def test_values_may_be_of_another_size() -> None:
    assert_attends(2, 4, 2, 1, SMALL, dim=24, value_dim=8)
    assert_attends(1, 4, 2, 100, 300, dim=24, value_dim=8, mask=causal_mask(100, 300))


def test_scores_far_apart_do_not_overflow() -> None:
    queries, keys = 1e3 * normal(1, 4, 64, 16), 1e3 * normal(1, 4, 512, 16, seed=1)
    values = normal(1, 4, 512, 16, seed=2)
    expected = mx.fast.scaled_dot_product_attention(queries, keys, values, scale=0.25)
    assert mx.allclose(attention(queries, keys, values, 0.25, None), expected, atol=1e-4)


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16])
@pytest.mark.parametrize("length", [SMALL, LARGE])
def test_attention_keeps_other_number_formats(dtype: mx.Dtype, length: int) -> None:
    queries, keys, values = (
        normal(2, heads, n, 16, seed=heads + n).astype(dtype)
        for heads, n in ((8, 1), (2, length), (2, length))
    )
    expected = mx.fast.scaled_dot_product_attention(queries, keys, values, scale=0.25)
    output = attention(queries, keys, values, 0.25, None)
    assert output.dtype == dtype
    assert mx.allclose(output, expected, atol=0.02)


@quick
@given(
    rows=st.integers(1, 5),
    kv_heads=st.integers(1, 4),
    group=st.integers(1, 5),
    n=st.integers(1, 40),
    start=st.integers(0, 600),
    dim=st.sampled_from([4, 10, 64]),
    masked=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_attention_of_any_shape(
    rows: int, kv_heads: int, group: int, n: int, start: int, dim: int, masked: bool, seed: int
) -> None:
    length = start + n
    mask = causal_mask(n, length) if masked else None
    assert_attends(rows, kv_heads * group, kv_heads, n, length, dim, mask=mask, seed=seed)


# --- rotary positions ---------------------------------------------------------------------------


def assert_rotates(rope: Rope, x: mx.array, dims: int, offset: int | mx.array, **how: Any) -> None:
    """Same as MLX's, as far as float32 knows the angle at such positions."""
    options: dict[str, Any] = {"traditional": False, "base": 10_000.0, "scale": 1.0, **how}
    expected = rope_of_mlx(x, dims, offset=offset, **options)
    rope.shared = offset if isinstance(offset, mx.array) else None
    rotated = rope(x, dims, offset=offset, **options)
    assert rotated.shape == expected.shape
    assert rotated.dtype == expected.dtype
    assert mx.allclose(rotated, expected, atol=2e-3)


POSITIONS = mx.array([0, 1, 5, 700, 3000], dtype=mx.int32)


@pytest.mark.parametrize("traditional", [False, True])
@pytest.mark.parametrize("dims", [64, 32, 2])
@pytest.mark.parametrize(
    "how",
    [
        {},
        {"scale": 0.25},
        {"base": 500_000.0},
        {"base": None, "freqs": True},
        {"base": None, "freqs": True, "scale": 2.0},
    ],
    ids=str,
)
def test_one_token_a_row_is_rotated_to_its_position(
    traditional: bool, dims: int, how: dict[str, Any]
) -> None:
    if how.get("freqs"):
        how = {**how, "freqs": mx.exp(mx.arange(dims // 2) / 7.0)}
    rope = Rope()
    for seed in (0, 1):
        x = normal(5, 3, 1, 64, seed=seed)
        assert_rotates(rope, x, dims, POSITIONS, traditional=traditional, **how)


@pytest.mark.parametrize("offset", [0, 17, mx.array(17), mx.array([3, 4])])
def test_other_shapes_are_rotated_by_mlx(offset: int | mx.array) -> None:
    assert_rotates(Rope(), normal(2, 3, 6, 8), 8, offset)


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16])
def test_other_number_formats_are_rotated_by_mlx(dtype: mx.Dtype) -> None:
    assert_rotates(Rope(), normal(5, 3, 1, 8).astype(dtype), 8, POSITIONS)


def test_what_was_computed_for_one_way_of_rotating_serves_no_other() -> None:
    rope = Rope()
    freqs = [mx.exp(mx.arange(4) / spread) for spread in (2.0, 3.0)]
    ways: list[dict[str, Any]] = [
        {"offset": POSITIONS},
        {"offset": POSITIONS + 1},
        {"offset": POSITIONS, "base": 100.0},
        {"offset": POSITIONS, "scale": 0.5},
        {"offset": POSITIONS, "traditional": True},
        {"offset": POSITIONS, "base": None, "freqs": freqs[0]},
        {"offset": POSITIONS, "base": None, "freqs": freqs[1]},
    ]
    for way in [*ways, *reversed(ways)]:
        assert_rotates(rope, normal(5, 2, 1, 8), 8, **way)
        assert_rotates(rope, normal(5, 4, 1, 16), 8, **way)
        assert_rotates(rope, normal(5, 2, 1, 16), 8, **way)


@pytest.mark.parametrize("heads", [4, GREATEST_BROADCAST // 40 + 1])
def test_layers_that_share_positions_share_the_angles(
    heads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rope = Rope()
    computed = []
    tables = cpu_math.compiled_tables

    def counted(*args: Any) -> Any:
        computed.append(args)
        return tables(*args)

    monkeypatch.setattr(cpu_math, "compiled_tables", counted)
    for number in (heads, 2, heads, 2):
        assert_rotates(rope, normal(5, number, 1, 8), 8, POSITIONS)
    assert len(computed) == 1


@quick
@given(
    positions=st.lists(st.integers(0, 4000), min_size=1, max_size=20),
    heads=st.integers(1, 4),
    half=st.integers(1, 32),
    more=st.integers(0, 20),
    traditional=st.booleans(),
    scale=st.floats(0.1, 2.0),
    base=st.floats(10.0, 1e6),
)
def test_any_part_of_a_head_is_rotated(
    positions: list[int],
    heads: int,
    half: int,
    more: int,
    traditional: bool,
    scale: float,
    base: float,
) -> None:
    assert_rotates(
        Rope(),
        normal(len(positions), heads, 1, 2 * half + more),
        2 * half,
        mx.array(positions, dtype=mx.int32),
        traditional=traditional,
        scale=scale,
        base=base,
    )


def test_models_rotate_and_activate_this_way_without_metal() -> None:
    assert cpu_math.USED is not mx.metal.is_available()
    assert isinstance(mx.fast.rope, Rope) is cpu_math.USED
    assert (mlx_lm.models.activations.swiglu is swiglu) is cpu_math.USED
