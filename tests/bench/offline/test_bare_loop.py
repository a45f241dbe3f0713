"""How the bare loop cuts its work."""

from __future__ import annotations

import pytest

from mlxfleet.bench.offline.bare import requests_of
from mlxfleet.bench.offline.bare_loop import PASS_TOKENS, passes
from mlxfleet.bench.offline.wave import Wave
from mlxfleet.bench.offline.work import Part, Prompt
from mlxfleet.common.messages import Sampling
from mlxfleet.workers.row import Row
from mlxfleet.workers.sampling import SamplingRow


def rows(*lengths: int) -> list[Row]:
    """Rows with prompts of these lengths."""
    greedy = Sampling(seed=0, max_tokens=1, temperature=0.0)
    ids = [list(range(length)) for length in lengths]
    return [Row(str(i), own, SamplingRow(greedy, own, 0)) for i, own in enumerate(ids)]


@pytest.mark.parametrize("lengths", [(65, 65), (513,), (2000, 3, 70), (1,), (100,) * 20])
def test_passes_hold_all_prompts_but_their_last_tokens(lengths: tuple[int, ...]) -> None:
    found = list(passes(rows(*lengths)))
    seen: dict[str, list[int]] = {str(i): [] for i in range(len(lengths))}
    for chunks in found:
        assert 0 < sum(len(chunk.token_ids) for chunk in chunks) <= PASS_TOKENS
        for chunk in chunks:
            seen[chunk.row.rid] += chunk.token_ids
    assert seen == {str(i): list(range(length - 1)) for i, length in enumerate(lengths)}
    assert all(sum(len(c.token_ids) for c in chunks) == PASS_TOKENS for chunks in found[:-1])


def test_rows_take_the_times_of_their_wave() -> None:
    part = Part(concurrency=2, prompts=[Prompt("text", [1])] * 3, max_tokens=2)
    found = requests_of(part, [Wave(0.0, [0.1, 0.2]), Wave(0.5, [0.3, 0.4])])
    assert [request.sent_s for request in found] == [0.0, 0.0, 0.5]
    assert found[2].token_times_s == [0.3, 0.4]
    assert found[2].duration_s == 0.4
