"""Server-sent events come in pieces of any size."""

from __future__ import annotations

import pytest

from mlxfleet.bench.sse import EventReader

STREAM = b': keep-alive\r\n\r\nevent: message\r\ndata: {"a": 1}\r\n\r\ndata: [DONE]\n\n'


@pytest.mark.parametrize("size", [1, 2, 3, 7, len(STREAM)])
def test_events_do_not_depend_on_the_pieces(size: int) -> None:
    reader = EventReader()
    events: list[bytes] = []
    for start in range(0, len(STREAM), size):
        events += reader.feed(STREAM[start : start + size])
    assert events == [b'{"a": 1}', b"[DONE]"]
