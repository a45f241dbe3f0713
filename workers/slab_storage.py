"""KV storage for models whose every layer keeps keys and values of all tokens.

A row is in a slab of its capacity class, writes at its own offset and is prefilled where it
decodes; nothing is padded on the left.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx

from mlxfleet.common.kv_sizes import BLOCK_TOKENS, LEAST_CAPACITY, capacity_for
from mlxfleet.workers import cpu_math
from mlxfleet.workers.attention import HeadRows
from mlxfleet.workers.cold_store import ColdStore
from mlxfleet.workers.flat_pass import ChunkPart, DecodePart, Layer, decode_part, padded
from mlxfleet.workers.kv_format import Format, LayerShape, chunk_mask
from mlxfleet.workers.row import Chunk, Pass, Row
from mlxfleet.workers.slab import Place, Slab

GROWTH = 1.5
# Free slots between rows, as a share of the rows, that are cheaper to compute than to fill.
HOLES = 0.25
# Of the budget, for slots of the smallest slab that exist before there are rows.
FIRST_SHARE = 0.1


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
        if row.failed:
            # It may have been in other slots before.
            for slab in self._slabs.values():
                slab.clears_slots = True
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
        for index, planes in enumerate(place.slab.layers):
            for i, found in enumerate(self._cold.read(index, blocks)):
                planes[i][place.slot, :, :tokens] = found[:, :tokens]
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
