"""A sequence in the worker, the prompt tokens of it that one pass runs, and what a pass gives."""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx

from mlxfleet.workers.sampling import SamplingRow


@dataclass(eq=False)
class Row:
    """`token_ids` are prompt and output so far, as they were when the row was admitted. One that
    has `failed` has numbers that are not finite, in its logits and perhaps in its keys and
    values."""

    rid: str
    token_ids: list[int]
    sampling: SamplingRow
    prefilled: int = 0
    generated: int = 0
    done: bool = False
    failed: bool = False

    @property
    def prefill_tokens(self) -> int:
        """Tokens to prefill: all but the last, which is the first decode input."""
        return len(self.token_ids) - 1


@dataclass(frozen=True)
class Chunk:
    """The next tokens of a row's prompt, at least one."""

    row: Row
    token_ids: list[int]


@dataclass(frozen=True)
class Pass:
    """One forward pass, perhaps not computed yet: `logits` [decoding rows or more, vocabulary],
    whose further rows mean nothing, None if no row decodes; `arrays` to evaluate besides; `marker`,
    if there is one, is known when the pass's chunks are done."""

    logits: mx.array | None
    arrays: list[mx.array]
    marker: mx.array | None
