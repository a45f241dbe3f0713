"""The tokenizer process: prompts in, token ids out."""

from __future__ import annotations

from mlxfleet.common.client_service import ClientService
from mlxfleet.common.config import TokenizerProcess
from mlxfleet.common.messages import RouterToTokenizer, TokenizeChat, TokenizeText
from mlxfleet.common.process import run_service
from mlxfleet.common.tokenizer_files import load_tokenizer
from mlxfleet.tokenizer_proc.encode import Encoder


class TokenizerService(ClientService):
    """Wires an Encoder to the router."""

    def __init__(self, told: TokenizerProcess) -> None:
        super().__init__(told.name)
        self._told = told

    async def startup(self) -> None:
        """Load the tokenizer, then connect."""
        told = self._told
        tokenizer = load_tokenizer(told.model_dir, trust_remote_code=told.trust_remote_code)
        self._encoder = Encoder(tokenizer)
        self.connect(RouterToTokenizer, told.router_address, model=told.model)

    def on_message(self, message: TokenizeText | TokenizeChat) -> None:
        """Answer at once: one prompt at a time is what one process can do."""
        self.router.send(self._encoder.encode(message))


def main() -> None:
    """Run the tokenizer to its end."""
    run_service(TokenizerProcess, TokenizerService)
