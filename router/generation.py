"""One HTTP request's sequences, from tokens to a stream of deltas or whole texts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import msgspec

from mlxfleet.common.block_hashes import block_hashes
from mlxfleet.common.errors import InvalidRequestError, RequestError, UnavailableError
from mlxfleet.common.messages import (
    FinishReason,
    ModelInfo,
    Sampling,
    TokenizeChat,
    TokenizeContent,
    Tokenized,
    TokenizeText,
    TokenTextLogprobs,
)
from mlxfleet.common.request_content import split_prompt
from mlxfleet.router.catalog import Catalog
from mlxfleet.router.dispatcher import Dispatcher, new_rid
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
from mlxfleet.router.reading import Asked, field_of, read
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
            )
            for prompt in range(len(prompts))
            for choice in range(self.n)
        ]

    def belongs_to(self, session: str | None, arrived: float) -> None:
        """Say which session the sequences are of, and when their request arrived, in
        time.perf_counter()."""
        for sequence in self.sequences:
            sequence.session = session
            sequence.arrived = arrived

    @contextmanager
    def released_at_end(self) -> Iterator[None]:
        """Release every sequence, however it ends."""
        try:
            yield
        finally:
            for sequence in self.sequences:
                self._dispatcher.release(sequence)

    def fail(self, error: RequestError) -> None:
        """End every sequence that has not ended with an error."""
        for sequence in self.sequences:
            sequence.fail(error)

    async def deltas(self) -> AsyncIterator[tuple[int, Delta]]:
        """Start, then yield (choice, what is new) until every choice has ended."""
        await self._dispatcher.start(self.sequences)
        running = dict(enumerate(self.sequences))
        while running:
            await self._wakeup.wait()
            self._wakeup.clear()
            for index, sequence in list(running.items()):
                ended = sequence.ended
                if delta := sequence.take():
                    yield index, delta
                if ended:
                    del running[index]

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

    async def read(self, kind: type[R], body: bytes) -> Asked[R]:
        """What a body asks for; InvalidRequestError names the parameter."""
        return await read(kind, body, self._tokenizers)

    async def chat(self, asked: Asked[ChatRequest], traceparent: str) -> Generation:
        """A chat request's generation; `traceparent` is that of its being tokenized."""
        request = asked.request
        stated = chat_max_tokens(request)
        logprobs = chat_logprobs(request)
        name = self.catalog.find(request.model)
        model = self._model(name)
        if asked.content is None:
            messages = [message.for_template() for message in request.messages]
            question = TokenizeChat(new_rid(), messages, model.context_length, traceparent)
            tokenized = await self._tokenizers.tokenize(question, name)
        else:
            tokenized = await self._tokenize_content(asked, name, traceparent)
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

    async def completion(self, asked: Asked[CompletionRequest], traceparent: str) -> Generation:
        """A completion request's generation; `traceparent` is that of its being tokenized."""
        request = asked.request
        name = self.catalog.find(request.model)
        model = self._model(name)
        max_tokens = request.max_tokens or COMPLETION_DEFAULT_MAX_TOKENS
        sampling = make_sampling(
            request,
            max_tokens=max_tokens,
            logprobs=request.logprobs,
            vocab_size=model.vocab_size,
            defaults=self.catalog.sampling_defaults(name),
        )
        if asked.content is None:
            tokenized = await self._tokenize_prompt(request, name, model, traceparent)
        else:
            tokenized = await self._tokenize_content(asked, name, traceparent)
        prompts = tokenized.token_ids
        check_prompts(prompts, model, "prompt")
        check_length(prompts, max_tokens, model, "prompt")
        return Generation(self._dispatcher, tokenized, sampling, request, name)

    async def _tokenize_prompt(
        self, request: CompletionRequest, name: str, model: ModelInfo, traceparent: str
    ) -> Tokenized:
        prompt = split_prompt(request.prompt, model.vocab_size)
        texts = [item for item in prompt if isinstance(item, str)]
        if texts:
            question = TokenizeText(new_rid(), texts, model.context_length, traceparent)
            return await self._tokenizers.tokenize(question, name)
        prompts = [item for item in prompt if isinstance(item, list)]
        check_prompts(prompts, model, "prompt")
        return Tokenized(new_rid(), prompts, [block_hashes(ids) for ids in prompts])

    async def _tokenize_content(self, asked: Asked[Any], name: str, traceparent: str) -> Tokenized:
        """A large request's content goes to the tokenizer as it came."""
        model = self._model(name)
        assert asked.content is not None
        question = TokenizeContent(
            new_rid(),
            field_of(type(asked.request)),
            asked.content,
            model.context_length,
            model.vocab_size,
            traceparent,
        )
        return await self._tokenizers.tokenize(question, name)

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
