"""Expressions that panels are made of, in PromQL."""

from __future__ import annotations

MODEL = 'model=~"$model"'
NODE = 'node=~"$node"'


def select(metric: str, *matchers: str) -> str:
    """Series of a metric that fit all matchers."""
    return f"{metric}{{{', '.join(matchers)}}}" if matchers else metric


def total(metric: str, *matchers: str, by: str = "") -> str:
    """The sum of a gauge, or how high a counter stands, for each value of the labels `by`."""
    return f"{summed(by)} ({select(metric, *matchers)})"


def rate(counter: str, *matchers: str, by: str = "") -> str:
    """What a counter counts in a second, summed up for each value of the labels `by`."""
    return f"{summed(by)} (rate({select(counter, *matchers)}[$__rate_interval]))"


def share(part: str, whole: str) -> str:
    """A ratio of two sums, and no sample while the whole is 0."""
    return f"{part} / ({whole} > 0)"


def mean(histogram: str, *matchers: str, by: str = "") -> str:
    """The mean of what was observed."""
    return share(
        rate(f"{histogram}_sum", *matchers, by=by), rate(f"{histogram}_count", *matchers, by=by)
    )


def quantile(q: float, histogram: str, *matchers: str, by: str = "") -> str:
    """The value that a share `q` of what was observed does not exceed."""
    labels = f"le, {by}" if by else "le"
    return f"histogram_quantile({q:g}, {rate(f'{histogram}_bucket', *matchers, by=labels)})"


def code(metric: str, states: tuple[str, ...], *matchers: str, by: str) -> str:
    """The place in `states` of the one state whose series is 1."""
    terms = (
        total(metric, *matchers, f'state="{state}"', by=by) + (f" * {place}" if place > 1 else "")
        for place, state in enumerate(states)
        if place
    )
    return " + ".join(terms)


def summed(by: str) -> str:
    """A sum for each value of some labels."""
    return f"sum by ({by})" if by else "sum"
