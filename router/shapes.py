"""OpenAI's response objects, for both endpoints, streamed and not."""

from __future__ import annotations

import codecs
import time
from collections import defaultdict
from typing import Any, Literal

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType, field

from mlxfleet.common.messages import FinishReason, TokenTextLogprobs
from mlxfleet.router.generation import Choice, Generation
from mlxfleet.router.sequences import Delta

encode = msgspec.json.Encoder().encode


class PromptTokensDetails(Struct):
    """Part of `usage`."""

    cached_tokens: int


class Usage(Struct):
    """Exact token counts of a request."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails

    @classmethod
    def of(cls, generation: Generation) -> Usage:
        """Counts so far."""
        prompt, completion = generation.prompt_tokens, generation.completion_tokens
        cached = PromptTokensDetails(generation.cached_tokens)
        return cls(prompt, completion, prompt + completion, cached)


class ChatTopLogprob(Struct):
    """A token and its log-probability."""

    token: str
    logprob: float
    bytes: list[int]


class ChatTokenLogprob(Struct):
    """The chosen token and the alternatives."""

    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[ChatTopLogprob]


class ChatLogprobs(Struct):
    """Log-probabilities of a chat choice: a ChatTokenLogprob for each token, as JSON."""

    content: list[Raw]
    refusal: None = None


class CompletionEntry(Struct, frozen=True):
    """One token of CompletionLogprobs. `top` is JSON, `raw` are the token's bytes."""

    token: str
    logprob: float
    raw: bytes
    top: Raw | None


class CompletionLogprobs(Struct):
    """Log-probabilities of a completion choice, in columns."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[Raw | None] | None
    text_offset: list[int]


class ChatMessage(Struct):
    """The answer of a chat choice."""

    content: str
    role: Literal["assistant"] = "assistant"
    refusal: None = None


class ChatDelta(Struct, omit_defaults=True):
    """What a chunk adds to a message."""

    role: Literal["assistant"] | UnsetType = UNSET
    content: str | UnsetType = UNSET


class ChoiceShape(Struct, kw_only=True):
    """What every choice has."""

    index: int
    finish_reason: FinishReason | None
    logprobs: ChatLogprobs | CompletionLogprobs | None


class ChatChoice(ChoiceShape, kw_only=True):
    """A choice of a chat completion."""

    message: ChatMessage


class ChatChunkChoice(ChoiceShape, kw_only=True):
    """A choice of a chat chunk."""

    delta: ChatDelta


class TextChoice(ChoiceShape, kw_only=True):
    """A choice of a text completion, whole or a chunk."""

    text: str


class Response(Struct, kw_only=True):
    """A whole answer, or one chunk of it."""

    id: str
    object: str
    created: int = field(default_factory=lambda: int(time.time()))
    model: str
    choices: list[Any]
    usage: Usage | UnsetType | None = UNSET


class ChatShape:
    """Answers of POST /v1/chat/completions.

    A shape's `entry` is what a whole answer keeps of a token's log-probabilities: JSON takes a
    fraction of the memory that they have as objects."""

    id_prefix = "chatcmpl-"
    whole_object = "chat.completion"
    chunk_object = "chat.completion.chunk"

    def entry(self, logprobs: TokenTextLogprobs) -> Raw:
        """A token's log-probabilities."""
        chosen = logprobs.chosen
        top = [ChatTopLogprob(token.token, token.logprob, token.bytes) for token in logprobs.top]
        return Raw(encode(ChatTokenLogprob(chosen.token, chosen.logprob, chosen.bytes, top)))

    def whole(self, index: int, choice: Choice[Raw]) -> ChatChoice:
        """A finished choice."""
        return ChatChoice(
            index=index,
            message=ChatMessage(choice.text),
            logprobs=ChatLogprobs(choice.logprobs) if choice.logprobs else None,
            finish_reason=choice.finish_reason,
        )

    def opening(self, index: int) -> ChatChunkChoice | None:
        """The first chunk, which announces the role."""
        delta = ChatDelta(role="assistant", content="")
        return ChatChunkChoice(index=index, delta=delta, logprobs=None, finish_reason=None)

    def chunk(self, index: int, delta: Delta) -> ChatChunkChoice:
        """What is new of a choice."""
        return ChatChunkChoice(
            index=index,
            delta=ChatDelta(content=delta.text or UNSET),
            logprobs=ChatLogprobs([*map(self.entry, delta.logprobs)]) if delta.logprobs else None,
            finish_reason=delta.finish_reason,
        )


class CompletionShape:
    """Answers of POST /v1/completions. Keeps the text offsets of a stream's choices."""

    id_prefix = "cmpl-"
    whole_object = "text_completion"
    chunk_object = "text_completion"

    def __init__(self, logprobs: int | None) -> None:
        self._top = logprobs
        self._texts: defaultdict[int, TextLength] = defaultdict(TextLength)

    def entry(self, logprobs: TokenTextLogprobs) -> CompletionEntry:
        """A token's log-probabilities."""
        chosen = logprobs.chosen
        top = Raw(encode(completion_top(logprobs))) if self._top else None
        return CompletionEntry(chosen.token, chosen.logprob, bytes(chosen.bytes), top)

    def whole(self, index: int, choice: Choice[CompletionEntry]) -> TextChoice:
        """A finished choice."""
        return TextChoice(
            index=index,
            text=choice.text,
            logprobs=self._logprobs(index, choice.logprobs),
            finish_reason=choice.finish_reason,
        )

    def opening(self, index: int) -> None:
        """Completions announce nothing."""

    def chunk(self, index: int, delta: Delta) -> TextChoice:
        """What is new of a choice."""
        return TextChoice(
            index=index,
            text=delta.text,
            logprobs=self._logprobs(index, [*map(self.entry, delta.logprobs)]),
            finish_reason=delta.finish_reason,
        )

    def _logprobs(self, index: int, entries: list[CompletionEntry]) -> CompletionLogprobs | None:
        if not entries:
            return None
        text = self._texts[index]
        return CompletionLogprobs(
            tokens=[entry.token for entry in entries],
            token_logprobs=[entry.logprob for entry in entries],
            top_logprobs=[entry.top for entry in entries] if self._top else None,
            text_offset=[text.add(entry.raw) for entry in entries],
        )


Shape = ChatShape | CompletionShape


class TextLength:
    """Counts the characters of tokens that may each be only part of one."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._characters = 0

    def add(self, token: bytes) -> int:
        """The number of whole characters before a token, which is counted for the next."""
        before = self._characters
        self._characters += len(self._decoder.decode(token))
        return before


def completion_top(entry: TokenTextLogprobs) -> dict[str, float]:
    """Alternatives by text; the chosen token is always among them, as in OpenAI's API."""
    top = {token.token: token.logprob for token in entry.top}
    top.setdefault(entry.chosen.token, entry.chosen.logprob)
    return top
