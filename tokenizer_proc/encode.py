"""Prompts to token ids."""

from __future__ import annotations

from typing import Any

from jinja2.exceptions import TemplateError

from mlxfleet.common.block_hashes import block_hashes
from mlxfleet.common.messages import TokenizeChat, Tokenized, TokenizeFailed, TokenizeText

PROBE_CHARS_PER_TOKEN = 8
PROBE_GROWTH = 8
PROBE_SLACK_TOKENS = 64


class PromptError(Exception):
    """The prompt cannot be encoded: a text for the client, and the API's word if there is one."""

    def __init__(self, message: str, code: str | None = None) -> None:
        super().__init__(message)
        self.code = code


class Encoder:
    """A model's tokenizer and chat template."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def encode(self, message: TokenizeText | TokenizeChat) -> Tokenized | TokenizeFailed:
        """The prompts' token ids and the hashes of their blocks, or why there are none."""
        param = "messages" if isinstance(message, TokenizeChat) else "prompt"
        try:
            if isinstance(message, TokenizeChat):
                # The template writes the special tokens itself.
                texts, special = [self._render(message.messages)], False
            else:
                texts, special = message.texts, True
            ids = [self._encode(text, message.max_tokens, special) for text in texts]
        except PromptError as error:
            return TokenizeFailed(message.rid, str(error), param, error.code)
        return Tokenized(message.rid, ids, [block_hashes(prompt) for prompt in ids])

    def _render(self, messages: list[dict[str, str]]) -> str:
        if self._tokenizer.chat_template is None:
            raise PromptError("the model has no chat template; use /v1/completions")
        try:
            return str(
                self._tokenizer.apply_chat_template(
                    messages, tokenize=False, add_generation_prompt=True
                )
            )
        except (TemplateError, TypeError, ValueError) as error:
            raise PromptError(
                f"the model's chat template does not accept the messages: {error}"
            ) from error

    def _encode(self, text: str, max_tokens: int, special: bool) -> list[int]:
        """Token ids; a text whose beginning is too long already is not encoded to its end,
        which takes seconds for some megabytes."""
        probed = max_tokens * PROBE_CHARS_PER_TOKEN
        while probed < len(text):
            begun = self._tokenizer.encode(text[:probed], add_special_tokens=special)
            if len(begun) > max_tokens + PROBE_SLACK_TOKENS:
                raise PromptError(
                    f"the prompt has more than {max_tokens} tokens, the context length",
                    "context_length_exceeded",
                )
            probed *= PROBE_GROWTH
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=special)
        return ids
