"""The events of a streamed answer, as OpenAI's API has them."""

from __future__ import annotations

from collections.abc import Iterator

from msgspec import UNSET

from mlxfleet.router.generation import Generation
from mlxfleet.router.parameters import Parameters
from mlxfleet.router.sequences import Delta
from mlxfleet.router.shapes import Response, Shape, Usage, encode

DONE = b"data: [DONE]\n\n"


def event(data: object) -> bytes:
    """A server-sent event."""
    return b"data: " + encode(data) + b"\n\n"


class Chunks:
    """Makes the events of one stream.

    Nearly every event only adds text to a choice. What is around the text is the same in all of
    them, and encoded once for each choice.
    """

    def __init__(self, generation: Generation, shape: Shape, request: Parameters) -> None:
        self._generation = generation
        self._shape = shape
        self._counts = request.continuous_usage
        self._response = Response(
            id=shape.id_prefix + generation.rid,
            object=shape.chunk_object,
            model=generation.model,
            choices=[],
            usage=None if request.include_usage else UNSET,
        )
        self._around: dict[int, tuple[bytes, bytes]] = {}

    def openings(self) -> Iterator[bytes]:
        """What comes before the first text of each choice."""
        for index in range(len(self._generation.sequences)):
            if (opening := self._shape.opening(index)) is not None:
                yield self._event(opening)

    def chunk(self, index: int, delta: Delta) -> bytes:
        """What is new of a choice."""
        if self._counts:
            self._response.usage = Usage.of(self._generation)
        elif delta.text and delta.finish_reason is None and not delta.logprobs:
            before, after = self._around.get(index) or self._surround(index)
            return before + encode(delta.text) + after
        return self._event(self._shape.chunk(index, delta))

    def usage(self) -> bytes:
        """The counts at the end."""
        self._response.usage = Usage.of(self._generation)
        self._response.choices = []
        return event(self._response)

    def _event(self, choice: object) -> bytes:
        self._response.choices = [choice]
        return event(self._response)

    def _surround(self, index: int) -> tuple[bytes, bytes]:
        # Nothing else in the event can be the random id and this.
        text = f"{self._generation.rid} text"
        whole = self._event(self._shape.chunk(index, Delta(text)))
        before, _, after = whole.partition(encode(text))
        self._around[index] = before, after
        return before, after
