"""No client starves another: requests beside a wide one, and tokens of rows that had to yield."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.integration.fleet import Fleet, wait_for

ROWS = 4


@pytest.fixture(scope="module")
def fleet(tiny_model: Path) -> Iterator[Fleet]:
    """A node with few rows. Without keys a client is whoever shows the same token."""
    limits = ["--max-running", str(ROWS), "--queue-wait-s", "60"]
    with Fleet("--model", str(tiny_model), *limits) as running:
        yield running


class Wide:
    """A streamed request of many choices, read by a thread; `ended` counts choices that have."""

    def __init__(self, client: openai.OpenAI, **body: Any) -> None:
        self.ended = 0
        self._enough = False
        self._stream = client.completions.create(model="tiny", stream=True, **body)
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        with self._stream as stream:
            for chunk in stream:
                self.ended += sum(choice.finish_reason is not None for choice in chunk.choices)
                if self._enough:
                    return

    def leave(self) -> None:
        """Read no further, and go away."""
        self._enough = True
        self._reader.join()


@contextmanager
def beside_wide(fleet: Fleet, **body: Any) -> Iterator[Wide]:
    """While it lasts a wide request of the client `wide` has all rows, and more that wait."""
    wide = Wide(fleet.client(api_key="wide"), **body)
    try:
        wait_for(lambda: fleet.metric("mlxfleet_running_sequences") >= ROWS, "all rows taken")
        yield wide
    finally:
        wide.leave()
        wait_for(lambda: fleet.metric("mlxfleet_running_sequences") == 0, "an idle node")


@pytest.mark.parametrize("priority", ["interactive", "batch"])
def test_a_small_request_does_not_wait_for_a_wide_one(fleet: Fleet, priority: str) -> None:
    extra = {"ignore_eos": True, "priority": priority}
    body = {"prompt": "Hi", "n": 16, "max_tokens": 2000, "extra_body": extra}
    with beside_wide(fleet, **body) as wide:
        for key in ("other", "wide"):
            answer = fleet.client(api_key=key).completions.create(
                model="tiny", prompt=f"A question of {key}", max_tokens=4
            )
            assert answer.usage is not None
            # It has ended before any choice of the wide one, although those came first.
            assert wide.ended == 0


def test_a_small_request_does_not_wait_for_many_prompts(fleet: Fleet) -> None:
    prompts = [f"Tell me about the number {number}" for number in range(60)]
    body = {"prompt": prompts, "max_tokens": 100, "extra_body": {"ignore_eos": True}}
    with beside_wide(fleet, **body) as wide:
        fleet.client(api_key="other").completions.create(model="tiny", prompt="Q", max_tokens=4)
        assert wide.ended < len(prompts) / 2


def test_rows_that_yield_go_on_where_they_were(fleet: Fleet) -> None:
    def ask(key: str) -> list[str]:
        answer = fleet.client(api_key=key).completions.create(
            model="tiny",
            prompt=f"A story for {key}",
            n=2 * ROWS,
            max_tokens=150,
            seed=5,
            extra_body={"ignore_eos": True},
        )
        return [choice.text for choice in answer.choices]

    alone = [ask("a"), ask("b")]
    before = fleet.metric("mlxfleet_preemptions_total")
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(ask, "a")
        # Had they come together, they would have equal parts from the beginning; none would yield.
        wait_for(lambda: fleet.metric("mlxfleet_sequences_in_flight") > 0, "the first to be here")
        together = [pool.submit(ask, "b").result(), first.result()][::-1]
    assert together == alone
    wait_for(
        lambda: fleet.metric("mlxfleet_preemptions_total") > before, "a report of rows that yielded"
    )
