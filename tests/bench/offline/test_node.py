"""Standing for a router and a detokenizer before one node."""

from __future__ import annotations

from typing import cast

import pytest

from mlxfleet.bench.offline.node import NodeFront, PartRun
from mlxfleet.bench.offline.work import Part, Prompt
from mlxfleet.bench.servers import ServerError
from mlxfleet.common.messages import Finish, Generate, Release, RouterToNode, Tokens


class Sent:
    """Keeps what would go to the node."""

    def __init__(self) -> None:
        self.messages: list[RouterToNode] = []

    def send(self, message: RouterToNode) -> None:
        """Keep it."""
        self.messages.append(message)

    def running(self) -> list[str]:
        """Sequences that were sent and not released."""
        released = {message.rid for message in self.messages if isinstance(message, Release)}
        sent = [message.rid for message in self.messages if isinstance(message, Generate)]
        return [rid for rid in sent if rid not in released]


def start(prompts: int, concurrency: int) -> tuple[PartRun, Sent]:
    """A part that has begun."""
    part = Part(
        concurrency=concurrency,
        prompts=[Prompt("text", [1, 2, 3])] * prompts,
        max_tokens=2,
    )
    sent = Sent()
    run = PartRun(part, cast(NodeFront, sent))
    run.start()
    return run, sent


def tokens(rids: list[str], *, last: bool = False) -> Tokens:
    """One more token for each."""
    finish = {i: Finish("length") for i in range(len(rids))} if last else {}
    return Tokens(rids, ["only"] * len(rids), [0] * len(rids), [[7]] * len(rids), finish, {})


def test_as_many_run_as_there_are_streams() -> None:
    run, sent = start(prompts=5, concurrency=2)
    assert len(sent.running()) == 2
    run.on_tokens(tokens(sent.running()[:1], last=True))
    assert len(sent.running()) == 2
    assert not run.over


def test_it_is_over_when_every_prompt_has_its_answer() -> None:
    run, sent = start(prompts=3, concurrency=2)
    while rids := sent.running():
        run.on_tokens(tokens(rids))
        run.on_tokens(tokens(rids, last=True))
    assert run.over
    assert [request.output_tokens for request in run.requests] == [2, 2, 2]
    assert sorted(request.index for request in run.requests) == [0, 1, 2]
    assert all(request.input_tokens == 3 for request in run.requests)


def test_tokens_of_unknown_sequences_do_not_count() -> None:
    run, _ = start(prompts=1, concurrency=1)
    run.on_tokens(tokens(["another"], last=True))
    assert run.requests == []


def test_a_refusal_ends_the_part() -> None:
    run, _ = start(prompts=1, concurrency=1)
    run.failure = "the queue is full"
    assert run.over
    with pytest.raises(ServerError, match="queue is full"):
        run.check()
