"""KV storage for models whose every layer keeps keys and values of all tokens.

A slab holds the rows of one capacity class, in each layer one array [slots, KV heads, capacity,
dim] with its rows compact at the front; a row writes at its own offset and is prefilled where it
decodes. Nothing is padded on the left and nothing but the row itself is copied when a row joins,
leaves or outgrows its class.

All rows of a pass, and all prompt tokens of its chunks, run as one flat batch [n, 1] in which
every token has its own position: linear layers read their weights once. Attention runs class by
class for the rows that decode, so that a long row does not slow short ones, and chunk by chunk.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx

from mlxfleet.common.kv_sizes import BLOCK_TOKENS, LEAST_CAPACITY, capacity_for
from mlxfleet.workers import cpu_math, openblas
from mlxfleet.workers.attention import AttendsItself, HeadRows
from mlxfleet.workers.cold_store import ColdStore
from mlxfleet.workers.cpu_linear import few_rows
from mlxfleet.workers.kv_format import Format, LayerShape, Planes, additive, chunk_mask
from mlxfleet.workers.row import Chunk, Pass, Row

# Matrix products of so few rows are a case of their own, and not padded.
UNPADDED_ROWS = max(2, few_rows())
GROWTH = 1.5
# Free slots between rows, as a share of the rows, that are cheaper to compute than to fill.
HOLES = 0.25
# Of the budget, for slots of the smallest slab that exist before there are rows.
FIRST_SHARE = 0.1


@dataclass(eq=False)
class Place:
    """Where a row is: `length` tokens in a slot of a slab."""

    slab: Slab
    slot: int
    length: int = 0


class Slab:
    """The rows of one capacity class. A freed slot is None until `compact`."""

    def __init__(self, capacity: int, shapes: Sequence[LayerShape], format: Format) -> None:
        self.capacity = capacity
        self.places: list[Place | None] = []
        self.slots = 0
        self._shapes = shapes
        self._format = format
        self.dtype = shapes[0].dtype
        self.kv_heads = {shape.kv_heads for shape in shapes}
        self.layers: list[Planes] = [shape.empty(format, 0, capacity) for shape in shapes]

    @property
    def full(self) -> bool:
        """Whether no slot is free."""
        return len(self.places) == self.slots and None not in self.places

    def add(self, place: Place) -> None:
        """Give a place the first free slot here; there has to be one."""
        free = self.places.index(None) if None in self.places else len(self.places)
        place.slab, place.slot = self, free
        self.places[free : free + 1] = [place]

    def resize(self, slots: int) -> None:
        """Have this many slots, at least as many as are used."""
        if slots == self.slots:
            return
        kept = min(slots, len(self.places))
        for index, shape in enumerate(self._shapes):
            planes = shape.empty(self._format, slots, self.capacity)
            if kept:
                for new, old in zip(planes, self.layers[index], strict=True):
                    new[:kept] = old[:kept]
            self.layers[index] = planes
            # One layer at a time, so that never two copies of everything exist.
            mx.eval(planes)
        self.slots = slots

    def arrays(self) -> list[mx.array]:
        """Everything stored."""
        return [plane for planes in self.layers for plane in planes]

    def compact(self, *, leave: float = 0.0) -> None:
        """Move rows from the end into freed slots. Does nothing if there are no more of these than
        the share `leave` of the rows: the next rows will fill them."""
        while self.places and self.places[-1] is None:
            self.places.pop()
        live = [place for place in self.places if place is not None]
        if len(self.places) - len(live) <= leave * len(live):
            return
        holes = (slot for slot in range(len(live)) if self.places[slot] is None)
        for place in live:
            if place.slot >= len(live):
                slot = next(holes)
                self._copy(self, place.slot, slot, place.length)
                self.places[slot] = place
                place.slot = slot
        del self.places[len(live) :]

    def take(self, place: Place) -> None:
        """Move a row here from another slab."""
        old, slot = place.slab, place.slot
        self.add(place)
        self._copy(old, slot, place.slot, place.length)
        old.places[slot] = None

    def _copy(self, source: Slab, slot: int, to: int, length: int) -> None:
        if length == 0:
            return
        row = [
            [plane[slot : slot + 1, :, :length] + 0 for plane in planes] for planes in source.layers
        ]
        # A slice that is still to be read would have all of its array copied when that is written.
        mx.eval(row)
        for mine, theirs in zip(self.layers, row, strict=True):
            for plane, part in zip(mine, theirs, strict=True):
                plane[to : to + 1, :, :length] = part


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


class SlabStorage:
    """KV storage in slabs, with a cold store from which rows start and to which they go."""

    def __init__(
        self,
        model: Any,
        shapes: Sequence[LayerShape],
        format: Format,
        *,
        budget_bytes: int,
        cold_blocks: int,
        expected_rows: int = 0,
    ) -> None:
        self._model = model
        self._shapes = shapes
        self._format = format
        self._budget_bytes = budget_bytes
        self._token_bytes = sum(shape.token_bytes(format) for shape in shapes)
        self._head = HeadRows.of(model)
        self._layers = [Layer(index, format) for index in range(len(shapes))]
        self._cold = ColdStore(shapes, format, cold_blocks)
        slot_bytes = LEAST_CAPACITY * self._token_bytes
        self._first_slots = min(expected_rows, int(FIRST_SHARE * budget_bytes / slot_bytes))
        self._slabs: dict[int, Slab] = {}
        self.reset()

    def reset(self) -> None:
        """Drop every row."""
        # Parts of the last pass still refer to slabs, and places and slabs to each other.
        for slab in self._slabs.values():
            slab.places.clear()
            slab.resize(0)
        self._slabs.clear()
        self._places: dict[Row, Place] = {}
        self._stored: set[int] = set()
        if self._first_slots:
            self._slab_for(LEAST_CAPACITY).resize(self._first_slots)

    @property
    def allocated_bytes(self) -> int:
        """Bytes of all slabs, used or not."""
        slots = sum(slab.slots * slab.capacity for slab in self._slabs.values())
        return slots * self._token_bytes

    def add(self, row: Row) -> None:
        """Make room for a row's prompt."""
        slab = self._slab_for(len(row.token_ids))
        place = Place(slab, -1)
        self._make_slot(slab)
        slab.add(place)
        self._places[row] = place

    def drop(self, row: Row) -> None:
        """Free a row's slot."""
        place = self._places.pop(row, None)
        if place is not None:
            place.slab.places[place.slot] = None

    def run(
        self, decoding: Sequence[Row], inputs: mx.array | None, chunks: Sequence[Chunk]
    ) -> Pass:
        """One pass; see KVStorage."""
        self._launch_stores()
        for chunk in chunks:
            self._make_room(chunk.row, len(chunk.token_ids))
        for row in decoding:
            self._make_room(row, 1)
        for slab in self._slabs.values():
            slab.compact(leave=HOLES)
        # Chunks before decoding: a prompt's last token decodes in the pass of its last chunk.
        chunk_parts, positions = self._chunk_parts(chunks, first=len(decoding))
        decode_parts, order, decode_positions = self._decode_parts(decoding, len(positions))
        positions = decode_positions + positions
        padding = padded(len(positions)) - len(positions)
        if padding:
            order = (order or list(range(len(positions)))) + [0] * padding
        offsets = mx.array(positions + [0] * padding, dtype=mx.int32)
        cpu_math.rope.shared = offsets
        index = None if order is None else mx.array(order)
        for layer in self._layers:
            layer.begin(decode_parts, chunk_parts, offsets, index)
        prompts = [token for chunk in chunks for token in chunk.token_ids]
        tokens = mx.array(prompts + [0] * padding, dtype=mx.uint32)
        logits = self._logits(inputs, tokens)
        return Pass(logits, self._all_arrays(), self._marker(chunk_parts))

    def _logits(self, inputs: mx.array | None, tokens: mx.array) -> mx.array | None:
        """Run the model on the decoding rows' inputs and further tokens; logits of the rows, and
        of some more if that is faster."""
        if inputs is None:
            self._head.run(self._model, tokens, self._layers, None)
            return None
        if tokens.size == 0:
            return self._head.run(self._model, inputs, self._layers, None)
        both = mx.concatenate([inputs, tokens])
        rows = padded(inputs.size)
        head_rows = mx.arange(rows) if rows < both.size else None
        return self._head.run(self._model, both, self._layers, head_rows)

    def attended_by_every_layer(self) -> bool:
        """Whether each layer has attended exactly once since the storage was made."""
        return all(layer.attended == 1 for layer in self._layers)

    def _all_arrays(self) -> list[mx.array]:
        return [plane for slab in self._slabs.values() for plane in slab.arrays()]

    def _marker(self, chunks: Sequence[ChunkPart]) -> mx.array | None:
        """A number that is known when the last layer has seen the chunks. Not a view of the slab,
        which would have to be copied before the next pass writes to it."""
        if not chunks:
            return None
        last = chunks[-1]
        plane = last.slab.layers[-1][-1]
        return plane[last.slot, 0, last.start, 0] + 0

    def store(self, row: Row, start: int, blocks: Sequence[int]) -> None:
        """Copy a row's tokens from `start` on to blocks of the cold store; the last block may hold
        fewer than it has room for. Does nothing if the row is gone."""
        place = self._places.get(row)
        if place is None:
            return
        self._cold.prepare(blocks)
        stop = start + len(blocks) * BLOCK_TOKENS
        for index, planes in enumerate(place.slab.layers):
            self._cold.write(index, blocks, [plane[place.slot, :, start:stop] for plane in planes])
        self._stored.update(blocks)

    def load(self, row: Row, blocks: Sequence[int], tokens: int) -> None:
        """Start a row with the first `tokens` tokens of these blocks."""
        place = self._places[row]
        stop = len(blocks) * BLOCK_TOKENS
        for index, planes in enumerate(place.slab.layers):
            for i, found in enumerate(self._cold.read(index, blocks)):
                planes[i][place.slot, :, :stop] = found
        place.length = tokens

    def _launch_stores(self) -> None:
        """Start copying to the cold store before the pass writes to what is copied."""
        if self._stored:
            mx.async_eval(self._cold.arrays(list(self._stored)))  # type: ignore[no-untyped-call]
            self._stored.clear()

    # --- rooms ----------------------------------------------------------------------------------

    def _make_room(self, row: Row, more: int) -> None:
        """Move a row to a larger slab if it needs one."""
        place = self._places[row]
        if place.length + more > place.slab.capacity:
            slab = self._slab_for(place.length + more)
            self._make_slot(slab)
            slab.take(place)

    def _slab_for(self, tokens: int) -> Slab:
        capacity = capacity_for(tokens)
        if capacity not in self._slabs:
            self._slabs[capacity] = Slab(capacity, self._shapes, self._format)
        return self._slabs[capacity]

    def _make_slot(self, slab: Slab) -> None:
        """Have room for one more row."""
        if not slab.full:
            return
        used = slab.slots
        slots = max(used + 1, int(used * GROWTH))
        more_bytes = (slots - slab.slots) * slab.capacity * self._token_bytes
        if self.allocated_bytes + more_bytes > self._budget_bytes:
            # The scheduler promised that what is used fits.
            slots = used + 1
            self._release_unused()
            self._slabs[slab.capacity] = slab
        slab.resize(slots)

    def _release_unused(self) -> None:
        """Give back the memory of every slot that no row is in."""
        for slab in list(self._slabs.values()):
            slab.compact()
            slab.resize(len(slab.places))
            if not slab.places:
                del self._slabs[slab.capacity]

    # --- the parts of a pass --------------------------------------------------------------------

    def _chunk_parts(
        self, chunks: Sequence[Chunk], first: int
    ) -> tuple[list[ChunkPart], list[int]]:
        """Parts for chunks whose tokens begin at `first` in the flat batch, and their positions."""
        parts = []
        positions: list[int] = []
        for chunk in chunks:
            place = self._places[chunk.row]
            last = first + len(chunk.token_ids)
            mask = chunk_mask(last - first, place.length, self._shapes[0].dtype)
            parts.append(ChunkPart(place.slab, place.slot, place.length, first, last, mask))
            positions += range(place.length, place.length + len(chunk.token_ids))
            place.length += len(chunk.token_ids)
            first = last
        return parts, positions

    def _decode_parts(
        self, decoding: Sequence[Row], chunk_tokens: int
    ) -> tuple[list[DecodePart], list[int] | None, list[int]]:
        """Parts for the first rows of the flat batch, the order of all rows, their positions."""
        by_slab: dict[Slab, list[int]] = {}
        places = [self._places[row] for row in decoding]
        for index, place in enumerate(places):
            by_slab.setdefault(place.slab, []).append(index)
        parts = []
        order = [0] * len(decoding)
        outputs = 0
        for slab, rows in by_slab.items():
            part = decode_part(slab, rows, places, whole=len(rows) == len(decoding))
            parts.append(part)
            for row in rows:
                order[row] = outputs + places[row].slot
            outputs += part.top
        positions = [place.length for place in places]
        for place in places:
            place.length += 1
        if order == list(range(outputs)):
            return parts, None, positions
        order += range(outputs, outputs + chunk_tokens)
        return parts, order, positions


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
