"""Bringing a model's weights into memory piece by piece, so that it can be said how far that is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten

from mlxfleet.workers.load_report import LoadReport

# Small enough for progress several times a second, large enough that it costs nothing.
PIECE_BYTES = 128 << 20


def weights_of(model: Any) -> list[mx.array]:
    """All weights."""
    parameters: Any = tree_flatten(model.parameters())
    return [array for _, array in parameters]


def bytes_of(model: Any) -> int:
    """Bytes of all weights."""
    return sum(array.nbytes for array in weights_of(model))


def read_weights(model: Any, report: LoadReport) -> None:
    """Evaluate the weights of a model that was loaded lazily: reads them, and computes what is made
    of them. The next piece is under way while one is waited for."""
    launch: Callable[[list[mx.array]], None] = mx.async_eval
    pieces = [*split(weights_of(model)), []]
    launch(pieces[0])
    for piece, following in pairwise(pieces):
        launch(following)
        mx.eval(piece)
        report.loaded(sum(array.nbytes for array in piece))


def split(arrays: list[mx.array]) -> Iterator[list[mx.array]]:
    """Pieces of PIECE_BYTES, or one array where that is larger."""
    piece: list[mx.array] = []
    for array in arrays:
        piece.append(array)
        if sum(part.nbytes for part in piece) >= PIECE_BYTES:
            yield piece
            piece = []
    if piece:
        yield piece
