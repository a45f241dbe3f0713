"""The slabs of KV storage: the rows of one capacity class, in each layer one array.

Rows are compact at the front. Nothing but the row itself is copied when a row joins, leaves or
outgrows its class.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx

from mlxfleet.workers.kv_format import Format, LayerShape, Planes


@dataclass(eq=False)
class Place:
    """Where a row is: `length` tokens in a slot of a slab."""

    slab: Slab
    slot: int
    length: int = 0


class Slab:
    """The rows of one capacity class. A freed slot is None until `compact`.

    Attention multiplies what is beyond a row's length by 0, which is enough unless it is infinite
    or NaN. With `clears_slots`, a slot is emptied before a row comes into it.
    """

    def __init__(self, capacity: int, shapes: Sequence[LayerShape], format: Format) -> None:
        self.capacity = capacity
        self.places: list[Place | None] = []
        self.slots = 0
        self.clears_slots = False
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
        if self.clears_slots:
            self._clear(free)

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
                if self.clears_slots:
                    self._clear(slot)
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

    def _clear(self, slot: int) -> None:
        """Make a slot as it was when it was new."""
        for plane in self.arrays():
            plane[slot] = 0

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
