"""What a request's prompt or messages may be, wherever that is checked: small bodies in the router,
large ones in a tokenizer process."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from mlxfleet.common.errors import InvalidRequestError


class TextPart(Struct, forbid_unknown_fields=True):
    """A piece of a message's content."""

    type: Literal["text"]
    text: str


class Message(Struct, forbid_unknown_fields=True):
    """One message of a conversation. The null-only fields are what clients echo back."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]
    name: str | None = None
    refusal: None = None
    audio: None = None
    annotations: Annotated[list[Any], Meta(max_length=0)] | None = None
    function_call: None = None
    tool_calls: Annotated[list[Any], Meta(max_length=0)] | None = None

    def for_template(self) -> dict[str, str]:
        """As a chat template wants it."""
        content = self.content
        text = content if isinstance(content, str) else "".join(part.text for part in content)
        role = "system" if self.role == "developer" else self.role
        named = {"name": self.name} if self.name is not None else {}
        return {"role": role, "content": text, **named}


def invalid(error: msgspec.ValidationError) -> InvalidRequestError:
    """Say which parameter is wrong, and how."""
    text, _, path = str(error).partition(" - at `$")
    if match := re.search(r"(unknown|missing required) field `([^`]*)`", text):
        kind, name = match.groups()
        param = path.strip("`.") + ("." if path else "") + name
        word = "unknown parameter" if kind == "unknown" else "missing parameter"
        code = "unknown_parameter" if kind == "unknown" else "missing_required_parameter"
        return InvalidRequestError(f"{word}: {param}", param=param, code=code)
    param = path.strip("`.")
    return InvalidRequestError(f"{param}: {text}", param=param, code="invalid_value")


def split_prompt(prompt: str | list[Any], vocab_size: int) -> list[str] | list[list[int]]:
    """A completion's prompt as a list of texts or a list of token id lists."""
    if isinstance(prompt, str):
        return [prompt]
    if prompt and all(isinstance(item, str) for item in prompt):
        return prompt
    token_lists = [prompt] if prompt and all(is_int(item) for item in prompt) else prompt
    if not prompt or not all(is_token_list(item, vocab_size) for item in token_lists):
        raise prompt_error(vocab_size)
    return token_lists


def prompt_error(vocab_size: int) -> InvalidRequestError:
    """The error of a prompt that is none."""
    return InvalidRequestError(
        "prompt must be a string, a list of strings, a list of token ids or a list of lists"
        f" of token ids, none of them empty, with token ids below {vocab_size}",
        param="prompt",
        code="invalid_value",
    )


def is_int(value: object) -> bool:
    """An integer that is not a truth value."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_token_list(value: object, vocab_size: int) -> bool:
    """A list of at least one token id."""
    return (
        isinstance(value, list)
        and bool(value)
        and all(is_int(item) and 0 <= item < vocab_size for item in value)
    )
