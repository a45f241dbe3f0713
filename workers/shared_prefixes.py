"""Keeps the prompts that several sequences of a request share in the cold store, until the last of
these is released: others may run between two of them, and store a lot."""

from __future__ import annotations

from dataclasses import dataclass

from mlxfleet.common.kv_sizes import BLOCK_TOKENS
from mlxfleet.workers.prefix_tree import Hold, PrefixTree
from mlxfleet.workers.sequence import Sequence

Key = tuple[str, str, int]


@dataclass
class Shared:
    """A prompt of so many sequences, and what holds the blocks of it that are stored."""

    sequences: int = 0
    hold: Hold | None = None


class SharedPrefixes:
    """The prompts of a scheduler's sequences that have siblings."""

    def __init__(self) -> None:
        self._prompts: dict[Key, Shared] = {}

    def __len__(self) -> int:
        return len(self._prompts)

    def join(self, sequence: Sequence) -> None:
        """A sequence has come."""
        if sequence.siblings:
            self._prompts.setdefault(key_of(sequence), Shared()).sequences += 1

    def stored(self, sequence: Sequence, tree: PrefixTree) -> None:
        """Hold what is stored of a sequence's prompt, if that is more than before."""
        shared = self._prompts.get(key_of(sequence)) if sequence.siblings else None
        if shared is None:
            return
        whole = len(sequence.prompt_ids) // BLOCK_TOKENS * BLOCK_TOKENS
        if shared.hold is not None and shared.hold.tokens == whole:
            return
        before, shared.hold = shared.hold, tree.hold(sequence.prompt_ids)
        if before is not None:
            tree.let_go(before)

    def leave(self, sequence: Sequence, tree: PrefixTree) -> None:
        """A sequence was released."""
        if not sequence.siblings:
            return
        shared = self._prompts[key_of(sequence)]
        shared.sequences -= 1
        if shared.sequences == 0:
            del self._prompts[key_of(sequence)]
            if shared.hold is not None:
                tree.let_go(shared.hold)

    def forget_holds(self) -> None:
        """The cold store is empty."""
        for shared in self._prompts.values():
            shared.hold = None


def key_of(sequence: Sequence) -> Key:
    """The same for sequences of one request with one prompt."""
    return sequence.party.client, sequence.party.request, hash(tuple(sequence.prompt_ids))
