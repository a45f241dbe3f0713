"""The whole of mlxfleet, asked over HTTP."""

from __future__ import annotations

from collections.abc import Sequence

from mlxfleet.bench.load import run_load
from mlxfleet.bench.offline.engine import Engine
from mlxfleet.bench.offline.work import Ended, Outcome, Pair, Part, run_pairs
from mlxfleet.bench.prompt_load import prompt_load
from mlxfleet.bench.servers import mlxfleet_spec, serving
from mlxfleet.common.runtime import runtime_folder


async def full_path(engine: Engine, pairs: Sequence[Pair], ended: Ended) -> None:
    """Start `mlxfleet launch`, run everything over HTTP, stop it."""
    spec = mlxfleet_spec(engine.model_dir, engine.flags())
    with runtime_folder() as folder:
        async with serving(spec, folder / "server.log") as server:
            await run_pairs(lambda part: over_http(server.spec.url, part), pairs, ended)


async def over_http(url: str, part: Part) -> Outcome:
    """One part, in a closed loop."""
    load = prompt_load(
        url=url,
        prompts=[prompt.text for prompt in part.prompts],
        concurrency=part.concurrency,
        max_tokens=part.max_tokens,
        extra={"ignore_eos": True},
    )
    result = await run_load(load)
    return Outcome(result.requests, result.summary.client)
