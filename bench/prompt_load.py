"""A closed loop of prompts on a server, as most measurements want it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle, islice
from typing import Any

from mlxfleet.bench.arrivals import ClosedLoop
from mlxfleet.bench.client import Target
from mlxfleet.bench.conversations import of_prompts
from mlxfleet.bench.load import Load


def prompt_load(
    *,
    url: str,
    prompts: Sequence[str],
    concurrency: int,
    max_tokens: int,
    requests: int | None = None,
    model: str | None = None,
    extra: Mapping[str, Any] | None = None,
    timeout_s: float = 120.0,
) -> Load:
    """`requests` of them, which repeats the prompts if there are fewer; one of each if not given.
    `extra` are further fields of the request's body."""
    wanted = len(prompts) if requests is None else requests
    return Load(
        target=Target(url=url, model=model, body=extra or {}, timeout_s=timeout_s),
        conversations=of_prompts(list(islice(cycle(prompts), wanted)), max_tokens),
        arrival=ClosedLoop(concurrency),
    )
