"""What is measured of passes, and that nothing is left behind."""

from __future__ import annotations

import pytest

from mlxfleet.workers import pass_times
from mlxfleet.workers.kv_storage import KVStorage
from mlxfleet.workers.mlx_lm_storage import MlxLmStorage
from mlxfleet.workers.pass_times import SIZES, measure_passes, pass_seconds
from mlxfleet.workers.slab_storage import SlabStorage
from tests.workers.engine_driver import storage_for
from tests.workers.tiny_models import build


@pytest.fixture(params=["llama", "mamba"])
def storage(request: pytest.FixtureRequest) -> KVStorage:
    made = storage_for(build(request.param))
    assert type(made) is (SlabStorage if request.param == "llama" else MlxLmStorage)
    return made


def test_every_size_is_timed(storage: KVStorage) -> None:
    times = measure_passes(storage, max_rows=32, max_tokens=512)
    assert [(time.rows, time.tokens) for time in times] == list(SIZES)
    assert all(time.seconds > 0 for time in times)
    if isinstance(storage, SlabStorage):
        assert storage.allocated_bytes == 0


def test_sizes_are_held_to_the_limits(storage: KVStorage) -> None:
    times = measure_passes(storage, max_rows=4, max_tokens=32)
    assert max(time.rows for time in times) == 4
    assert max(time.tokens for time in times) == 32


def test_a_slow_model_is_not_tried_with_longer_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pass_times, "pass_seconds", lambda _, rows, tokens: 0.1 + tokens / 50)
    times = measure_passes(None, max_rows=8, max_tokens=512)  # type: ignore[arg-type]
    assert [(time.rows, time.tokens) for time in times] == [(1, 0), (8, 0), (0, 16), (0, 64)]


def test_rows_and_prompts_can_be_timed_together(storage: KVStorage) -> None:
    assert pass_seconds(storage, rows=2, tokens=5) > 0
