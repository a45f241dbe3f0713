"""A pass over slabs: one flat batch [n, 1] of the rows that decode and the prompt tokens of chunks.

Every token has its own position, and linear layers read their weights once. Attention runs class
by class for the rows that decode, so that a long row does not slow short ones, and chunk by chunk.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx

from mlxfleet.workers import cpu_math, openblas
from mlxfleet.workers.attention import AttendsItself
from mlxfleet.workers.cpu_linear import few_rows
from mlxfleet.workers.kv_format import Format, additive
from mlxfleet.workers.slab import Place, Slab

# Matrix products of so few rows are a case of their own, and not padded.
UNPADDED_ROWS = max(2, few_rows())

Targets = tuple[mx.array, mx.array, mx.array]
"""Slots, KV heads and positions, each [rows, KV heads]: as plain indices they would be made anew in
every layer, in nine operations."""


@dataclass(frozen=True)
class DecodePart:
    """The decoding rows of one slab in a pass. `rows` are their positions in the flat batch, None
    if they are all of it, in slot order; `row_of_slot` [top] is like `rows` for each of the first
    `top` slots, any row for slots that do not decode. `targets` is where they write, by KV heads of
    the layer; if there is one row it is empty, and `only` is slot and position."""

    slab: Slab
    rows: mx.array | None
    targets: dict[int, Targets]
    row_of_slot: mx.array | None
    top: int
    length: int
    mask: mx.array | None
    only: tuple[int, int] | None


@dataclass(frozen=True)
class ChunkPart:
    """Tokens `first` to `last` of the flat batch, which continue a slot from `start` on."""

    slab: Slab
    slot: int
    start: int
    first: int
    last: int
    mask: mx.array | str | None


class Layer(AttendsItself):
    """What a layer of the model takes for its cache. One per layer, the same in every pass."""

    def __init__(self, index: int, format: Format) -> None:
        self._index = index
        self._format = format
        self.attended = 0

    def begin(
        self,
        decode: Sequence[DecodePart],
        chunks: Sequence[ChunkPart],
        positions: mx.array,
        order: mx.array | None,
    ) -> None:
        """Set what the next pass consists of. `order` brings the parts' rows, one part after the
        other, into the order of the flat batch; None if they are."""
        self._decode = decode
        self._chunks = chunks
        self.offset = positions
        self._order = order

    def make_mask(self, *_: object, window_size: int | None = None, **__: object) -> None:
        """No mask: `attend` knows what each row may see."""
        if window_size is not None:
            raise ValueError("a slab holds all tokens, not a window")

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Write keys and values [n, KV heads, 1, dim] of the flat batch; gives them back."""
        self._latest = (keys, values)
        new = self._format.planes(keys) + self._format.planes(values)
        for part in self._decode:
            planes = part.slab.layers[self._index]
            for i, plane in enumerate(new):
                mine = plane[: part.top] if part.rows is None else plane[part.rows]
                if part.only is not None:
                    slot, position = part.only
                    planes[i][slot : slot + 1, :, position : position + 1] = mine
                else:
                    planes[i][part.targets[mine.shape[1]]] = mine[:, :, 0]
        for chunk in self._chunks:
            planes = chunk.slab.layers[self._index]
            stop = chunk.start + chunk.last - chunk.first
            for i, plane in enumerate(new):
                mine = plane[chunk.first : chunk.last].transpose(2, 1, 0, 3)
                planes[i][chunk.slot : chunk.slot + 1, :, chunk.start : stop] = mine
        return keys, values

    def attend(
        self,
        queries: mx.array,
        keys: mx.array,
        values: mx.array,
        scale: float,
        *,
        mask: mx.array | str | None,
        sinks: mx.array | None,
    ) -> mx.array:
        """Attention of the flat batch: queries [n, heads, 1, dim] to the same shape."""
        if mask is not None or keys is not self._latest[0] or values is not self._latest[1]:
            raise ValueError("the model changes keys, values or mask between cache and attention")
        self.attended += 1
        outputs = [self._attend_rows(part, queries, scale, sinks) for part in self._decode]
        outputs += [self._attend_chunk(chunk, queries, scale, sinks) for chunk in self._chunks]
        output = outputs[0] if len(outputs) == 1 else mx.concatenate(outputs)
        return output if self._order is None else output[self._order]

    def _attend_rows(
        self, part: DecodePart, queries: mx.array, scale: float, sinks: mx.array | None
    ) -> mx.array:
        mine = queries[: part.top] if part.row_of_slot is None else queries[part.row_of_slot]
        planes = [p[: part.top, :, : part.length] for p in part.slab.layers[self._index]]
        half = len(planes) // 2
        return self._format.attend(mine, planes[:half], planes[half:], scale, part.mask, sinks)

    def _attend_chunk(
        self, chunk: ChunkPart, queries: mx.array, scale: float, sinks: mx.array | None
    ) -> mx.array:
        mine = queries[chunk.first : chunk.last].transpose(2, 1, 0, 3)
        slot, stop = chunk.slot, chunk.start + chunk.last - chunk.first
        planes = [p[slot : slot + 1, :, :stop] for p in chunk.slab.layers[self._index]]
        half = len(planes) // 2
        output = self._format.attend(mine, planes[:half], planes[half:], scale, chunk.mask, sinks)
        return output.transpose(2, 1, 0, 3)


def padded(tokens: int) -> int:
    """How many tokens a pass with so many should have."""
    if tokens <= UNPADDED_ROWS or not cpu_math.USED:
        return tokens
    return tokens + -tokens % openblas.row_tile()


def decode_part(
    slab: Slab, rows: Sequence[int], places: Sequence[Place], *, whole: bool
) -> DecodePart:
    """The part of a pass for `rows`, positions of rows in the flat batch whose places are in this
    slab; `whole` if no other row decodes."""
    slots = [places[row].slot for row in rows]
    positions = [places[row].length for row in rows]
    top, length = max(slots) + 1, max(positions) + 1
    row_of_slot, last_of_slot = [rows[0]] * top, [0] * top
    for row, slot, position in zip(rows, slots, positions, strict=True):
        row_of_slot[slot], last_of_slot[slot] = row, position
    in_order = whole and row_of_slot == list(range(top)) and len(rows) == top
    mask = None
    if any(last != length - 1 for last in last_of_slot):
        seen = mx.arange(length)[None] <= mx.array(last_of_slot)[:, None]
        mask = additive(seen, slab.dtype)[:, None, None, :]
    alone = len(rows) == 1
    kv_heads = () if alone else slab.kv_heads
    return DecodePart(
        slab=slab,
        rows=None if in_order else mx.array(list(rows)),
        targets={heads: targets_of(slots, positions, heads) for heads in kv_heads},
        row_of_slot=None if in_order else mx.array(row_of_slot),
        top=top,
        length=length,
        mask=mask,
        only=(slots[0], positions[0]) if alone else None,
    )


def targets_of(slots: list[int], positions: list[int], heads: int) -> Targets:
    """Where rows with these slots and positions write."""
    return (
        mx.array([[slot] * heads for slot in slots]),
        mx.array([list(range(heads))] * len(slots)),
        mx.array([[position] * heads for position in positions]),
    )
