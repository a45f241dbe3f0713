"""Answers of the API as they are compared, and what an answer has to look like."""

from __future__ import annotations

import math
from typing import Any

import msgspec
from msgspec import Struct

from mlxfleet.bench.chaos.cases import Case

DONE = b"[DONE]"
FINISH_REASONS = ("stop", "length")


class MalformedError(Exception):
    """An answer, or an event of a stream, is not what the API promises."""


class EventError(Exception):
    """A stream ended with an error event of this type."""

    def __init__(self, error: object) -> None:
        super().__init__(str(error))
        self.type = error.get("type") if isinstance(error, dict) else None


class Entry(Struct, frozen=True):
    """A token's log-probability and its alternatives; `offset` in characters, completions only."""

    token: str
    logprob: float
    top: dict[str, float] = {}
    offset: int | None = None


class Choice(Struct):
    """One choice, whole or so far."""

    text: str = ""
    finish_reason: str | None = None
    logprobs: list[Entry] = []
    opened: bool = False


class Usage(Struct, frozen=True):
    """Token counts; what came out of a cache may differ from run to run and is left out."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class Answer(Struct):
    """What a request was answered."""

    choices: list[Choice]
    usage: Usage | None = None


def read_whole(case: Case, body: bytes) -> Answer:
    """A JSON answer; MalformedError if it is not one."""
    answer = new_answer(case)
    try:
        data = msgspec.json.decode(body)
        answer.usage = msgspec.convert(data["usage"], Usage)
        if [choice["index"] for choice in data["choices"]] != list(range(case.choices)):
            raise MalformedError(f"choices {[choice['index'] for choice in data['choices']]}")
        for choice, raw in zip(answer.choices, data["choices"], strict=True):
            choice.text = raw["message"]["content"] if case.endpoint == "chat" else raw["text"]
            choice.finish_reason = raw["finish_reason"]
            choice.logprobs = entries(case, raw["logprobs"])
    except (msgspec.DecodeError, KeyError, TypeError, UnicodeDecodeError) as error:
        raise MalformedError(f"{type(error).__name__} {error} in {body[:200]!r}") from error
    check_end(case, answer)
    return answer


class StreamReader:
    """Puts a stream's events together, and says what is wrong with one of them."""

    def __init__(self, case: Case) -> None:
        self.answer = new_answer(case)
        self.done = False
        self._case = case
        self._id: str | None = None
        options = case.body.get("stream_options") or {}
        self._usage = bool(options.get("include_usage"))
        self._continuous = bool(options.get("continuous_usage_stats"))
        self._last_usage = False

    def take(self, data: bytes) -> None:
        """An event's data. MalformedError or EventError."""
        if self.done:
            raise MalformedError(f"an event after [DONE]: {data[:100]!r}")
        if data == DONE:
            if self._usage and not self._last_usage:
                raise MalformedError("[DONE] without the token counts")
            check_end(self._case, self.answer)
            self.done = True
            return
        try:
            self._chunk(msgspec.json.decode(data))
        except (msgspec.DecodeError, KeyError, TypeError, IndexError) as error:
            raise MalformedError(f"{type(error).__name__} {error} in {data[:200]!r}") from error

    def _chunk(self, chunk: dict[str, Any]) -> None:
        if "error" in chunk:
            raise EventError(chunk["error"])
        if self._last_usage:
            raise MalformedError("a chunk after the token counts")
        self._id = self._id or chunk["id"]
        if chunk["id"] != self._id:
            raise MalformedError(f"a chunk of {chunk['id']} in the stream of {self._id}")
        for raw in chunk["choices"]:
            self._choice(raw)
        if (usage := chunk.get("usage")) is not None:
            self._count(msgspec.convert(usage, Usage), last=not chunk["choices"])
        elif not chunk["choices"]:
            raise MalformedError("a chunk with nothing in it")

    def _choice(self, raw: dict[str, Any]) -> None:
        choice = self.answer.choices[raw["index"]]
        if choice.finish_reason is not None:
            raise MalformedError(f"choice {raw['index']} goes on after its end: {raw}")
        if self._case.endpoint == "chat":
            delta = raw["delta"]
            if ("role" in delta) == choice.opened:
                raise MalformedError(f"choice {raw['index']} opens late or twice")
            choice.opened = True
            choice.text += delta.get("content") or ""
        else:
            choice.text += raw["text"]
        choice.logprobs += entries(self._case, raw["logprobs"])
        choice.finish_reason = raw["finish_reason"]

    def _count(self, usage: Usage, last: bool) -> None:
        before = self.answer.usage
        if not self._usage or not (last or self._continuous):
            raise MalformedError("token counts that nobody asked for")
        if before is not None and usage.completion_tokens < before.completion_tokens:
            raise MalformedError(f"token counts go back from {before} to {usage}")
        self.answer.usage = usage
        self._last_usage = last


def new_answer(case: Case) -> Answer:
    """An answer of which nothing has come."""
    return Answer([Choice(logprobs=[]) for _ in range(case.choices)])


def entries(case: Case, raw: dict[str, Any] | None) -> list[Entry]:
    """Log-probabilities of either endpoint."""
    if raw is None:
        return []
    if case.endpoint == "chat":
        return [
            Entry(
                item["token"],
                item["logprob"],
                {top["token"]: top["logprob"] for top in item["top_logprobs"]},
            )
            for item in raw["content"]
        ]
    tops = raw["top_logprobs"] or [{}] * len(raw["tokens"])
    columns = (raw["tokens"], raw["token_logprobs"], tops, raw["text_offset"])
    if len(set(map(len, columns))) != 1:
        raise MalformedError(f"columns of log-probabilities of different lengths: {raw}")
    return [Entry(*row) for row in zip(*columns, strict=True)]


def check_end(case: Case, answer: Answer) -> None:
    """MalformedError unless every choice has ended as it may."""
    for index, choice in enumerate(answer.choices):
        if choice.finish_reason not in FINISH_REASONS:
            raise MalformedError(f"choice {index} ended with {choice.finish_reason!r}")
        if any(not math.isfinite(entry.logprob) for entry in choice.logprobs):
            raise MalformedError(f"choice {index} has a log-probability that is no number")
    if (usage := answer.usage) is None:
        return
    if usage.total_tokens != usage.prompt_tokens + usage.completion_tokens:
        raise MalformedError(f"token counts that do not add up: {usage}")
