"""Figures of requests, and of a run as a whole."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise

from mlxfleet.bench.records import ClientCost, Distribution, Request, Summary

MS = 1000.0


def ttft_s(request: Request) -> float | None:
    """Time to the first text."""
    return request.token_times_s[0] if request.token_times_s else None


def gaps_s(request: Request) -> list[float]:
    """Times between chunks with text, in order; a chunk may carry more than one token."""
    return [later - earlier for earlier, later in pairwise(request.token_times_s)]


def longest_gap_s(request: Request) -> float | None:
    """The longest wait between two chunks with text."""
    return max(gaps_s(request), default=None)


def tpot_s(request: Request) -> float | None:
    """Mean time per token after the first, however many tokens come in one chunk."""
    times, tokens = request.token_times_s, request.output_tokens or 0
    if len(times) < 2 or tokens < 2:
        return None
    return (times[-1] - times[0]) / (tokens - 1)


def e2e_s(request: Request) -> float | None:
    """From the sending to the end of the stream."""
    return request.duration_s


SLO_FIGURES: dict[str, Callable[[Request], float | None]] = {
    "ttft": ttft_s,
    "tpot": tpot_s,
    "itl": longest_gap_s,
    "e2e": e2e_s,
}
"""What of a request a limit is for: `itl` is kept if every gap is within it."""


def within(request: Request, slos_ms: Mapping[str, float]) -> bool:
    """Whether a request keeps all limits; what it has no figure of, it keeps."""
    figures = ((SLO_FIGURES[name](request), limit) for name, limit in slos_ms.items())
    return all(figure is None or figure * MS <= limit for figure, limit in figures)


def distribution(times_s: Sequence[float]) -> Distribution | None:
    """Statistics of times in s; None if there are none."""
    if not times_s:
        return None
    values = sorted(time * MS for time in times_s)
    return Distribution(
        mean=sum(values) / len(values),
        p50=percentile(values, 0.5),
        p90=percentile(values, 0.9),
        p95=percentile(values, 0.95),
        p99=percentile(values, 0.99),
        max=values[-1],
    )


def percentile(ordered: Sequence[float], share: float) -> float:
    """Of at least one ascending value, linear between neighbours; `share` from 0 to 1."""
    position = share * (len(ordered) - 1)
    below = int(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (position - below) * (ordered[above] - ordered[below])


def jain(shares: Sequence[float]) -> float | None:
    """Jain's fairness index (Jain, Chiu and Hawe, 1984): 1 if all are equal, 1/n if one has all."""
    squares = sum(share * share for share in shares)
    return sum(shares) ** 2 / (len(shares) * squares) if squares else None


def conversation_speeds(requests: Sequence[Request]) -> list[float]:
    """Output tokens/s of each conversation while it waits for answers."""
    tokens: defaultdict[int, int] = defaultdict(int)
    waited_s: defaultdict[int, float] = defaultdict(float)
    for request in requests:
        tokens[request.conversation] += request.output_tokens or 0
        waited_s[request.conversation] += request.duration_s
    return [tokens[number] / waited for number, waited in waited_s.items() if waited > 0]


def span_s(requests: Sequence[Request]) -> float:
    """From the first sending to the last end."""
    ends = (request.sent_s + request.duration_s for request in requests)
    return max(ends, default=0.0) - min((request.sent_s for request in requests), default=0.0)


def summarize(
    run: str, requests: Sequence[Request], slos_ms: Mapping[str, float], client: ClientCost
) -> Summary:
    """A run in figures."""
    good = [request for request in requests if request.error is None]
    duration_s = span_s(requests)
    per_s = 1 / duration_s if duration_s else 0.0
    input_tokens = sum(request.input_tokens or 0 for request in good)
    output_tokens = sum(request.output_tokens or 0 for request in good)
    cached = [r.cached_tokens for r in good if r.cached_tokens is not None]
    kept = sum(within(request, slos_ms) for request in good)
    return Summary(
        run=run,
        requests=len(requests),
        completed=len(good),
        duration_s=duration_s,
        requests_per_s=len(good) * per_s,
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        cached_tokens=sum(cached) if cached else None,
        input_tokens_per_s=input_tokens * per_s,
        output_tokens_per_s=output_tokens * per_s,
        cached_tokens_per_s=sum(cached) * per_s if cached else None,
        tokens_counted_by=counted_by(good),
        ttft_ms=distribution([time for r in good if (time := ttft_s(r)) is not None]),
        tpot_ms=distribution([time for r in good if (time := tpot_s(r)) is not None]),
        itl_ms=distribution([gap for request in good for gap in gaps_s(request)]),
        e2e_ms=distribution([request.duration_s for request in good]),
        longest_gap_ms=longest_gap_ms(good),
        goodput_per_s=kept * per_s if slos_ms else None,
        within_slos=kept / len(requests) if slos_ms and requests else None,
        fairness=jain(conversation_speeds(good)),
        finish_reasons=dict(Counter(str(request.finish_reason) for request in good)),
        errors=dict(Counter(r.error.kind for r in requests if r.error is not None)),
        client=client,
    )


def longest_gap_ms(requests: Sequence[Request]) -> float | None:
    """The longest gap of any stream."""
    gaps = [gap for request in requests if (gap := longest_gap_s(request)) is not None]
    return max(gaps) * MS if gaps else None


def counted_by(requests: Sequence[Request]) -> str:
    """Where the token counts come from."""
    ways = {request.tokens_counted_by for request in requests}
    return ways.pop() if len(ways) == 1 else "mixed" if ways else "none"
