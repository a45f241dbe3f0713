"""Large request bodies, which are taken apart and read in a tokenizer process: decoding megabytes
of JSON takes up to seconds, in which a router could do nothing else.

The router gets the parameters, which are small, with a placeholder for the prompt or messages,
and these as JSON that it only passes on. Lists are counted before they are decoded.
"""

from __future__ import annotations

import re
from typing import Annotated, TypeVar

import msgspec
from msgspec import Meta, Raw, Struct

from mlxfleet.common.errors import InvalidRequestError
from mlxfleet.common.messages import ContentField
from mlxfleet.common.request_content import Message, invalid, prompt_error, split_prompt

MAX_PARAMETER_BYTES = 256 * 1024
"""Of all parameters together, beside prompt or messages."""

MAX_PROMPTS = 16_384
MAX_PROMPT_TOKENS = 512 * 1024
"""Of all prompts of one request together, or the context length if that is more."""

SPACE = b" \t\n\r"
STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"', re.DOTALL)

T = TypeVar("T")


class Content(Struct):
    """Where the bulk of a body is."""

    messages: Raw = Raw(b"")
    prompt: Raw = Raw(b"")


class Conversation(Struct):
    """Messages under their name, which errors then begin with."""

    messages: Annotated[list[Message], Meta(min_length=1)]


def take_apart(body: bytes, field: ContentField) -> tuple[bytes, bytes]:
    """The parameters of a body, with a placeholder in the field, and the field's own JSON."""
    try:
        content = bytes(getattr(decode(body, Content), field))
    except msgspec.ValidationError as error:
        raise InvalidRequestError("the body must be a JSON object") from error
    if len(body) - len(content) > MAX_PARAMETER_BYTES:
        raise InvalidRequestError(
            f"the parameters beside {field} are larger than {MAX_PARAMETER_BYTES} bytes",
            code="parameters_too_large",
        )
    parameters = decode(body, dict[str, Raw])
    parameters[field] = Raw(placeholder(content, field))
    return msgspec.json.encode(parameters), content


def placeholder(content: bytes, field: ContentField) -> bytes:
    """The least that stands for as many prompts."""
    if field == "messages":
        return b'[{"role":"user","content":""}]'
    return msgspec.json.encode([""] * count_prompts(content))


def count_prompts(content: bytes) -> int:
    """How many prompts a prompt's JSON has, if it is valid."""
    opening, first = begins_with(content)
    if opening != b"[" or first not in (b'"', b"["):
        return 1
    if first == b"[":
        count = content.count(b"[") - 1
    else:
        count = 0
        for count, _ in enumerate(STRING.finditer(content), 1):
            if count > MAX_PROMPTS:
                break
    if count > MAX_PROMPTS:
        raise InvalidRequestError(
            f"the request has more than {MAX_PROMPTS} prompts", param="prompt"
        )
    return count


def read_messages(content: bytes, max_tokens: int) -> list[dict[str, str]]:
    """A conversation as a chat template wants it; `max_tokens` is the context length."""
    try:
        count = len(decode(content, list[Raw]))
        if count > max_tokens:
            raise too_long(f"{count} messages", max_tokens, "messages")
        conversation = decode(b'{"messages":' + content + b"}", Conversation)
    except msgspec.ValidationError as error:
        raise invalid(error) from error
    return [message.for_template() for message in conversation.messages]


def read_prompt(content: bytes, max_tokens: int, vocab_size: int) -> list[str] | list[list[int]]:
    """A prompt as a list of texts or of token id lists; `max_tokens` is the context length."""
    opening, first = begins_with(content)
    kind: type[str | list[str] | list[int] | list[list[int]]] = str
    if opening == b"[":
        commas = content.count(b",")
        if first == b'"':
            kind = list[str]
        elif first == b"[":
            kind = list[list[int]]
            if commas > (most := max(MAX_PROMPT_TOKENS, max_tokens)):
                raise too_many_tokens(most)
        else:
            kind = list[int]
            if commas >= max_tokens:
                raise too_long(f"{commas + 1} tokens", max_tokens, "prompt")
    try:
        prompt = decode(content, kind)
    except msgspec.ValidationError as error:
        raise prompt_error(vocab_size) from error
    return split_prompt(prompt, vocab_size)


def begins_with(content: bytes) -> tuple[bytes, bytes]:
    """The first character of some JSON, and the one after it."""
    opening = content.lstrip(SPACE)[:1]
    return opening, content[content.find(opening) + 1 :].lstrip(SPACE)[:1]


def decode(data: bytes, kind: type[T]) -> T:
    """JSON of a type; ValidationError if it is JSON of another, InvalidRequestError if of none."""
    try:
        return msgspec.json.decode(data, type=kind)
    except msgspec.ValidationError:
        raise
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise InvalidRequestError(f"the body is not valid JSON: {error}") from error


def too_long(what: str, max_tokens: int, param: str) -> InvalidRequestError:
    """The error of what cannot fit the context."""
    return InvalidRequestError(
        f"there are {what}, but the context has only {max_tokens} tokens",
        param=param,
        code="context_length_exceeded",
    )


def too_many_tokens(most: int) -> InvalidRequestError:
    """The error of prompts that each may fit, but not together."""
    return InvalidRequestError(
        f"the request's prompts have together more than {most} tokens",
        param="prompt",
        code="too_many_prompt_tokens",
    )
