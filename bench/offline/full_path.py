"""The whole of mlxfleet, asked over HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from mlxfleet.bench.arrivals import ClosedLoop
from mlxfleet.bench.client import Target
from mlxfleet.bench.conversations import of_prompts
from mlxfleet.bench.load import Load, run_load
from mlxfleet.bench.offline.engine import Engine, processes
from mlxfleet.bench.offline.work import Ended, Outcome, Pair, Part, run_pairs
from mlxfleet.bench.servers import HOST, free_port
from mlxfleet.common.config import Keys
from mlxfleet.common.fleet_specs import make_specs
from mlxfleet.common.launch import is_ready
from mlxfleet.common.node_identity import node_info
from mlxfleet.common.runtime import runtime_folder

READY_POLL_S = 0.02


async def full_path(engine: Engine, pairs: Sequence[Pair], ended: Ended) -> None:
    """Start everything on this machine, run everything over HTTP, stop it."""
    port = free_port()
    url = f"http://{HOST}:{port}"
    with runtime_folder() as runtime:
        info = node_info(engine.name, engine.model_dir)
        specs = make_specs(engine.fleet(port), runtime, engine.model_dir, engine.name, Keys(), info)
        async with processes(specs):
            while not await asyncio.to_thread(is_ready, url):  # noqa: ASYNC110 - HTTP has no event
                await asyncio.sleep(READY_POLL_S)
            await run_pairs(lambda part: over_http(url, part), pairs, ended)


async def over_http(url: str, part: Part) -> Outcome:
    """One part, in a closed loop."""
    texts = [prompt.text for prompt in part.prompts]
    load = Load(
        target=Target(url=url, body={"ignore_eos": True}),
        conversations=of_prompts(texts, part.max_tokens),
        arrival=ClosedLoop(part.concurrency),
    )
    result = await run_load(load)
    return Outcome(result.requests, result.summary.client)
