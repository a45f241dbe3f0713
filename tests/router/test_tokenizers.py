"""Prompts go to the tokenizer with the least to do, fair between clients, and again if it dies."""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import zmq

from mlxfleet.common import channels
from mlxfleet.common.errors import InvalidRequestError, RequestError, UnavailableError
from mlxfleet.common.liveness import SILENT_AFTER_S
from mlxfleet.common.messages import (
    PROTOCOL_VERSION,
    Hello,
    Refused,
    RouterToTokenizer,
    TakeApart,
    TakenApart,
    TokenizeChat,
    Tokenized,
    TokenizeFailed,
    TokenizerToRouter,
    TokenizeText,
    Welcome,
)
from mlxfleet.common.supervisor import CRASH_LOOP_DEATHS
from mlxfleet.router.tokenizers import HUNG_AFTER_S, MOST_SENT, SENT_AT_ONCE, SENT_BYTES, Tokenizers

DEADLINE_S = 5.0
WAIT_S = 0.5


async def until(condition: Callable[[], Any], what: str) -> None:
    """Wait until a condition holds."""
    end = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < end, f"still waiting for {what}"
        await asyncio.sleep(0.001)


class FakeTokenizer:
    """A tokenizer process that keeps what it is asked, and answers when told to."""

    def __init__(self, context: zmq.Context[Any], address: str, name: str) -> None:
        self.name = name
        self._run = 0
        self._context, self._address = context, address
        self.asked: list[str] = []
        self.welcomes: list[Welcome] = []
        self.refusals: list[Refused] = []
        self._connect()

    def _connect(self) -> None:
        self._run += 1
        self._channel: channels.Channel[RouterToTokenizer, TokenizerToRouter] = channels.client(
            self._context, RouterToTokenizer, self._address, f"{self.name}:{self._run}"
        )
        self._channel.attach(lambda _, message: self._take(message))

    def _take(self, message: RouterToTokenizer) -> None:
        match message:
            case Welcome():
                self.welcomes.append(message)
            case Refused():
                self.refusals.append(message)
            case TokenizeText() | TokenizeChat() | TakeApart():
                self.asked.append(message.rid)

    async def greet(self, *, version: int = PROTOCOL_VERSION) -> None:
        """Say hello, and wait until the router has answered."""
        before = len(self.welcomes) + len(self.refusals)
        self._channel.send(
            Hello(name=self.name, incarnation=f"{self.name}-{self._run}", version=version)
        )
        await until(lambda: len(self.welcomes) + len(self.refusals) > before, "an answer")

    async def restart(self) -> None:
        """Forget everything, and come back as a new process."""
        self._channel.close()
        self.asked.clear()
        self._connect()
        await self.greet()

    def answer(self, rid: str) -> None:
        """Say that a prompt is one token, 7."""
        self._channel.send(Tokenized(rid, [[7]], [[]]))

    def refuse(self, rid: str) -> None:
        """Say that a prompt cannot be encoded."""
        self._channel.send(TokenizeFailed(rid, "there is no template", "messages"))

    def close(self) -> None:
        """Be gone."""
        self._channel.close()


class Bench:
    """The router's side, tokenizers to attach to it, and prompts on their way."""

    def __init__(self, context: zmq.Context[Any], address: str) -> None:
        self._context, self._address = context, address
        self.tokenizers = Tokenizers(context, address, "session", wait_s=WAIT_S)
        self._fakes: list[FakeTokenizer] = []
        self._tasks: list[asyncio.Task[Any]] = []

    async def add(self, name: str) -> FakeTokenizer:
        """A tokenizer that is known to the router."""
        fake = FakeTokenizer(self._context, self._address, name)
        self._fakes.append(fake)
        await fake.greet()
        return fake

    def ask(self, rid: str, client: str = "", size: int = SENT_BYTES) -> asyncio.Task[Tokenized]:
        """Have a client's prompt tokenized, whose request had so many bytes."""
        message = TokenizeText(rid=rid, texts=["x"], max_tokens=100)
        task = asyncio.ensure_future(self.tokenizers.tokenize(message, client=client, size=size))
        self._tasks.append(task)
        return task

    def take_apart(self, rid: str) -> asyncio.Task[TakenApart]:
        """Have a large body taken apart."""
        message = TakeApart(rid=rid, field="prompt", body=b"{}")
        task = asyncio.ensure_future(self.tokenizers.take_apart(message))
        self._tasks.append(task)
        return task

    async def close(self) -> None:
        """Give up what is unanswered, and close every socket."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for fake in self._fakes:
            fake.close()
        self.tokenizers.pool.channel.close()


def run(test: Callable[[Bench], Awaitable[None]]) -> None:
    """Run a test over real sockets."""

    async def on_bench(context: zmq.Context[Any], address: str) -> None:
        bench = Bench(context, address)
        try:
            await asyncio.wait_for(test(bench), 2 * DEADLINE_S)
        finally:
            await bench.close()

    context: zmq.Context[Any] = zmq.Context()
    with tempfile.TemporaryDirectory(prefix="mf-", dir="/tmp") as folder:
        try:
            asyncio.run(on_bench(context, f"ipc://{folder}/tokenizers"))
        finally:
            context.destroy(linger=0)


def test_a_prompt_is_answered_with_its_tokens() -> None:
    async def test(bench: Bench) -> None:
        only = await bench.add("t0")
        answer = bench.ask("a")
        await until(lambda: only.asked == ["a"], "the question")
        only.answer("a")
        assert (await answer).token_ids == [[7]]

    run(test)


def test_answers_may_come_in_any_order() -> None:
    async def test(bench: Bench) -> None:
        only = await bench.add("t0")
        first, second = bench.ask("a"), bench.ask("b")
        await until(lambda: only.asked == ["a", "b"], "both questions")
        only.answer("b")
        await second
        assert not first.done()
        only.answer("a")
        await first

    run(test)


def test_a_prompt_that_cannot_be_encoded_is_the_clients_fault() -> None:
    async def test(bench: Bench) -> None:
        only = await bench.add("t0")
        answer = bench.ask("a")
        await until(lambda: only.asked, "the question")
        only.refuse("a")
        with pytest.raises(InvalidRequestError, match="there is no template") as caught:
            await answer
        assert caught.value.param == "messages"

    run(test)


def test_each_prompt_goes_to_the_tokenizer_with_the_least_to_do() -> None:
    async def test(bench: Bench) -> None:
        fakes = [await bench.add(f"t{number}") for number in range(3)]
        for number in range(6):
            bench.ask(f"r{number}")
        await until(lambda: sum(len(fake.asked) for fake in fakes) == 6, "all questions")
        assert [len(fake.asked) for fake in fakes] == [2, 2, 2]

    run(test)


def test_an_answer_makes_room_for_the_next_prompt() -> None:
    async def test(bench: Bench) -> None:
        fakes = [await bench.add("t0"), await bench.add("t1")]
        bench.ask("a")
        second = bench.ask("b")
        await until(lambda: all(fake.asked for fake in fakes), "two questions")
        idle = next(fake for fake in fakes if fake.asked == ["b"])
        idle.answer("b")
        await second
        bench.ask("c")
        await until(lambda: idle.asked == ["b", "c"], "the next question")

    run(test)


def test_prompts_of_a_restarted_tokenizer_are_sent_again() -> None:
    async def test(bench: Bench) -> None:
        only = await bench.add("t0")
        answers = [bench.ask("a"), bench.ask("b")]
        await until(lambda: len(only.asked) == 2, "the questions")
        await only.restart()
        await until(lambda: sorted(only.asked) == ["a", "b"], "the questions again")
        for rid in only.asked:
            only.answer(rid)
        assert [a.token_ids for a in await asyncio.gather(*answers)] == [[[7]], [[7]]]

    run(test)


def test_only_what_a_restarted_tokenizer_had_is_sent_again() -> None:
    async def test(bench: Bench) -> None:
        stays, restarts = await bench.add("t0"), await bench.add("t1")
        bench.ask("a")
        bench.ask("b")
        await until(lambda: stays.asked and restarts.asked, "the questions")
        (kept,), (lost,) = stays.asked, restarts.asked
        await restarts.restart()
        await until(lambda: lost in restarts.asked + stays.asked, "the lost question")
        await stays.greet()
        assert kept not in restarts.asked
        assert stays.asked.count(kept) == 1

    run(test)


def test_a_prompt_whose_tokenizer_keeps_dying_is_given_up() -> None:
    async def test(bench: Bench) -> None:
        only = await bench.add("t0")
        answer = bench.ask("a")
        # One more death, and the whole fleet would end.
        for _ in range(CRASH_LOOP_DEATHS - 1):
            await until(lambda: only.asked or answer.done(), "the question")
            await only.restart()
        await until(answer.done, "the end")
        with pytest.raises(RequestError):
            answer.result()

    run(test)


def test_only_the_prompt_that_it_was_at_is_blamed_for_a_tokenizers_death() -> None:
    async def test(bench: Bench) -> None:
        only = await bench.add("t0")
        # One prompt after the other: the oldest that is unanswered is the one it was at.
        guilty, innocent = bench.ask("guilty"), bench.ask("innocent")
        while not guilty.done():
            await until(lambda: only.asked[:1] == ["guilty"], "the question")
            await only.restart()
            await only.greet()
        await until(lambda: only.asked[-1:] == ["innocent"], "the other question")
        only.answer("innocent")
        assert (await innocent).token_ids == [[7]]

    run(test)


def test_a_heartbeat_of_a_known_tokenizer_sends_nothing_again() -> None:
    async def test(bench: Bench) -> None:
        only = await bench.add("t0")
        bench.ask("a")
        await until(lambda: only.asked, "the question")
        await only.greet()
        await only.greet()
        assert only.asked == ["a"]

    run(test)


def test_a_prompt_that_nobody_was_there_for_goes_to_the_first_who_comes() -> None:
    async def test(bench: Bench) -> None:
        answer = bench.ask("a")
        first = await bench.add("t0")
        await until(lambda: first.asked == ["a"], "the question")
        first.answer("a")
        await answer

    run(test)


def test_a_tokenizer_that_is_silent_gets_nothing_while_others_speak() -> None:
    async def test(bench: Bench) -> None:
        silent, speaking = await bench.add("t0"), await bench.add("t1")
        bench.tokenizers.pool.peers["t0"].last_seen -= 2 * SILENT_AFTER_S
        for rid in ("a", "b"):
            bench.ask(rid)
        await until(lambda: speaking.asked == ["a", "b"], "the questions")
        assert silent.asked == []

    run(test)


def test_a_prompt_that_comes_while_all_are_silent_is_not_forgotten() -> None:
    async def test(bench: Bench) -> None:
        only = await bench.add("t0")
        bench.tokenizers.pool.peers["t0"].last_seen -= 2 * SILENT_AFTER_S
        bench.ask("a")
        await asyncio.sleep(0)
        await only.greet()
        await until(lambda: only.asked == ["a"], "the question")

    run(test)


def test_without_a_tokenizer_for_long_the_server_is_unavailable() -> None:
    async def test(bench: Bench) -> None:
        with pytest.raises(UnavailableError) as caught:
            await bench.ask("a")
        assert caught.value.status == 503
        assert caught.value.retry_after_s

    run(test)


@pytest.mark.parametrize(
    ("size", "sent"), [(100, MOST_SENT), (SENT_BYTES // 5, 5), (SENT_BYTES // 2 + 1, SENT_AT_ONCE)]
)
def test_a_tokenizer_gets_the_next_prompt_when_it_has_answered_one_and_more_at_once_if_short(
    size: int, sent: int
) -> None:
    async def test(bench: Bench) -> None:
        only = await bench.add("t0")
        rids = [str(number) for number in range(2 * MOST_SENT)]
        for rid in rids:
            bench.ask(rid, size=size)
        await until(lambda: len(only.asked) == sent, "the first questions")
        await only.greet()
        assert only.asked == rids[:sent]
        only.answer(rids[0])
        await until(lambda: only.asked == rids[: sent + 1], "one more")

    run(test)


def test_a_prompt_that_nobody_waits_for_any_more_is_not_tokenized() -> None:
    async def test(bench: Bench) -> None:
        only = await bench.add("t0")
        held = [bench.ask(f"held-{number}") for number in range(SENT_AT_ONCE)]
        left, stays = bench.ask("left"), bench.ask("stays")
        await until(lambda: len(only.asked) == SENT_AT_ONCE, "the first questions")
        left.cancel()
        # Those that it has count until they are answered, even if nobody waits for them.
        for task in held:
            task.cancel()
        await only.greet()
        assert len(only.asked) == SENT_AT_ONCE
        only.answer("held-0")
        await until(lambda: only.asked[SENT_AT_ONCE:] == ["stays"], "the one that is wanted")
        only.answer("stays")
        assert (await stays).token_ids == [[7]]

    run(test)


def test_one_client_with_many_prompts_does_not_keep_another_waiting() -> None:
    async def test(bench: Bench) -> None:
        only = await bench.add("t0")
        for number in range(50):
            bench.ask(f"many-{number}", "greedy")
        bench.ask("one", "modest")
        await until(lambda: len(only.asked) == SENT_AT_ONCE, "the first questions")
        for number in range(SENT_AT_ONCE):
            only.answer(only.asked[number])
            await until(lambda n=number: len(only.asked) > SENT_AT_ONCE + n, "the next question")
        assert "one" in only.asked

    run(test)


def test_large_bodies_go_one_by_one_and_hold_up_nobody() -> None:
    async def test(bench: Bench) -> None:
        fakes = [await bench.add("t0"), await bench.add("t1")]
        for number in range(3):
            bench.take_apart(f"large-{number}")
        bench.ask("small")

        def asked() -> list[str]:
            return sorted(rid for fake in fakes for rid in fake.asked)

        await until(lambda: asked() == ["large-0", "small"], "one of each")
        for fake in fakes:
            await fake.greet()
        assert asked() == ["large-0", "small"]
        next(fake for fake in fakes if "large-0" in fake.asked).answer("large-0")
        await until(lambda: asked() == ["large-0", "large-1", "small"], "the next large one")

    run(test)


def test_what_a_silent_tokenizer_has_not_begun_goes_to_another() -> None:
    async def test(bench: Bench) -> None:
        silent = await bench.add("t0")
        first, second = bench.ask("first"), bench.ask("second")
        await until(lambda: silent.asked == ["first", "second"], "the questions")
        other = await bench.add("t1")
        bench.tokenizers.pool.peers["t0"].last_seen -= 2 * SILENT_AFTER_S
        await other.greet()
        await until(lambda: other.asked == ["second"], "the second question")
        bench.tokenizers.pool.peers["t0"].last_seen -= HUNG_AFTER_S
        await other.greet()
        await until(lambda: other.asked == ["second", "first"], "the first question")
        other.answer("second")
        # It may still come back to it.
        silent.answer("first")
        await asyncio.gather(first, second)

    run(test)


def test_an_answer_that_comes_too_late_or_twice_is_passed_over() -> None:
    async def test(bench: Bench) -> None:
        only = await bench.add("t0")
        gone, answered = bench.ask("a"), bench.ask("b")
        await until(lambda: len(only.asked) == 2, "the questions")
        gone.cancel()
        only.answer("a")
        only.refuse("a")
        only.answer("b")
        only.answer("b")
        only.refuse("b")
        assert (await answered).token_ids == [[7]]
        await only.greet()
        assert bench.tokenizers.pool.channel.dropped_frames == 0

    run(test)


def test_a_tokenizer_of_another_protocol_is_refused() -> None:
    async def test(bench: Bench) -> None:
        odd = await bench.add("t0")
        bench.tokenizers.pool.peers.clear()
        await odd.greet(version=PROTOCOL_VERSION + 1)
        (refused,) = odd.refusals
        assert str(PROTOCOL_VERSION + 1) in refused.reason
        assert bench.tokenizers.pool.peers == {}

    run(test)


def test_restarts_are_counted() -> None:
    async def test(bench: Bench) -> None:
        only = await bench.add("t0")
        await only.restart()
        await only.restart()
        assert bench.tokenizers.pool.peers["t0"].restarts == 2

    run(test)
