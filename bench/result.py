"""What a load run measured, request by request and as a summary."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

from msgspec import Struct

MS = 1000.0


class Failure(Struct, frozen=True):
    """Why a request failed: a kind to count by, such as `http_429` or `timeout`, and the text."""

    kind: str
    message: str


class RequestResult(Struct, kw_only=True):
    """One request. `start_s` counts from the run's start, the other times from the request's."""

    index: int
    start_s: float
    duration_s: float = 0.0
    chunk_times_s: list[float] = []
    """When each chunk with text arrived."""
    text: str = ""
    usage_tokens: int | None = None
    """Generated tokens as the server reports them."""
    prompt_tokens: int | None = None
    finish_reason: str | None = None
    error: Failure | None = None

    @property
    def completion_tokens(self) -> int:
        """Generated tokens; the number of chunks with text if the server does not report any."""
        return len(self.chunk_times_s) if self.usage_tokens is None else self.usage_tokens

    @property
    def ttft_s(self) -> float | None:
        """Time to the first text."""
        return self.chunk_times_s[0] if self.chunk_times_s else None

    @property
    def gaps_s(self) -> list[float]:
        """Times between chunks with text, in order."""
        return [later - earlier for earlier, later in pairwise(self.chunk_times_s)]

    @property
    def longest_gap_s(self) -> float | None:
        """The longest wait between two chunks with text."""
        return max(self.gaps_s, default=None)

    @property
    def tpot_s(self) -> float | None:
        """Mean time per token after the first, however many tokens come in one chunk."""
        if len(self.chunk_times_s) < 2 or self.completion_tokens < 2:
            return None
        return (self.chunk_times_s[-1] - self.chunk_times_s[0]) / (self.completion_tokens - 1)


class Distribution(Struct, frozen=True):
    """Statistics of a list of times, in ms."""

    mean: float
    p50: float
    p99: float
    max: float

    @classmethod
    def of(cls, times_s: Sequence[float]) -> Distribution | None:
        """Of times in s; None if there are none."""
        if not times_s:
            return None
        values = sorted(time * MS for time in times_s)
        mean = sum(values) / len(values)
        return cls(mean, percentile(values, 0.5), percentile(values, 0.99), values[-1])


class Summary(Struct, kw_only=True, frozen=True):
    """A run in figures. Tokens and times are those of the requests that did not fail."""

    requests: int
    completed: int
    duration_s: float
    """From the start of the first request to the end of the last."""
    output_tokens: int
    output_tokens_per_s: float
    requests_per_s: float
    tokens_counted_by: str
    """`usage` (the server's report), `chunks`, or `mixed`."""
    ttft_ms: Distribution | None
    itl_ms: Distribution | None
    """Between chunks with text; a chunk may carry more than one token."""
    tpot_ms: Distribution | None
    """Per request: mean time per token after the first."""
    finish_reasons: dict[str, int]
    errors: dict[str, int]


class LoadResult(Struct, frozen=True):
    """A whole run."""

    summary: Summary
    requests: list[RequestResult]


def summarize(results: Sequence[RequestResult]) -> Summary:
    """Figures of a run."""
    good = [result for result in results if result.error is None]
    ends = [result.start_s + result.duration_s for result in results]
    duration_s = max(ends, default=0.0) - min((r.start_s for r in results), default=0.0)
    tokens = sum(result.completion_tokens for result in good)
    return Summary(
        requests=len(results),
        completed=len(good),
        duration_s=duration_s,
        output_tokens=tokens,
        output_tokens_per_s=tokens / duration_s if duration_s else 0.0,
        requests_per_s=len(good) / duration_s if duration_s else 0.0,
        tokens_counted_by=counted_by(good),
        ttft_ms=Distribution.of([r.ttft_s for r in good if r.ttft_s is not None]),
        itl_ms=Distribution.of([gap for result in good for gap in result.gaps_s]),
        tpot_ms=Distribution.of([r.tpot_s for r in good if r.tpot_s is not None]),
        finish_reasons=dict(Counter(str(result.finish_reason) for result in good)),
        errors=dict(Counter(r.error.kind for r in results if r.error is not None)),
    )


def counted_by(results: Sequence[RequestResult]) -> str:
    """Where the token counts come from."""
    reported = {result.usage_tokens is not None for result in results}
    return "mixed" if len(reported) == 2 else "usage" if reported == {True} else "chunks"


def percentile(ordered: Sequence[float], share: float) -> float:
    """Of at least one ascending value, linear between neighbours; `share` from 0 to 1."""
    position = share * (len(ordered) - 1)
    below = int(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (position - below) * (ordered[above] - ordered[below])
