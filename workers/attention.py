"""Two hooks into mlx-lm's models, so that rows of any length can share one forward pass.

Importing this module replaces `scaled_dot_product_attention` in `mlx_lm.models.base` by one that
asks the cache object first. Model files bind that function when they are imported, so this has to
happen before a model is loaded.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import mlx_lm.models.base
from mlx.nn.layers.base import Module


class AttendsItself(ABC):
    """A cache object that holds keys and values in a layout of its own."""

    @abstractmethod
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
        """Attention output; `keys` and `values` are what `update_and_fetch` returned."""


attend_with_mlx_lm: Callable[..., mx.array] = mlx_lm.models.base.scaled_dot_product_attention


def attend(
    queries: mx.array,
    keys: mx.array,
    values: mx.array,
    cache: Any,
    scale: float,
    mask: mx.array | str | None,
    sinks: mx.array | None = None,
) -> mx.array:
    """`mlx_lm.models.base.scaled_dot_product_attention`, unless the cache knows better."""
    if isinstance(cache, AttendsItself):
        return cache.attend(queries, keys, values, scale, mask=mask, sinks=sinks)
    return attend_with_mlx_lm(queries, keys, values, cache, scale, mask, sinks)


mlx_lm.models.base.scaled_dot_product_attention = attend


class HeadRows:
    """Lets only some rows of a pass reach the output head, which costs as much as several layers
    and which prefill tokens do not need.

    Models of mlx-lm apply the head to what their `model` module returns; that module's class is
    replaced by a subclass that drops the other rows from its output.
    """

    @classmethod
    def of(cls, model: Any) -> HeadRows:
        """The one of this model, which is hooked once."""
        hooked: HeadRows | None = getattr(getattr(model, "model", None), "head_rows", None)
        return hooked or cls(model)

    def __init__(self, model: Any) -> None:
        self._rows: mx.array | None = None
        inner = getattr(model, "model", None)
        self.hooked = isinstance(inner, Module) and callable(inner)
        if self.hooked:
            self._hook(inner)

    def _hook(self, inner: Any) -> None:
        original = type(inner)

        def call(module: Any, *args: Any, **kwargs: Any) -> Any:
            hidden = original.__call__(module, *args, **kwargs)
            return hidden if self._rows is None else hidden[self._rows]

        members = {"__call__": call, "head_rows": self}
        inner.__class__ = type(original.__name__, (original,), members)

    def run(self, model: Any, inputs: mx.array, cache: Any, rows: mx.array | None) -> mx.array:
        """Run `model` on inputs [n, 1]; logits [len(rows), vocabulary], of all rows if None."""
        self._rows = rows
        try:
            logits: mx.array = model(inputs[:, None], cache=cache)
        finally:
            self._rows = None
        if rows is not None and not self.hooked:
            logits = logits[rows]
        return logits[:, -1, :]
