"""Blocks of keys and values that no row is running on: prefixes for later requests.

Which block holds what is the scheduler's business (`prefix_tree.py`); here they are numbers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

import mlx.core as mx

from mlxfleet.common.kv_sizes import BLOCK_TOKENS
from mlxfleet.workers.kv_format import Format, LayerShape, Planes

# MLX changes an array in place only if nothing else needs it any more; if something does, a
# segment is copied, not the store.
SEGMENT_BLOCKS = 16


class ColdStore:
    """Up to `max_blocks` blocks of BLOCK_TOKENS tokens, in segments that take memory when one of
    their blocks is first used."""

    def __init__(self, shapes: Sequence[LayerShape], format: Format, max_blocks: int) -> None:
        self._shapes = shapes
        self._format = format
        self._max_blocks = max_blocks
        self._segments: dict[int, list[Planes]] = {}

    def prepare(self, blocks: Sequence[int]) -> None:
        """Take the memory for these blocks; ValueError if one is not in the store."""
        for block in blocks:
            if not 0 <= block < self._max_blocks:
                raise ValueError(f"block {block} is outside the store of {self._max_blocks}")
            segment = block // SEGMENT_BLOCKS
            if segment not in self._segments:
                size = min(SEGMENT_BLOCKS, self._max_blocks - segment * SEGMENT_BLOCKS)
                self._segments[segment] = [
                    shape.empty(self._format, size, BLOCK_TOKENS) for shape in self._shapes
                ]

    def write(self, layer: int, blocks: Sequence[int], rows: Sequence[mx.array]) -> None:
        """Store planes [KV heads, blocks * BLOCK_TOKENS, dim_i] of a layer in prepared blocks."""
        for i, row in enumerate(rows):
            cut = row.reshape(row.shape[0], len(blocks), BLOCK_TOKENS, row.shape[-1])
            cut = cut.transpose(1, 0, 2, 3)
            first = 0
            for segment, places in by_segment(blocks):
                plane = self._segments[segment][layer][i]
                plane[mx.array(places)] = cut[first : first + len(places)]
                first += len(places)

    def read(self, layer: int, blocks: Sequence[int]) -> Planes:
        """Planes [KV heads, blocks * BLOCK_TOKENS, dim_i] of a layer."""
        runs = [
            [plane[mx.array(places)] for plane in self._segments[segment][layer]]
            for segment, places in by_segment(blocks)
        ]
        planes = []
        for parts in zip(*runs, strict=True):
            rows = parts[0] if len(parts) == 1 else mx.concatenate(list(parts))
            rows = rows.transpose(1, 0, 2, 3)
            planes.append(rows.reshape(rows.shape[0], -1, rows.shape[-1]))
        return planes

    def arrays(self, blocks: Sequence[int]) -> list[mx.array]:
        """The arrays that these blocks are in."""
        return [
            plane
            for segment in {block // SEGMENT_BLOCKS for block in blocks}
            for planes in self._segments[segment]
            for plane in planes
        ]


def by_segment(blocks: Sequence[int]) -> Iterator[tuple[int, list[int]]]:
    """Runs of blocks in one segment, as places in that segment."""
    for segment, run in groupby(blocks, key=lambda block: block // SEGMENT_BLOCKS):
        yield segment, [block % SEGMENT_BLOCKS for block in run]
