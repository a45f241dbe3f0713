"""What the router was asked to send again, and of which attempts nothing is wanted any more."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from mlxfleet.common.buckets import Bucket

MAX_REMEMBERED = 4096
# Of attempts that nobody here has heard of; a node that makes them up cannot flood the router.
REPORTS_PER_S = 200.0
REPORTS_AT_ONCE = 2000.0

Key = tuple[str, str]


class Losses:
    """Remembers rids with attempts. Those that were closed here are kept apart from those that are
    only known from tokens, so that made-up ones do not make them forgotten."""

    def __init__(self, report: Callable[[str, str], None]) -> None:
        self._report = report
        self._bucket = Bucket(REPORTS_PER_S, REPORTS_AT_ONCE)
        # With whether to ask when the stream is open: no gap would show that last tokens have come,
        # or tokens of which nobody was told.
        self._closed: OrderedDict[Key, bool] = OrderedDict()
        self._lost: OrderedDict[Key, bool] = OrderedDict()
        self.unreported = 0

    def opened(self, rid: str, attempt: str) -> bool:
        """A stream is open now; whether it has to be asked for again, as nothing else shows what
        came before."""
        key = rid, attempt
        closed, lost = self._closed.pop(key, False), self._lost.pop(key, False)
        return closed or lost

    def closed(self, rid: str, attempt: str) -> None:
        """Nothing of this attempt is wanted."""
        self._lost.pop((rid, attempt), None)
        remember(self._closed, (rid, attempt))

    def lost(self, rid: str, attempt: str, *, last: bool, open_here: bool) -> None:
        """Tokens of an attempt cannot be used: ask, once, for its stream to be opened again; `last`
        if its last tokens are among them."""
        key = rid, attempt
        for known in (self._closed, self._lost):
            if key in known:
                known[key] = known[key] or last
                return
        remember(self._lost, key)
        if open_here or self._bucket.take():
            self._report(rid, attempt)
        else:
            self.unreported += 1
            self._lost[key] = True


def remember(known: OrderedDict[Key, bool], key: Key) -> None:
    """Keep a key, and not more than the newest ones."""
    known[key] = False
    if len(known) > MAX_REMEMBERED:
        known.popitem(last=False)
