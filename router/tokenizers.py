"""The router's side of the tokenizer processes."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

import zmq

from mlxfleet.common import channels
from mlxfleet.common.errors import GenerationError, InvalidRequestError, UnavailableError
from mlxfleet.common.fair_queue import FairQueue
from mlxfleet.common.messages import (
    Hello,
    Party,
    TakeApart,
    TakenApart,
    TokenizeChat,
    TokenizeContent,
    Tokenized,
    TokenizeFailed,
    TokenizerToRouter,
    TokenizeText,
)
from mlxfleet.router.patience import LOOK_AGAIN_S, Wait
from mlxfleet.router.pool import Greeting, Pool
from mlxfleet.router.timer import Timer

RETRY_AFTER_S = 5
MAX_DEATHS = 3
SENT_AT_ONCE = 2
"""Questions that one tokenizer has: the one it is at, and the next."""
MOST_SENT = 64
SENT_BYTES = 32 * 1024
"""So many it has if the bodies of their requests are no longer than that together: they take it a
few ms, and it need not wait for this process between them."""
LARGE_AT_ONCE = 1
"""Large bodies on their way to or from tokenizers, each of which is in memory several times."""
HUNG_AFTER_S = 20.0
"""A tokenizer that has been silent for so long does not get on with the prompt that it is at."""

Question = TokenizeText | TokenizeChat | TokenizeContent | TakeApart
ANY_MODEL = None


@dataclass(eq=False)
class Job:
    """A question, whose answer somebody waits for or did. One that is none of a model is answered
    by any tokenizer. `size` is that of the request's body, in bytes; `sent` is when a tokenizer was
    given it, in time.monotonic(). `wait` is the wait for a tokenizer to be there."""

    message: Question
    model: str | None
    size: int
    wait: Wait
    answer: asyncio.Future[Tokenized | TakenApart]
    sent: float = 0.0
    deaths: int = 0

    @property
    def rid(self) -> str:
        """The question's name."""
        return self.message.rid

    @property
    def large(self) -> bool:
        """Whether it is about a large body."""
        return isinstance(self.message, TakeApart | TokenizeContent)


class Tokenizers:
    """Gives questions to the tokenizers, fair between clients, and again if a tokenizer dies.

    Questions wait here, and one whose client has left is removed. One that was sent cannot be taken
    back; it counts as its tokenizer's until the answer comes. While no tokenizer of its model is
    heard from, a question waits `wait_s` at most.
    """

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        address: str,
        session: str,
        *,
        wait_s: float,
    ) -> None:
        self._pool = Pool(channels.server(context, TokenizerToRouter, address), session)
        self._pool.channel.attach(self._on_message)
        self._wait_s = wait_s
        self._models: dict[str, str] = {}
        # What somebody waits for.
        self._jobs: dict[str, Job] = {}
        self._looking = Timer()
        # Each kind has a line of its own, so that none has to wait for what only another needs.
        self._lines: dict[tuple[str | None, bool], FairQueue[Job]] = {}
        # What each tokenizer has, the oldest first.
        self._sent: dict[str, dict[str, Job]] = {}

    @property
    def pool(self) -> Pool:
        """Who is there."""
        return self._pool

    def alive(self, model: str | None) -> list[str]:
        """Names of a model's tokenizers, or of all, that were heard from lately."""
        return [p.name for p in self._pool.alive() if model in (ANY_MODEL, self._models[p.name])]

    async def tokenize(
        self,
        message: TokenizeText | TokenizeChat | TokenizeContent,
        model: str = "",
        client: str = "",
        *,
        size: int,
    ) -> Tokenized:
        """Token ids, as a model has them, and block hashes, per prompt; `size` is that of the body
        that they came in, in bytes. InvalidRequestError if they cannot be encoded, UnavailableError
        if no tokenizer is there."""
        answer = await self._ask(message, model, client, size)
        assert isinstance(answer, Tokenized)
        return answer

    async def take_apart(self, message: TakeApart, client: str = "") -> TakenApart:
        """The parts of a large body; the errors of `tokenize`."""
        answer = await self._ask(message, ANY_MODEL, client, len(message.body))
        assert isinstance(answer, TakenApart)
        return answer

    async def _ask(
        self, message: Question, model: str | None, client: str, size: int
    ) -> Tokenized | TakenApart:
        wait = Wait(self._wait_s, lambda: bool(self.alive(model)))
        job = Job(message, model, size, wait, asyncio.get_running_loop().create_future())
        self._jobs[job.rid] = job
        line = self._line_of(job)
        line.push(job, Party(client=client, request=job.rid))
        while self._send_first(line):
            pass
        if not self._looking.running:
            self._look()
        try:
            # Not through asyncio.wait, which takes one more turn of the event loop.
            return await job.answer
        finally:
            del self._jobs[job.rid]
            if not self._has(job):
                line.discard(job)

    def _look(self) -> None:
        """Give up what has waited for a tokenizer for too long, now and regularly."""
        now = time.monotonic()
        for job in self._jobs.values():
            if job.wait.over(now) and not job.answer.done():
                error = UnavailableError("no tokenizer is there", retry_after_s=RETRY_AFTER_S)
                job.answer.set_exception(error)
        if self._jobs:
            self._looking.start(LOOK_AGAIN_S, self._look)
        else:
            self._looking.stop()

    def _on_message(self, sender: bytes, message: TokenizerToRouter) -> None:
        match message:
            case Hello():
                greeting = self._pool.greet(sender, message)
                if greeting is not Greeting.REFUSED:
                    self._models[message.name] = message.model
                if greeting is Greeting.FRESH:
                    self._take_back(message.name)
                self._take_from_silent()
            case Tokenized() | TakenApart():
                self._answered(sender, message.rid)
                if (job := self._open_job(message.rid)) is not None:
                    job.answer.set_result(message)
            case TokenizeFailed():
                self._answered(sender, message.rid)
                if (job := self._open_job(message.rid)) is not None:
                    error = InvalidRequestError(
                        message.message, param=message.param or None, code=message.code
                    )
                    job.answer.set_exception(error)
        self._send_waiting()

    def _open_job(self, rid: str) -> Job | None:
        job = self._jobs.get(rid)
        return job if job is not None and not job.answer.done() else None

    # --- who has what ---------------------------------------------------------------------------

    def _line_of(self, job: Job) -> FairQueue[Job]:
        kind = job.model, job.large
        if (line := self._lines.get(kind)) is None:
            line = self._lines[kind] = FairQueue()
        return line

    def _has(self, job: Job) -> bool:
        """Whether a tokenizer has a question."""
        return any(job.rid in jobs for jobs in self._sent.values())

    def _send_waiting(self) -> None:
        """Send what waits to tokenizers that have room, in turn of each line."""
        sent = True
        while sent:
            sent = False
            for line in self._lines.values():
                sent |= self._send_first(line)

    def _send_first(self, line: FairQueue[Job]) -> bool:
        """Send the first of a line; False if there is none, or nobody for it."""
        job = line.first()
        if job is None or (job.large and self._large_sent() >= LARGE_AT_ONCE):
            return False
        # One that is silent may only be busy with a long prompt.
        names = self.alive(job.model) or [
            name for name, model in self._models.items() if job.model in (ANY_MODEL, model)
        ]
        load = {name: len(self._sent.setdefault(name, {})) for name in names}
        for name in sorted(names, key=load.__getitem__):
            if self._has_room(name, job) and self._pool.send(name, job.message):
                line.start(job)
                job.sent = time.monotonic()
                self._sent[name][job.rid] = job
                return True
        return False

    def _has_room(self, name: str, job: Job) -> bool:
        """Whether a tokenizer should have a question besides those that it has."""
        sent = self._sent[name]
        if len(sent) < SENT_AT_ONCE:
            return True
        return len(sent) < MOST_SENT and job.size + sum(j.size for j in sent.values()) <= SENT_BYTES

    def _large_sent(self) -> int:
        return sum(job.large for jobs in self._sent.values() for job in jobs.values())

    def _answered(self, sender: bytes, rid: str) -> None:
        """A tokenizer has room again. A client is charged for the milliseconds it took."""
        name = self._pool.name_of(sender)
        job = self._sent[name].pop(rid, None) if name in self._sent else None
        if job is not None:
            line = self._line_of(job)
            line.charge(job, 1 + int(1000 * (time.monotonic() - job.sent)))
            line.discard(job)

    def _take_back(self, name: str) -> None:
        """Take back what a tokenizer had that has died or hangs. It works in order, so the oldest
        was the cause, if any was; that one is given up after too many times."""
        lost = list(self._sent.pop(name, {}).values())
        for job in lost[:1]:
            job.deaths += 1
            if job.deaths >= MAX_DEATHS and self._open_job(job.rid):
                why = f"the tokenizer died or hung {job.deaths} times while it had this prompt"
                job.answer.set_exception(GenerationError(why))
        for job in reversed(lost):
            self._wait_again(job)

    def _take_from_silent(self) -> None:
        """Take back what silent tokenizers have not begun with, where another could do it; from
        one that has been silent for long all that it has."""
        now = time.monotonic()
        for peer in self._pool.peers.values():
            sent = self._sent.get(peer.name, {})
            if not sent or not peer.silent(now) or not self.alive(self._models[peer.name]):
                continue
            if now - peer.last_seen > HUNG_AFTER_S:
                self._take_back(peer.name)
                continue
            for job in list(sent.values())[:0:-1]:
                del sent[job.rid]
                self._wait_again(job)

    def _wait_again(self, job: Job) -> None:
        """A question that a tokenizer had goes to another, if its answer is still wanted."""
        line = self._line_of(job)
        if self._open_job(job.rid):
            line.put_back(job)
        else:
            line.discard(job)
