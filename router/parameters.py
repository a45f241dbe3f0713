"""Request bodies of the API: what is accepted, and a clear refusal of everything else."""

from __future__ import annotations

import re
import secrets
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta, Struct

from mlxfleet.common.errors import InvalidRequestError
from mlxfleet.common.messages import Priority, Sampling
from mlxfleet.common.request_content import Message, invalid, is_int
from mlxfleet.common.sampling_defaults import (
    Penalty,
    RepetitionPenalty,
    SamplingDefaults,
    Share,
    Temperature,
    TopK,
)

MAX_CHOICES = 64
MAX_STOPS = 16
MAX_TOP_LOGPROBS = 20
COMPLETION_DEFAULT_MAX_TOKENS = 16
SEED_BITS = 63
TOKEN_ID = re.compile("0|[1-9][0-9]{0,9}")

Count = Annotated[int, Meta(ge=1)]
Stop = Annotated[str, Meta(min_length=1)]

UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "audio": (None,),
    "best_of": (None, 1),
    "echo": (None, False),
    "function_call": (None, "none"),
    "functions": (None, []),
    "metadata": (None, {}),
    "modalities": (None, ["text"]),
    "parallel_tool_calls": (None, True),
    "prediction": (None,),
    "reasoning_effort": (None,),
    "response_format": (None, {"type": "text"}),
    "service_tier": (None, "auto", "default"),
    "store": (None, False),
    "suffix": (None, ""),
    "tool_choice": (None, "none", "auto"),
    "tools": (None, []),
    "verbosity": (None,),
    "web_search_options": (None,),
}
"""Parameters of OpenAI's API that are not honoured, with the values that ask for nothing."""


class StreamOptions(Struct, forbid_unknown_fields=True):
    """`include_usage`: a last chunk with the token counts. `continuous_usage_stats`: the counts so
    far in every chunk too."""

    include_usage: bool | None = False
    continuous_usage_stats: bool | None = False


class Parameters(Struct, forbid_unknown_fields=True, kw_only=True):
    """What both endpoints take. None means the model's default."""

    model: str | None = None
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    max_tokens: Count | None = None
    temperature: Temperature | None = None
    top_p: Share | None = None
    top_k: TopK | None = None
    min_p: Share | None = None
    seed: Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | None = None
    stop: Stop | Annotated[list[Stop], Meta(max_length=MAX_STOPS)] | None = None
    n: Annotated[int, Meta(ge=1, le=MAX_CHOICES)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    repetition_penalty: RepetitionPenalty | None = None
    logit_bias: dict[str, Annotated[float, Meta(ge=-100, le=100)]] | None = None
    ignore_eos: bool | None = False
    user: str | None = None
    priority: Priority | None = None

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with the token counts."""
        return bool(self.stream_options and self.stream_options.include_usage)

    @property
    def continuous_usage(self) -> bool:
        """Whether every chunk has the token counts so far."""
        return bool(self.stream_options and self.stream_options.continuous_usage_stats)

    @property
    def stops(self) -> list[str]:
        """Stop strings as a list."""
        return [self.stop] if isinstance(self.stop, str) else list(self.stop or ())

    @property
    def sequences(self) -> int:
        """How many sequences the request asks for."""
        return self.n or 1


class ChatRequest(Parameters, kw_only=True):
    """Body of POST /v1/chat/completions."""

    messages: Annotated[list[Message], Meta(min_length=1)]
    max_completion_tokens: Count | None = None
    logprobs: bool | None = False
    top_logprobs: Annotated[int, Meta(ge=0, le=MAX_TOP_LOGPROBS)] | None = None


class CompletionRequest(Parameters, kw_only=True):
    """Body of POST /v1/completions."""

    prompt: str | list[Any]
    logprobs: Annotated[int, Meta(ge=0, le=MAX_TOP_LOGPROBS)] | None = None

    @property
    def sequences(self) -> int:
        """How many sequences the request asks for, if its prompt is valid."""
        many = isinstance(self.prompt, list) and not all(map(is_int, self.prompt))
        return (len(self.prompt) if many else 1) * (self.n or 1)


R = TypeVar("R", ChatRequest, CompletionRequest)


def parse(kind: type[R], body: bytes) -> R:
    """A request body as a checked structure; InvalidRequestError names the parameter."""
    try:
        raw = msgspec.json.decode(body)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise InvalidRequestError(f"the body is not valid JSON: {error}") from error
    if not isinstance(raw, dict):
        raise InvalidRequestError("the body must be a JSON object")
    known = kind.__struct_fields__
    for name, value in raw.items():
        harmless = UNSUPPORTED.get(name)
        if harmless is not None and name not in known and not asks_nothing(value, harmless):
            raise InvalidRequestError(
                f"{name} is not supported by this server", param=name, code="unsupported_parameter"
            )
    wanted = {k: v for k, v in raw.items() if k in known or k not in UNSUPPORTED}
    try:
        request = msgspec.convert(wanted, kind)
    except msgspec.ValidationError as error:
        raise invalid(error) from error
    if request.stream_options is not None and not request.stream:
        raise InvalidRequestError("stream_options needs stream", param="stream_options")
    if request.continuous_usage and not request.include_usage:
        raise InvalidRequestError(
            "continuous_usage_stats needs include_usage", param="stream_options"
        )
    return request


def asks_nothing(value: object, harmless: tuple[Any, ...]) -> bool:
    """Whether a value is one of the harmless ones; 1 and true are told apart."""
    return any(type(value) is type(known) and value == known for known in harmless)


def chat_max_tokens(request: ChatRequest) -> int | None:
    """The limit a chat request states, under either name."""
    stated = {n for n in (request.max_tokens, request.max_completion_tokens) if n is not None}
    if len(stated) > 1:
        raise InvalidRequestError(
            "max_tokens and max_completion_tokens differ", param="max_completion_tokens"
        )
    return next(iter(stated), None)


def chat_logprobs(request: ChatRequest) -> int | None:
    """How many alternatives a chat request wants, None for no log-probabilities."""
    if request.top_logprobs is not None and not request.logprobs:
        raise InvalidRequestError("top_logprobs needs logprobs", param="top_logprobs")
    return (request.top_logprobs or 0) if request.logprobs else None


def make_sampling(
    request: Parameters,
    *,
    max_tokens: int,
    logprobs: int | None,
    vocab_size: int,
    defaults: SamplingDefaults,
) -> Sampling:
    """The request's parameters, the model's `defaults` where it has none; a random seed if it gives
    none."""
    seed = request.seed if request.seed is not None else secrets.randbits(SEED_BITS)
    return Sampling(
        seed=seed,
        max_tokens=max_tokens,
        temperature=default(request.temperature, defaults.temperature),
        top_p=default(request.top_p, defaults.top_p),
        top_k=min(max(default(request.top_k, defaults.top_k), 0), vocab_size),
        min_p=default(request.min_p, defaults.min_p),
        presence_penalty=default(request.presence_penalty, defaults.presence_penalty),
        frequency_penalty=default(request.frequency_penalty, defaults.frequency_penalty),
        repetition_penalty=default(request.repetition_penalty, defaults.repetition_penalty),
        logit_bias=parse_logit_bias(request.logit_bias or {}, vocab_size),
        logprobs=logprobs,
        ignore_eos=bool(request.ignore_eos),
    )


V = TypeVar("V")


def default(value: V | None, otherwise: V) -> V:
    """The value, unless it is None."""
    return otherwise if value is None else value


def parse_logit_bias(bias: dict[str, float], vocab_size: int) -> dict[int, float]:
    """Token ids to biases; JSON has only strings as keys."""
    parsed = {}
    for key, value in bias.items():
        if not TOKEN_ID.fullmatch(key) or int(key) >= vocab_size:
            raise InvalidRequestError(
                f"logit_bias: {key[:20]!r} is not a token id below {vocab_size}", param="logit_bias"
            )
        parsed[int(key)] = value
    return parsed
