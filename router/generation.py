"""One HTTP request's sequences, from tokens to a stream of deltas or whole texts."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import msgspec

from mlxfleet.common.block_hashes import block_hashes
from mlxfleet.common.errors import RequestError
from mlxfleet.common.messages import (
    FinishReason,
    Party,
    Sampling,
    TokenizeChat,
    TokenizeContent,
    Tokenized,
    TokenizeText,
    TokenTextLogprobs,
)
from mlxfleet.common.request_content import split_prompt
from mlxfleet.router.admission import Ticket, Turn
from mlxfleet.router.catalog import Catalog
from mlxfleet.router.dispatcher import Dispatcher, new_rid
from mlxfleet.router.limits import Limits, check_answer, check_length, check_prompts
from mlxfleet.router.parameters import (
    COMPLETION_DEFAULT_MAX_TOKENS,
    ChatRequest,
    CompletionRequest,
    Parameters,
    R,
    chat_logprobs,
    chat_max_tokens,
    make_sampling,
)
from mlxfleet.router.patience import within
from mlxfleet.router.reading import Asked, field_of, read
from mlxfleet.router.sequences import Delta, Sequence
from mlxfleet.router.tokenizers import Tokenizers
from mlxfleet.router.wakeup import Wakeup

E = TypeVar("E")


@dataclass
class Choice(Generic[E]):
    """One finished choice, with an entry for each token's log-probabilities."""

    text: str = ""
    logprobs: list[E] = field(default_factory=list)
    finish_reason: FinishReason | None = None


class Generation:
    """The sequences of one request; choice i belongs to prompt i // n. `deadline` is when the
    client gives up, in the event loop's time."""

    def __init__(
        self,
        dispatcher: Dispatcher,
        tokenized: Tokenized,
        sampling: Sampling,
        request: Parameters,
        model: str,
    ) -> None:
        prompts = tokenized.token_ids
        self._dispatcher = dispatcher
        self.model = model
        self.deadline: float | None = None
        self._wakeup = Wakeup()
        self._rest: asyncio.Task[None] | None = None
        self.rid = new_rid()
        self.n = request.n or 1
        self.prompts = prompts
        self.sequences = [
            Sequence(
                rid=f"{self.rid}-{prompt * self.n + choice}",
                prompt_ids=prompts[prompt],
                sampling=msgspec.structs.replace(sampling, seed=sampling.seed + choice),
                stop=request.stops,
                wakeup=self._wakeup,
                model=model,
                block_hashes=tokenized.block_hashes[prompt],
                siblings=self.n > 1,
            )
            for prompt in range(len(prompts))
            for choice in range(self.n)
        ]
        self._running = dict(enumerate(self.sequences))

    @property
    def over(self) -> bool:
        """Whether `deltas` has nothing more to yield."""
        return not self._running

    def belongs_to(self, session: str | None, arrived: float, ticket: Ticket) -> None:
        """Say which session the sequences are of, when their request arrived, in
        time.perf_counter(), and who shares the nodes for them."""
        party = Party(
            client=ticket.client,
            request=self.rid,
            weight=ticket.weight,
            priority=ticket.priority,
        )
        for sequence in self.sequences:
            sequence.session = session
            sequence.arrived = arrived
            sequence.party = party

    def starts_in(self, turn: Turn) -> None:
        """Say where the sequences get their places."""
        self._turn = turn

    @contextmanager
    def released_at_end(self) -> Iterator[None]:
        """Start no more sequences and release every one, however it ends."""
        try:
            yield
        finally:
            if self._rest is not None:
                self._rest.cancel()
            for sequence in self.sequences:
                self._dispatcher.release(sequence)

    def fail(self, error: RequestError) -> None:
        """End every sequence that has not ended with an error."""
        for sequence in self.sequences:
            sequence.fail(error)

    async def deltas(self) -> AsyncIterator[tuple[int, Delta]]:
        """Start, then yield (choice, what is new) until every choice has ended."""
        async with within(self.deadline):
            await self._start(self.sequences[0])
        if len(self.sequences) > 1:
            self._rest = asyncio.create_task(self._start_rest())
            self._rest.add_done_callback(self._rest_ended)
        running = self._running
        while running:
            await self._wakeup.wait()
            self._wakeup.clear()
            if self._rest is not None and self._rest.done():
                self._rest.result()
            for index, sequence in list(running.items()):
                ended = sequence.ended
                delta = sequence.take()
                if ended:
                    del running[index]
                if delta:
                    yield index, delta

    def _rest_ended(self, rest: asyncio.Task[None]) -> None:
        """Wake who reads. Its error is looked at here already, because who reads may be gone."""
        if not rest.cancelled():
            rest.exception()
        self._wakeup.set()

    async def _start(self, sequence: Sequence, beside: Sequence | None = None) -> None:
        """Start a sequence as soon as it has a place."""
        sequence.place = await self._turn.next()
        if not sequence.ended:
            await self._dispatcher.start([sequence], beside)

    async def _start_rest(self) -> None:
        """Start the others one after the other, each beside the one before if it has the same
        prompt."""
        for before, sequence in itertools.pairwise(self.sequences):
            alike = before.prompt_ids is sequence.prompt_ids
            await self._start(sequence, before if alike else None)

    async def collect(self, entry: Callable[[TokenTextLogprobs], E]) -> list[Choice[E]]:
        """Run to the end. `entry` makes of log-probabilities what is kept of them."""
        choices: list[Choice[E]] = [Choice() for _ in self.sequences]
        async for index, delta in self.deltas():
            choice = choices[index]
            choice.text += delta.text
            choice.logprobs += map(entry, delta.logprobs)
            choice.finish_reason = delta.finish_reason or choice.finish_reason
        return choices

    @property
    def prompt_tokens(self) -> int:
        """Tokens of all prompts."""
        return sum(map(len, self.prompts))

    @property
    def completion_tokens(self) -> int:
        """Tokens generated so far."""
        return sum(len(sequence.output_ids) for sequence in self.sequences)

    @property
    def cached_tokens(self) -> int:
        """Prompt tokens that came out of a cache, each prompt counted once."""
        return sum(sequence.cached_tokens for sequence in self.sequences[:: self.n])


class Front:
    """Turns requests into generations: tokenizes, checks lengths, makes sampling parameters. Call
    `ready_for` first."""

    def __init__(
        self,
        tokenizers: Tokenizers,
        dispatcher: Dispatcher,
        catalog: Catalog,
        default_max_tokens: int,
    ) -> None:
        self.catalog = catalog
        self._tokenizers = tokenizers
        self._dispatcher = dispatcher
        self._default_max_tokens = default_max_tokens
        self._patience = dispatcher.patience
        self._nodes = dispatcher.nodes

    async def ready_for(self, name: str) -> Limits:
        """What a model's nodes take, by which its requests are measured, as soon as that is known;
        UnavailableError if it takes too long."""
        return await self._limits(name, 1)

    async def read(self, kind: type[R], body: bytes, client: str) -> Asked[R]:
        """What a client's body asks for; InvalidRequestError names the parameter."""
        return await read(kind, body, self._tokenizers, client)

    async def chat(self, asked: Asked[ChatRequest], known: Limits, traceparent: str) -> Generation:
        """A chat request's generation; `known` came from `ready_for`, `traceparent` is that of its
        being tokenized."""
        request = asked.request
        stated = chat_max_tokens(request)
        logprobs = chat_logprobs(request)
        name = self.catalog.find(request.model)
        if asked.content is None:
            messages = [message.for_template() for message in request.messages]
            longest = self._nodes.longest_context(name)
            question = TokenizeChat(new_rid(), messages, longest, traceparent)
            tokenized = await self._tokenizers.tokenize(
                question, name, asked.client, size=asked.size
            )
        else:
            tokenized = await self._tokenize_content(asked, name, known, traceparent)
        prompts = tokenized.token_ids
        limits = await self._limits(name, len(prompts[0]) + (stated or 1))
        check_prompts(prompts, limits, "messages")
        room = max(limits.tokens - len(prompts[0]), 1)
        max_tokens = stated or min(self._default_max_tokens, room)
        check_length(prompts, max_tokens, limits, "messages")
        check_answer(request, max_tokens, logprobs)
        sampling = make_sampling(
            request,
            max_tokens=max_tokens,
            logprobs=logprobs,
            vocab_size=limits.model.vocab_size,
            defaults=self.catalog.sampling_defaults(name),
        )
        return Generation(self._dispatcher, tokenized, sampling, request, name)

    async def completion(
        self, asked: Asked[CompletionRequest], known: Limits, traceparent: str
    ) -> Generation:
        """A completion request's generation; the parameters of `chat`."""
        request = asked.request
        name = self.catalog.find(request.model)
        max_tokens = request.max_tokens or COMPLETION_DEFAULT_MAX_TOKENS
        check_answer(request, max_tokens, request.logprobs)
        sampling = make_sampling(
            request,
            max_tokens=max_tokens,
            logprobs=request.logprobs,
            vocab_size=known.model.vocab_size,
            defaults=self.catalog.sampling_defaults(name),
        )
        if asked.content is None:
            tokenized = await self._tokenize_prompt(asked, name, known, traceparent)
        else:
            tokenized = await self._tokenize_content(asked, name, known, traceparent)
        prompts = tokenized.token_ids
        limits = await self._limits(name, max(map(len, prompts)) + max_tokens)
        check_prompts(prompts, limits, "prompt")
        check_length(prompts, max_tokens, limits, "prompt")
        return Generation(self._dispatcher, tokenized, sampling, request, name)

    async def _tokenize_prompt(
        self, asked: Asked[CompletionRequest], name: str, known: Limits, traceparent: str
    ) -> Tokenized:
        prompt = split_prompt(asked.request.prompt, known.model.vocab_size)
        texts = [item for item in prompt if isinstance(item, str)]
        if texts:
            longest = self._nodes.longest_context(name)
            question = TokenizeText(new_rid(), texts, longest, traceparent)
            return await self._tokenizers.tokenize(question, name, asked.client, size=asked.size)
        prompts = [item for item in prompt if isinstance(item, list)]
        limits = await self._limits(name, max(map(len, prompts)) + 1)
        check_prompts(prompts, limits, "prompt")
        return Tokenized(new_rid(), prompts, [block_hashes(ids) for ids in prompts])

    async def _tokenize_content(
        self, asked: Asked[Any], name: str, known: Limits, traceparent: str
    ) -> Tokenized:
        """A large request's content goes to the tokenizer as it came."""
        assert asked.content is not None
        question = TokenizeContent(
            new_rid(),
            field_of(type(asked.request)),
            asked.content,
            self._nodes.longest_context(name),
            known.model.vocab_size,
            traceparent,
        )
        return await self._tokenizers.tokenize(question, name, asked.client, size=asked.size)

    async def _limits(self, name: str, tokens: int) -> Limits:
        """What a sequence of a model is measured by. Waits for a node if none is known yet, or if
        only one that is lost or loading could take so many tokens."""
        return await self._patience.until(
            name,
            lambda: self._nodes.limits(name, tokens),
            f"no node that can take {tokens} tokens is there" if tokens > 1 else "no node is there",
            tokens,
        )
