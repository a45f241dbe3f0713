"""Prompts to token ids."""

from __future__ import annotations

from typing import Any

from jinja2.exceptions import TemplateError

from mlxfleet.common.messages import TokenizeChat, Tokenized, TokenizeFailed, TokenizeText


class Encoder:
    """A model's tokenizer and chat template."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def encode(self, message: TokenizeText | TokenizeChat) -> Tokenized | TokenizeFailed:
        """The prompts' token ids, or why there are none."""
        match message:
            case TokenizeText():
                ids = [self._tokenizer.encode(text) for text in message.texts]
                return Tokenized(message.rid, ids)
            case TokenizeChat():
                return self._chat(message)

    def _chat(self, message: TokenizeChat) -> Tokenized | TokenizeFailed:
        if self._tokenizer.chat_template is None:
            why = "the model has no chat template; use /v1/completions"
            return TokenizeFailed(message.rid, why, "messages")
        try:
            text = self._tokenizer.apply_chat_template(
                message.messages, tokenize=False, add_generation_prompt=True
            )
        except (TemplateError, TypeError, ValueError) as error:
            why = f"the model's chat template does not accept the messages: {error}"
            return TokenizeFailed(message.rid, why, "messages")
        # The template has written the special tokens already.
        return Tokenized(message.rid, [self._tokenizer.encode(text, add_special_tokens=False)])
