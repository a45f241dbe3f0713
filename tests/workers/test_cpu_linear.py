"""Layers that compute in other ways give what the model's own give."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlxfleet.common.blas import find_openblas, worker_environment
from mlxfleet.workers import cpu_linear, openblas
from mlxfleet.workers.cpu_linear import (
    FEW_ROWS,
    GREATEST_WIDTH,
    GREATEST_WIDTH_WITHOUT,
    LEAST_VOCABULARY,
    MOST_PRODUCTS,
    MOST_RESULTS,
    PARTS,
    CpuEmbedding,
    CpuLinear,
    adapt,
    head,
    part_size,
    parts_of,
)

pytestmark = pytest.mark.skipif(mx.metal.is_available(), reason="for machines without Metal")
quick = settings(derandomize=True, deadline=None, database=None, max_examples=40)


def normal(*shape: int, seed: int = 0) -> mx.array:
    return mx.array(np.random.default_rng(seed).normal(size=shape).astype(np.float32))


@pytest.fixture(autouse=True)
def the_head_of_no_model() -> Iterator[None]:
    """What a loaded model's head is like is global; leave it as it was."""
    before = head.narrow
    head.narrow = False
    yield
    head.narrow = before


Use = Callable[[int], None]


@pytest.fixture
def kernels_for(monkeypatch: pytest.MonkeyPatch) -> Use:
    """Makes OpenBLAS one with kernels for small products of up to so many rows. It computes the
    same with any."""

    def use(rows: int) -> None:
        monkeypatch.setattr(cpu_linear, "few_rows", lambda: rows)

    return use


class Tied(nn.Module):
    """A model whose embedding is its head."""

    def __init__(self, vocabulary: int = LEAST_VOCABULARY, width: int = 64) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)

    def logits(self, x: mx.array) -> mx.array:
        return self.embed.as_linear(x)


class Untied(nn.Module):
    """A model with a head of its own, beside a layer that is small for any kernels."""

    def __init__(self, *, bias: bool = False) -> None:
        super().__init__()
        self.layer = nn.Linear(64, 64, bias=False)
        self.head = nn.Linear(64, LEAST_VOCABULARY, bias=bias)

    def logits(self, x: mx.array) -> mx.array:
        return self.head(self.layer(x))


def with_bias() -> Untied:
    model = Untied(bias=True)
    model.head.bias = normal(LEAST_VOCABULARY, seed=1)
    return model


@pytest.mark.parametrize("rows", [0, FEW_ROWS])
@pytest.mark.parametrize("make", [Tied, Untied, with_bias])
@pytest.mark.parametrize(
    "shape", [(1, 1, 64), (2, 1, 64), (8, 1, 64), (9, 1, 64), (2, 5, 64), (3, 64)]
)
def test_an_adapted_model_gives_the_same_logits(
    rows: int, make: Any, shape: tuple[int, ...], kernels_for: Use
) -> None:
    kernels_for(rows)
    model, x = make(), normal(*shape)
    before = model.logits(x)
    adapt(model)
    assert head.narrow
    assert model.logits(x).shape == before.shape
    assert mx.allclose(model.logits(x), before, rtol=1e-5, atol=1e-5)


def test_without_such_kernels_weights_are_laid_out_by_inputs(kernels_for: Use) -> None:
    kernels_for(0)
    model = Untied()
    before = np.array(model.layer.weight)
    adapt(model)
    assert type(model.layer) is type(model.head) is CpuLinear
    assert np.array_equal(np.array(model.layer.weight), before)
    assert strides(model.layer.weight) == (4, 4 * 64)
    # Of a narrow head they stay as they are.
    assert strides(model.head.weight) == (4 * 64, 4)
    tied = Tied(width=GREATEST_WIDTH_WITHOUT + 1)
    ids = mx.array([3, 5])
    embedded = np.array(tied.embed(ids))
    adapt(tied)
    assert type(tied.embed) is CpuEmbedding
    assert np.array_equal(np.array(tied.embed(ids)), embedded)


def strides(array: mx.array) -> tuple[int, ...]:
    """Bytes between neighbours along each dimension: as numpy sees it, which does not copy."""
    return np.array(array, copy=False).strides


def test_laying_out_takes_no_more_memory(kernels_for: Use) -> None:
    kernels_for(0)
    model = Untied()
    mx.eval(model.parameters())
    before = mx.get_active_memory()
    adapt(model)
    assert mx.get_active_memory() == before


@pytest.mark.parametrize(
    ("rows", "greatest"), [(0, GREATEST_WIDTH_WITHOUT), (FEW_ROWS, GREATEST_WIDTH)]
)
def test_the_heads_of_narrow_models_are_by_columns(
    rows: int, greatest: int, kernels_for: Use
) -> None:
    kernels_for(rows)
    adapt(Tied(width=greatest))
    assert head.narrow
    for other in (Tied(vocabulary=LEAST_VOCABULARY - 1), Tied(width=greatest + 1)):
        adapt(other)
        assert not head.narrow


def test_with_such_kernels_every_large_layer_is_changed(kernels_for: Use) -> None:
    kernels_for(FEW_ROWS)
    model = Untied()
    model.layer = nn.Linear(64, 256)
    model.small = nn.Linear(64, 64)
    adapt(model)
    assert type(model.layer) is type(model.head) is CpuLinear
    assert type(model.small) is nn.Linear
    wide = Tied(width=GREATEST_WIDTH + 1)
    adapt(wide)
    assert type(wide.embed) is CpuEmbedding
    assert not head.narrow


def test_logits_lie_by_columns_with_more_rows_than_few(kernels_for: Use) -> None:
    kernels_for(FEW_ROWS)
    adapt(Tied())
    assert [head.by_columns(rows) for rows in (1, FEW_ROWS, FEW_ROWS + 1)] == [False, False, True]


@pytest.mark.parametrize(("threads", "expected"), [(0, False), (1, True), (2, False)])
def test_without_small_kernels_logits_lie_by_columns_with_one_thread(
    threads: int, expected: bool, kernels_for: Use, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernels_for(0)
    monkeypatch.setattr(openblas, "threads", lambda: threads)
    model, x = Tied(), normal(4, 1, 64)
    before = model.logits(x)
    adapt(model)
    logits = model.logits(x)
    assert mx.allclose(logits, before, rtol=1e-5, atol=1e-5)
    assert mx.allclose(model.logits(x[:1]), before[:1], rtol=1e-5, atol=1e-5)
    assert head.by_columns(4) == head.by_columns(1) == expected
    assert (strides(logits)[0] < strides(logits)[-1]) == expected


def test_weights_that_are_not_in_full_precision_stay_as_they_are(kernels_for: Use) -> None:
    kernels_for(FEW_ROWS)
    model = Tied()
    model.set_dtype(mx.float16)
    adapt(model)
    assert not head.narrow
    assert type(model.embed) is nn.Embedding


@pytest.mark.parametrize("rows", [0, FEW_ROWS])
def test_what_is_kept_for_products_is_no_parameter(rows: int, kernels_for: Use) -> None:
    kernels_for(rows)
    model = Tied()
    before = set(model.embed.parameters())
    adapt(model)
    mx.eval(model.logits(normal(3, 1, 64)))
    assert set(model.embed.parameters()) == before


def test_the_next_model_counts(kernels_for: Use) -> None:
    kernels_for(FEW_ROWS)
    adapt(Tied())
    adapt(Tied(width=GREATEST_WIDTH + 1))
    assert not head.narrow


@pytest.mark.skipif(find_openblas() is None, reason="there is no OpenBLAS")
@pytest.mark.parametrize(("core", "rows"), [("Haswell", 0), ("SkylakeX", FEW_ROWS)])
def test_the_kernels_of_openblas_decide(core: str, rows: int) -> None:
    if core == "SkylakeX" and "avx512vl" not in Path("/proc/cpuinfo").read_text():
        pytest.skip("this processor has no AVX-512")
    code = "from mlxfleet.workers.cpu_linear import few_rows; print(few_rows())"
    environment = {**os.environ, **worker_environment(1), "OPENBLAS_CORETYPE": core}
    told = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert int(told.stdout) == rows


@quick
@given(rows=st.integers(1, 8), outputs=st.integers(1, 5_000), inputs=st.integers(1, 20_000))
def test_parts_are_small_products_and_the_whole(rows: int, outputs: int, inputs: int) -> None:
    size = part_size(rows, outputs, inputs)
    if size:
        assert outputs % size == 0
        assert rows * size <= MOST_RESULTS
        assert rows * size * inputs <= MOST_PRODUCTS


def test_parts_are_a_view_of_the_weight() -> None:
    layer: Any = nn.Linear(576, 1_536, bias=False)
    layer[PARTS] = {}
    mx.eval(layer.parameters())
    before = mx.get_active_memory()
    parts = parts_of(layer, 8)
    assert parts is not None
    assert parts.shape == (12, 576, 128)
    assert mx.get_active_memory() == before
    assert parts_of(layer, 8) is parts


@pytest.mark.parametrize("outputs", [1_201, 4_099])
def test_what_cannot_be_cut_stays_whole(outputs: int) -> None:
    layer: Any = nn.Linear(64, outputs)
    layer[PARTS] = {}
    assert parts_of(layer, 1) is None
