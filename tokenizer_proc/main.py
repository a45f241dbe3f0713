"""The tokenizer process: prompts in, token ids out."""

from __future__ import annotations

import time

from mlxfleet.common.client_service import ClientService
from mlxfleet.common.config import TokenizerProcess
from mlxfleet.common.messages import (
    RouterToTokenizer,
    TakeApart,
    TokenizeChat,
    TokenizeContent,
    Tokenized,
    TokenizeFailed,
    TokenizeText,
)
from mlxfleet.common.process import run_service
from mlxfleet.common.tokenizer_files import load_tokenizer
from mlxfleet.common.tracing import make_tracer
from mlxfleet.tokenizer_proc.encode import Encoder
from mlxfleet.tokenizer_proc.large import read_content, taken_apart


class TokenizerService(ClientService):
    """Wires an Encoder to the router."""

    def __init__(self, told: TokenizerProcess) -> None:
        super().__init__(told.name)
        self._told = told

    async def startup(self) -> None:
        """Load the tokenizer, then connect."""
        told = self._told
        tokenizer = load_tokenizer(told.model_dir, trust_remote_code=told.trust_remote_code)
        self._encoder = Encoder(tokenizer, told.special_tokens_in_content)
        self._tracer = make_tracer(told.observe, "tokenizer", told.name)
        self.connect(RouterToTokenizer, told.router_address, model=told.model)

    def on_message(
        self, message: TokenizeText | TokenizeChat | TakeApart | TokenizeContent
    ) -> None:
        """Answer at once: one prompt at a time is what one process can do."""
        if isinstance(message, TakeApart):
            self.router.send(taken_apart(message))
            return
        began = time.monotonic()
        asked = read_content(message) if isinstance(message, TokenizeContent) else message
        match asked:
            case TokenizeText() | TokenizeChat():
                answer = self._encoder.encode(asked)
            case Tokenized() | TokenizeFailed():
                answer = asked
        self.router.send(answer)
        if message.traceparent:
            self._trace(message.traceparent, answer, began)

    async def shutdown(self) -> None:
        """Close the link, send the last spans."""
        await super().shutdown()
        self._tracer.close()

    def _trace(self, parent: str, answer: Tokenized | TokenizeFailed, began: float) -> None:
        """Record the span of a prompt that was encoded."""
        span = self._tracer.start("encode", parent, at=began)
        match answer:
            case Tokenized():
                span.set({"mlxfleet.prompt_tokens": sum(map(len, answer.token_ids))})
            case TokenizeFailed():
                span.fail(answer.code or "the prompt cannot be encoded")
        span.end()


def main() -> None:
    """Run the tokenizer to its end."""
    run_service(TokenizerProcess, TokenizerService)
