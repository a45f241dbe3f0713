"""How long a request waits for what is not there yet."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from mlxfleet.common.errors import DeadlineError, UnavailableError
from mlxfleet.router.patience import Patience, Wait, within


def run(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(test, 10))


def test_what_is_there_is_not_waited_for() -> None:
    async def test() -> None:
        assert await Patience(0.0, lambda *_: False).until("m", lambda: "x", "nothing") == "x"

    run(test())


def test_who_waits_is_woken_when_something_changes() -> None:
    async def test() -> None:
        patience, found = Patience(5.0, lambda *_: False), list[str]()
        waits = [
            asyncio.create_task(patience.until("m", lambda: found or None, "nothing"))
            for _ in range(3)
        ]
        await asyncio.sleep(0)
        assert patience.waiting == 3
        patience.notify()
        await asyncio.sleep(0)
        found.append("x")
        patience.notify()
        assert await asyncio.gather(*waits) == [["x"]] * 3
        assert patience.waiting == 0

    run(test())


def test_in_the_end_it_says_what_is_missing() -> None:
    async def test() -> None:
        patience = Patience(0.01, lambda *_: False)
        with pytest.raises(UnavailableError, match="no dragon") as caught:
            await patience.until("m", lambda: None, "no dragon")
        assert caught.value.retry_after_s
        assert patience.waiting == 0

    run(test())


def test_loading_asks_for_the_model_and_the_tokens() -> None:
    asked: list[tuple[str, int]] = []

    def loads(model: str, tokens: int) -> bool:
        asked.append((model, tokens))
        return False

    async def test() -> None:
        with pytest.raises(UnavailableError):
            await Patience(0.01, loads).until("m", lambda: None, "nothing", tokens=70)
        assert set(asked) == {("m", 70)}

    run(test())


def test_time_with_progress_does_not_count() -> None:
    gets_on = True
    wait = Wait(30.0, lambda: gets_on)
    assert not any(wait.over(float(now)) for now in range(1000))
    gets_on = False
    assert not wait.over(1029.0)
    assert wait.over(1030.0)


def test_a_deadline_is_an_error_of_its_own() -> None:
    async def test() -> None:
        async with within(None):
            pass
        with pytest.raises(DeadlineError):
            async with within(asyncio.get_running_loop().time() + 0.01):
                await asyncio.Event().wait()

    run(test())
