"""One HTTP request's sequences, from tokens to a stream of deltas or whole texts."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import msgspec

from mlxfleet.common.block_hashes import block_hashes
from mlxfleet.common.errors import InvalidRequestError, RequestError, UnavailableError
from mlxfleet.common.messages import (
    FinishReason,
    ModelInfo,
    Party,
    Sampling,
    TokenizeChat,
    Tokenized,
    TokenizeText,
    TokenTextLogprobs,
)
from mlxfleet.router.admission import Ticket, Turn
from mlxfleet.router.catalog import Catalog
from mlxfleet.router.dispatcher import Dispatcher, new_rid
from mlxfleet.router.parameters import (
    COMPLETION_DEFAULT_MAX_TOKENS,
    ChatRequest,
    CompletionRequest,
    Parameters,
    chat_logprobs,
    chat_max_tokens,
    make_sampling,
    split_prompt,
)
from mlxfleet.router.sequences import Delta, Sequence
from mlxfleet.router.tokenizers import Tokenizers


@dataclass
class Choice:
    """One finished choice."""

    text: str = ""
    logprobs: list[TokenTextLogprobs] = field(default_factory=list)
    finish_reason: FinishReason | None = None

    def add(self, delta: Delta) -> None:
        """Append what is new."""
        self.text += delta.text
        self.logprobs += delta.logprobs
        self.finish_reason = delta.finish_reason or self.finish_reason


class Generation:
    """The sequences of one request; choice i belongs to prompt i // n."""

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
        self._wakeup = asyncio.Event()
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
        await self._start(self.sequences[0])
        self._rest = rest = asyncio.create_task(self._start_rest())
        rest.add_done_callback(lambda _: self._wakeup.set())
        running = dict(enumerate(self.sequences))
        while running:
            await self._wakeup.wait()
            self._wakeup.clear()
            if rest.done():
                rest.result()
            for index, sequence in list(running.items()):
                ended = sequence.ended
                if delta := sequence.take():
                    yield index, delta
                if ended:
                    del running[index]

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

    async def collect(self) -> list[Choice]:
        """Run to the end."""
        choices = [Choice() for _ in self.sequences]
        async for index, delta in self.deltas():
            choices[index].add(delta)
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
    """Turns requests into generations: tokenizes, checks lengths, makes sampling parameters."""

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

    async def chat(self, request: ChatRequest, traceparent: str) -> Generation:
        """A chat request's generation; `traceparent` is that of its being tokenized."""
        stated = chat_max_tokens(request)
        logprobs = chat_logprobs(request)
        name = self.catalog.find(request.model)
        model = self._model(name)
        messages = [message.for_template() for message in request.messages]
        tokenized = await self._tokenizers.tokenize(
            TokenizeChat(new_rid(), messages, model.context_length, traceparent), name
        )
        prompts = tokenized.token_ids
        check_prompts(prompts, model, "messages")
        room = model.context_length - len(prompts[0])
        max_tokens = stated or min(self._default_max_tokens, room)
        check_length(prompts, max_tokens, model, "messages")
        sampling = make_sampling(
            request,
            max_tokens=max_tokens,
            logprobs=logprobs,
            vocab_size=model.vocab_size,
            defaults=self.catalog.sampling_defaults(name),
        )
        return Generation(self._dispatcher, tokenized, sampling, request, name)

    async def completion(self, request: CompletionRequest, traceparent: str) -> Generation:
        """A completion request's generation; `traceparent` is that of its being tokenized."""
        name = self.catalog.find(request.model)
        model = self._model(name)
        prompt = split_prompt(request.prompt, model.vocab_size)
        max_tokens = request.max_tokens or COMPLETION_DEFAULT_MAX_TOKENS
        sampling = make_sampling(
            request,
            max_tokens=max_tokens,
            logprobs=request.logprobs,
            vocab_size=model.vocab_size,
            defaults=self.catalog.sampling_defaults(name),
        )
        texts = [item for item in prompt if isinstance(item, str)]
        prompts = [item for item in prompt if isinstance(item, list)]
        if texts:
            tokenized = await self._tokenizers.tokenize(
                TokenizeText(new_rid(), texts, model.context_length, traceparent), name
            )
            prompts = tokenized.token_ids
        check_prompts(prompts, model, "prompt")
        check_length(prompts, max_tokens, model, "prompt")
        if not texts:
            tokenized = Tokenized(new_rid(), prompts, [block_hashes(ids) for ids in prompts])
        return Generation(self._dispatcher, tokenized, sampling, request, name)

    def _model(self, name: str) -> ModelInfo:
        model = self._dispatcher.nodes.model_info(name)
        if model is None:
            raise UnavailableError("no node has loaded the model yet", retry_after_s=5)
        return model


def check_prompts(prompts: list[list[int]], model: ModelInfo, param: str) -> None:
    """Refuse prompts that have no tokens or leave no room for an answer."""
    for prompt in prompts:
        if not prompt:
            raise InvalidRequestError("the prompt has no tokens", param=param, code="empty_prompt")
        if len(prompt) >= model.context_length:
            raise InvalidRequestError(
                f"the prompt has {len(prompt)} tokens, but the context has only"
                f" {model.context_length}",
                param=param,
                code="context_length_exceeded",
            )


def check_length(prompts: list[list[int]], max_tokens: int, model: ModelInfo, param: str) -> None:
    """Refuse prompts that with their answers would not fit the context or the memory."""
    longest = max(map(len, prompts))
    total = longest + max_tokens
    stated = f"{longest} prompt tokens and {max_tokens} of the answer"
    if total > model.context_length:
        raise InvalidRequestError(
            f"{stated} are more than the context length of {model.context_length}",
            param=param,
            code="context_length_exceeded",
        )
    if (needed := model.kv_bytes(total)) > model.kv_budget_bytes:
        raise InvalidRequestError(
            f"{stated} need {needed / 1e6:.0f} MB of KV cache, more than the"
            f" {model.kv_budget_bytes / 1e6:.0f} MB there are",
            param=param,
            code="context_length_exceeded",
        )
