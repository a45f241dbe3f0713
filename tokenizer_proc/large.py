"""Large request bodies: taken apart for the router, and their prompts or messages read."""

from __future__ import annotations

from mlxfleet.common.block_hashes import block_hashes
from mlxfleet.common.errors import InvalidRequestError
from mlxfleet.common.large_bodies import read_messages, read_prompt, take_apart
from mlxfleet.common.messages import (
    TakeApart,
    TakenApart,
    TokenizeChat,
    TokenizeContent,
    Tokenized,
    TokenizeFailed,
    TokenizeText,
)


def taken_apart(message: TakeApart) -> TakenApart | TokenizeFailed:
    """The parts of a body, or why it has none."""
    try:
        parameters, content = take_apart(message.body, message.field)
    except InvalidRequestError as error:
        return refusal(message.rid, error)
    return TakenApart(message.rid, parameters, content)


def read_content(
    message: TokenizeContent,
) -> TokenizeChat | TokenizeText | Tokenized | TokenizeFailed:
    """What is to be encoded, or what needs not be, or why it cannot."""
    rid, content, most = message.rid, message.content, message.max_tokens
    try:
        if message.field == "messages":
            messages = read_messages(content, most)
            return TokenizeChat(rid, messages, most, message.traceparent)
        prompts = read_prompt(content, most, message.vocab_size)
    except InvalidRequestError as error:
        return refusal(rid, error)
    texts = [prompt for prompt in prompts if isinstance(prompt, str)]
    if texts:
        return TokenizeText(rid, texts, most, message.traceparent)
    ids = [prompt for prompt in prompts if isinstance(prompt, list)]
    return Tokenized(rid, ids, [block_hashes(prompt) for prompt in ids])


def refusal(rid: str, error: InvalidRequestError) -> TokenizeFailed:
    """The client's error as the router hears of it."""
    return TokenizeFailed(rid, error.message, error.param or "", error.code)
