"""Special tokens' names in what clients write are text, not special tokens.

A chat template writes control tokens such as `<|im_start|>` as text between the messages, and a
tokenizer cannot see who wrote them. So names within messages are cut by a mark, a character that
occurs nowhere else, before the template is rendered: what the tokenizer finds whole afterwards is
the template's own. Those places are then written with secret names, the marks are taken out, and
all of it is encoded by a copy of the tokenizer that knows the control tokens only by these names.
"""

from __future__ import annotations

import logging
import time
from typing import Any

from tokenizers import Tokenizer

from mlxfleet.tokenizer_proc.control_tokens import Names, control_tokens
from mlxfleet.tokenizer_proc.errors import PromptError
from mlxfleet.tokenizer_proc.marking import Marked, marked_messages
from mlxfleet.tokenizer_proc.renamed_tokens import RenamedTokens

log = logging.getLogger(__name__)

REFUSED = (
    "a message has the text of a special token, which this model's tokenizer cannot encode as text"
    " (--special-tokens-in-content control makes it the special token)"
)


class ContentText:
    """Finds special tokens' names in what clients write, and encodes them as text."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._backend: Tokenizer | None = getattr(tokenizer, "backend_tokenizer", None)
        self._control = control_tokens(tokenizer)
        self._names = Names(self._control.values())
        self._normalizer = self._backend.normalizer if self._backend is not None else None
        self._normalized_names = Names(self._names_after_normalizing())
        self._renamed: RenamedTokens | None = None

    def mark(self, messages: list[dict[str, Any]]) -> Marked | None:
        """The messages with special tokens' names cut; None if clients have written no such names,
        so that the messages can be encoded as they are. PromptError if they cannot be marked."""
        return marked_messages(messages, self.cuts, str(self._tokenizer.chat_template))

    def cuts(self, text: str) -> set[int]:
        """Where a text has to be cut so that no special token is in it."""
        cuts = self._names.cuts(text)
        if self._normalizer is not None and self._normalized_names:
            normal = self._normalizer.normalize_str(text)
            if self._normalized_names.cuts(normal):
                cuts |= {after_first_letter(text, *span) for *span, _ in self._controls(text)}
        return cuts

    def encode(self, rendered: str, marked: Marked) -> list[int]:
        """Token ids of what a template has made of marked messages, with no special tokens but the
        template's and the assistant's. PromptError if the tokenizer cannot do that."""
        renamed = self._renamed_tokens()
        parts, ids, end = [], [], 0
        for start, stop, token_id in self._controls(rendered):
            if marked.cuts(rendered, start, stop):
                continue
            parts += [marked.without_marks(rendered[end:start]), renamed.names[token_id]]
            ids.append(token_id)
            end = stop
        parts.append(marked.without_marks(rendered[end:]))
        encoded = renamed.encode("".join(parts))
        if renamed.controls(encoded) != renamed.controls(ids):
            raise PromptError(REFUSED)
        return encoded

    def _controls(self, text: str) -> list[tuple[int, int, int]]:
        """Start, end and id of every control token that the tokenizer sees in a text."""
        encoding = self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        offsets = encoding["offset_mapping"]
        return [
            (*offsets[position], token_id)
            for position, token_id in enumerate(encoding["input_ids"])
            if token_id in self._control
        ]

    def _names_after_normalizing(self) -> list[str]:
        """Of the control tokens that are looked for in normalized text."""
        if self._normalizer is None:
            return []
        added = self._tokenizer.added_tokens_decoder
        names = [name for token_id, name in self._control.items() if added[token_id].normalized]
        return [normal for name in names if (normal := self._normalizer.normalize_str(name))]

    def _renamed_tokens(self) -> RenamedTokens:
        """The copy of the tokenizer, made when it is first needed: of a large vocabulary that takes
        a second and as much memory as the tokenizer."""
        if self._renamed is None:
            if self._backend is None:
                raise PromptError(REFUSED)
            began = time.monotonic()
            try:
                self._renamed = RenamedTokens(self._backend, self._control)
            except ValueError as error:
                log.warning("%s", error)
                raise PromptError(REFUSED) from error
            log.info(
                "a second tokenizer, for special tokens' names in messages, took %.1f s to make",
                time.monotonic() - began,
            )
        return self._renamed


def after_first_letter(text: str, start: int, stop: int) -> int:
    """Position after the first character of a span that is not white space."""
    return stop - len(text[start:stop].lstrip()) + 1
