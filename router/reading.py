"""Request bodies as checked structures, without ever holding up the event loop."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic

from mlxfleet.common.messages import ContentField, TakeApart
from mlxfleet.router.dispatcher import new_rid
from mlxfleet.router.parameters import ChatRequest, CompletionRequest, R, parse
from mlxfleet.router.tokenizers import Tokenizers

INLINE_BYTES = 256 * 1024
"""Bodies up to this size are parsed on the event loop, which takes some ms at the worst."""


@dataclass
class Asked(Generic[R]):
    """What a request asks for. `content` is the JSON of a large request's prompt or messages, which
    is still to be checked; then the request itself has only a placeholder there. `client` is who
    asks, see `client_name`, `size` the body's in bytes."""

    request: R
    client: str = ""
    size: int = 0
    content: bytes | None = None

    def forget_prompt(self) -> None:
        """The prompt has become tokens: let go of its text."""
        self.content = None
        match self.request:
            case ChatRequest():
                self.request.messages = []
            case CompletionRequest():
                self.request.prompt = ""


def field_of(kind: type[ChatRequest] | type[CompletionRequest]) -> ContentField:
    """Where a request has its bulk."""
    return "messages" if issubclass(kind, ChatRequest) else "prompt"


async def read(kind: type[R], body: bytes, tokenizers: Tokenizers, client: str) -> Asked[R]:
    """Check a client's body; InvalidRequestError names the parameter. A large one is taken apart in
    a tokenizer process."""
    if len(body) <= INLINE_BYTES:
        return Asked(parse(kind, body), client, len(body))
    parts = await tokenizers.take_apart(TakeApart(new_rid(), field_of(kind), body), client)
    return Asked(parse(kind, parts.parameters), client, len(body), parts.content)
