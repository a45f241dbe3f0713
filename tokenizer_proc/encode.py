"""Prompts to token ids."""

from __future__ import annotations

import logging
from functools import cached_property
from typing import Any

from jinja2.exceptions import TemplateError

from mlxfleet.common.block_hashes import block_hashes
from mlxfleet.common.config import SpecialTokensInContent
from mlxfleet.common.large_bodies import MAX_PROMPT_TOKENS, too_many_tokens
from mlxfleet.common.messages import TokenizeChat, Tokenized, TokenizeFailed, TokenizeText
from mlxfleet.tokenizer_proc.content_text import ContentText
from mlxfleet.tokenizer_proc.errors import PromptError

log = logging.getLogger(__name__)

PROBE_CHARS_PER_TOKEN = 8
PROBE_GROWTH = 8
PROBE_SLACK_TOKENS = 64


class Encoder:
    """A model's tokenizer and chat template. With `special_tokens_in_content` "text", no message
    but the assistant's can have special tokens."""

    def __init__(
        self, tokenizer: Any, special_tokens_in_content: SpecialTokensInContent = "text"
    ) -> None:
        self._tokenizer = tokenizer
        self._content_is_text = special_tokens_in_content == "text"

    def encode(self, message: TokenizeText | TokenizeChat) -> Tokenized | TokenizeFailed:
        """The prompts' token ids and the hashes of their blocks, or why there are none."""
        param = "messages" if isinstance(message, TokenizeChat) else "prompt"
        try:
            if isinstance(message, TokenizeChat):
                ids = [self._encode_chat(message.messages, message.max_tokens)]
            else:
                ids = self._encode_all(message.texts, message.max_tokens)
        except PromptError as error:
            return TokenizeFailed(message.rid, str(error), param, error.code)
        except Exception:
            # The tokenizer's library and the template may raise anything.
            log.exception("a prompt could not be encoded")
            return TokenizeFailed(message.rid, "the prompt cannot be encoded", param)
        return Tokenized(message.rid, ids, [block_hashes(prompt) for prompt in ids])

    def _encode_chat(self, messages: list[dict[str, str]], max_tokens: int) -> list[int]:
        """Token ids of a conversation. The template writes the special tokens itself."""
        if self._tokenizer.chat_template is None:
            raise PromptError("the model has no chat template; use /v1/completions")
        marked = self._content.mark(messages) if self._content_is_text else None
        if marked is None:
            return self._encode(self._render(messages), max_tokens, False)
        rendered = self._render(marked.messages)
        self._refuse_too_long(rendered, max_tokens, False)
        return self._content.encode(rendered, marked)

    @cached_property
    def _content(self) -> ContentText:
        return ContentText(self._tokenizer)

    def _render(self, messages: list[dict[str, str]]) -> str:
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

    def _encode_all(self, texts: list[str], max_tokens: int) -> list[list[int]]:
        most = left = max(MAX_PROMPT_TOKENS, max_tokens)
        encoded = []
        for text in texts:
            encoded.append(self._encode(text, max_tokens, True))
            left -= len(encoded[-1])
            if left < 0:
                error = too_many_tokens(most)
                raise PromptError(error.message, error.code)
        return encoded

    def _encode(self, text: str, max_tokens: int, special: bool) -> list[int]:
        """Token ids of a text, PromptError if they are too many."""
        self._refuse_too_long(text, max_tokens, special)
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=special)
        return ids

    def _refuse_too_long(self, text: str, max_tokens: int, special: bool) -> None:
        """PromptError if a text's beginning is too long already; to encode some megabytes to their
        end takes seconds."""
        probed = max_tokens * PROBE_CHARS_PER_TOKEN
        while probed < len(text):
            begun = self._tokenizer.encode(text[:probed], add_special_tokens=special)
            if len(begun) > max_tokens + PROBE_SLACK_TOKENS:
                raise PromptError(
                    f"the prompt has more than {max_tokens} tokens, the context length",
                    "context_length_exceeded",
                )
            probed *= PROBE_GROWTH
