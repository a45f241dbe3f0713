"""Blocks of keys and values that no row is running on: prefixes for later requests.

Which block holds what is the scheduler's business (`prefix_tree.py`); here they are numbers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

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
            done = 0
            for segment, first, count in runs(blocks):
                plane = self._segments[segment][layer][i]
                plane[first : first + count] = cut[done : done + count]
                done += count

    def read(self, layer: int, blocks: Sequence[int]) -> Planes:
        """Planes [KV heads, blocks * BLOCK_TOKENS, dim_i] of a layer."""
        found = [
            [plane[first : first + count] for plane in self._segments[segment][layer]]
            for segment, first, count in runs(blocks)
        ]
        planes = []
        for parts in zip(*found, strict=True):
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


def runs(blocks: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """Blocks that follow each other in a segment, as (segment, first place in it, number). Copying
    a run is faster than picking its blocks one by one."""
    start = 0
    for end in range(1, len(blocks) + 1):
        follows = end < len(blocks) and blocks[end] == blocks[end - 1] + 1
        if not follows or blocks[end] % SEGMENT_BLOCKS == 0:
            yield blocks[start] // SEGMENT_BLOCKS, blocks[start] % SEGMENT_BLOCKS, end - start
            start = end
