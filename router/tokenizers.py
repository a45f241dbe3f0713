"""The router's side of the tokenizer processes."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import zmq

from mlxfleet.common import channels
from mlxfleet.common.errors import GenerationError, InvalidRequestError, UnavailableError
from mlxfleet.common.messages import (
    Hello,
    TokenizeChat,
    Tokenized,
    TokenizeFailed,
    TokenizerToRouter,
    TokenizeText,
)
from mlxfleet.router.pool import Greeting, Pool

TIMEOUT_S = 60.0
MAX_DEATHS = 3


@dataclass
class Job:
    """A prompt being tokenized, and by whom ("" while nobody is there)."""

    message: TokenizeText | TokenizeChat
    answer: asyncio.Future[Tokenized]
    model: str = ""
    tokenizer: str = ""
    deaths: int = 0


class Tokenizers:
    """Gives each prompt to the tokenizer with the least to do, and again if it dies."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], address: str, session: str) -> None:
        self._pool = Pool(channels.server(context, TokenizerToRouter, address), session)
        self._pool.channel.attach(self._on_message)
        self._jobs: dict[str, Job] = {}
        self._models: dict[str, str] = {}

    @property
    def pool(self) -> Pool:
        """Who is there."""
        return self._pool

    def alive(self, model: str) -> list[str]:
        """Names of a model's tokenizers that were heard from lately."""
        return [p.name for p in self._pool.alive() if self._models[p.name] == model]

    async def tokenize(self, message: TokenizeText | TokenizeChat, model: str = "") -> Tokenized:
        """Token ids, as a model has them, and block hashes, per prompt. InvalidRequestError if they
        cannot be encoded, UnavailableError if no tokenizer answers in time."""
        job = Job(message, asyncio.get_running_loop().create_future(), model)
        self._jobs[message.rid] = job
        try:
            self._assign(job)
            async with asyncio.timeout(TIMEOUT_S):
                return await job.answer
        except TimeoutError as error:
            raise UnavailableError("no tokenizer answered in time", retry_after_s=5) from error
        finally:
            del self._jobs[message.rid]

    def _on_message(self, sender: bytes, message: TokenizerToRouter) -> None:
        match message:
            case Hello():
                greeting = self._pool.greet(sender, message)
                if greeting is not Greeting.REFUSED:
                    self._models[message.name] = message.model
                if greeting is Greeting.FRESH:
                    self._on_fresh(message.name)
                self._assign_again()
            case Tokenized():
                if (job := self._open_job(message.rid)) is not None:
                    job.answer.set_result(message)
            case TokenizeFailed():
                if (job := self._open_job(message.rid)) is not None:
                    error = InvalidRequestError(
                        message.message, param=message.param, code=message.code
                    )
                    job.answer.set_exception(error)

    def _open_job(self, rid: str) -> Job | None:
        job = self._jobs.get(rid)
        return job if job is not None and not job.answer.done() else None

    def _assign(self, job: Job) -> None:
        # One that is silent may only be busy with a long prompt.
        names = self.alive(job.model) or [n for n, m in self._models.items() if m == job.model]
        load = dict.fromkeys(names, 0)
        for other in self._jobs.values():
            if other.tokenizer in load:
                load[other.tokenizer] += 1
        for name in sorted(names, key=lambda name: load[name]):
            if self._pool.send(name, job.message):
                job.tokenizer = name
                return
        job.tokenizer = ""

    def _on_fresh(self, name: str) -> None:
        """Take back what a tokenizer that has died had. It works in order, so it died of the
        oldest, if of any; that one is given up after too many deaths."""
        lost = [j for j in self._jobs.values() if j.tokenizer == name and not j.answer.done()]
        for job in lost:
            job.tokenizer = ""
        for job in lost[:1]:
            job.deaths += 1
            if job.deaths >= MAX_DEATHS:
                why = f"the tokenizer died {job.deaths} times while it had this prompt"
                job.answer.set_exception(GenerationError(why))

    def _assign_again(self) -> None:
        """Send what nobody has."""
        for job in self._jobs.values():
            if not job.tokenizer and not job.answer.done():
                self._assign(job)
