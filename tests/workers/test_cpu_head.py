"""A narrow head by columns gives what the model's own gives, and argmax works either way."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlxfleet.workers import cpu_head
from mlxfleet.workers.cpu_head import (
    ARGMAX_COLUMNS,
    GREATEST_WIDTH,
    LEAST_VOCABULARY,
    NarrowEmbedding,
    NarrowLinear,
    argmax,
    argmax_by_columns,
    argmax_by_rows,
    head,
)

pytestmark = pytest.mark.skipif(mx.metal.is_available(), reason="for machines without Metal")
quick = settings(derandomize=True, deadline=None, database=None, max_examples=40)


def normal(*shape: int, seed: int = 0) -> mx.array:
    return mx.array(np.random.default_rng(seed).normal(size=shape).astype(np.float32))


def floats(x: mx.array) -> np.ndarray:
    return np.array(x.astype(mx.float32), dtype=np.float64)


@pytest.fixture(autouse=True)
def the_head_of_no_model() -> Iterator[None]:
    """What a loaded model's logits look like is global; leave it as it was."""
    before = head.by_columns
    head.by_columns = False
    yield
    head.by_columns = before


# --- the head -----------------------------------------------------------------------------------


class Tied(nn.Module):
    """A model whose embedding is its head."""

    def __init__(self, vocabulary: int = LEAST_VOCABULARY, width: int = 64) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)

    def logits(self, x: mx.array) -> mx.array:
        return self.embed.as_linear(x)


class Untied(nn.Module):
    """A model with a head of its own, beside a layer that is none."""

    def __init__(self, *, bias: bool = False) -> None:
        super().__init__()
        self.layer = nn.Linear(64, 64, bias=False)
        self.head = nn.Linear(64, LEAST_VOCABULARY, bias=bias)

    def logits(self, x: mx.array) -> mx.array:
        return self.head(self.layer(x))


@pytest.mark.parametrize("make", [Tied, Untied])
@pytest.mark.parametrize("shape", [(1, 1, 64), (9, 1, 64), (2, 5, 64), (3, 64)])
def test_a_narrow_head_gives_the_same_logits(make: Any, shape: tuple[int, ...]) -> None:
    model, x = make(), normal(*shape)
    before = model.logits(x)
    head.adapt(model)
    assert head.by_columns
    assert model.logits(x).shape == before.shape
    assert mx.allclose(model.logits(x), before, rtol=1e-5, atol=1e-5)


def test_only_what_is_a_head_is_changed() -> None:
    model = Untied()
    head.adapt(model)
    assert (type(model.layer), type(model.head)) == (nn.Linear, NarrowLinear)
    tied = Tied()
    head.adapt(tied)
    assert type(tied.embed) is NarrowEmbedding
    assert tied.embed(mx.array([3, 5])).shape == (2, 64)


@pytest.mark.parametrize(
    "model",
    [
        Tied(vocabulary=LEAST_VOCABULARY - 1),
        Tied(width=GREATEST_WIDTH + 1),
        Untied(bias=True),
    ],
)
def test_other_heads_stay_as_they_are(model: Any) -> None:
    head.adapt(model)
    assert not head.by_columns
    assert {type(module) for module in model.modules()} <= {type(model), nn.Linear, nn.Embedding}


def test_weights_that_are_not_in_full_precision_stay_as_they_are() -> None:
    model = Tied()
    model.set_dtype(mx.float16)
    head.adapt(model)
    assert not head.by_columns


def test_the_next_model_counts() -> None:
    head.adapt(Tied())
    head.adapt(Tied(width=GREATEST_WIDTH + 1))
    assert not head.by_columns


# --- argmax -------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [1, 2, 33])
@pytest.mark.parametrize("logits_by_columns", [False, True])
def test_argmax_is_right_however_the_logits_lie(rows: int, logits_by_columns: bool) -> None:
    logits = (
        normal(LEAST_VOCABULARY, rows).T if logits_by_columns else normal(rows, LEAST_VOCABULARY)
    )
    expected = floats(logits).argmax(-1).tolist()
    assert argmax_by_columns(logits).tolist() == expected
    assert argmax_by_rows(logits).tolist() == expected


def test_argmax_follows_the_loaded_model(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(cpu_head, "argmax_by_columns", lambda _: asked.append("columns"))
    monkeypatch.setattr(cpu_head, "argmax_by_rows", lambda _: asked.append("rows"))
    argmax(normal(2, LEAST_VOCABULARY))
    head.adapt(Tied())
    argmax(normal(2, LEAST_VOCABULARY))
    assert asked == ["rows", "columns"]


@pytest.mark.parametrize("rows", [1, 2, 33])
@pytest.mark.parametrize("n", [1, 120, 512, 32_000, 32_768, 49_152, 50_257, 151_936])
def test_argmax_is_the_index_of_the_maximum(rows: int, n: int) -> None:
    logits = normal(rows, n, seed=n + rows)
    assert argmax(logits).tolist() == floats(logits).argmax(-1).tolist()


@pytest.mark.parametrize("place", [0, 1, 511, 512, 513, 40_000, 40_959])
def test_argmax_finds_a_maximum_anywhere(place: int) -> None:
    logits = mx.zeros((2, 40_960))
    logits[1, place] = 1e-6
    logits[0, 17] = 1e-6
    assert argmax(logits).tolist() == [17, place]


def test_argmax_of_equals_is_one_of_them() -> None:
    logits = mx.full((1, 4 * LEAST_VOCABULARY), -1.0)
    equals = [700, 3 * ARGMAX_COLUMNS + 5, 20_000]
    logits[:, mx.array(equals)] = 2.0
    assert argmax(logits).item() in equals


def test_argmax_of_infinities() -> None:
    logits = mx.full((3, 4 * LEAST_VOCABULARY), -mx.inf)
    logits[0, 600] = -1e30
    logits[1, 900] = mx.inf
    assert argmax(logits).tolist()[:2] == [600, 900]
    assert 0 <= argmax(logits).tolist()[2] < 4 * LEAST_VOCABULARY


@quick
@given(
    rows=st.integers(1, 5),
    groups=st.integers(1, 130),
    more=st.sampled_from([0, 1, 511]),
    seed=st.integers(0, 2**32 - 1),
)
def test_argmax_of_any_size(rows: int, groups: int, more: int, seed: int) -> None:
    logits = normal(rows, groups * ARGMAX_COLUMNS + more, seed=seed)
    assert argmax(logits).tolist() == floats(logits).argmax(-1).tolist()
