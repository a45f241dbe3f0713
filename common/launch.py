"""`mlxfleet launch`: a one-machine fleet, from start to end."""

from __future__ import annotations

import asyncio
import dataclasses
import urllib.error
import urllib.request

from mlxfleet.common.addresses import WILDCARDS, bracketed
from mlxfleet.common.blas import warn_without_openblas
from mlxfleet.common.config import RouterOptions
from mlxfleet.common.fleet_specs import Launch, make_specs
from mlxfleet.common.model_files import resolve_model
from mlxfleet.common.node_identity import node_info
from mlxfleet.common.preflight import (
    check_machine,
    free_port,
    least_files,
    read_keys,
    refuse_open_port,
)
from mlxfleet.common.process import configure_logging
from mlxfleet.common.runtime import runtime_folder
from mlxfleet.common.say import say
from mlxfleet.common.supervising import supervise

READY_POLL_S = 0.02
# A stop waits for an answer that is under way.
READY_TIMEOUT_S = 1.0


def launch(options: Launch) -> None:
    """Run until stopped by SIGTERM or SIGINT, or until a process cannot be kept running."""
    configure_logging("launch")
    keys = read_keys(options.validated().router)
    check_machine(least_files(options.sim))
    refuse_open_port(options.router, keys)
    port = free_port(options.router)
    router = dataclasses.replace(options.router, port=port)
    options = dataclasses.replace(options, router=router)
    model_dir, model_name = resolve_model(options.model)
    if options.sim.engine == "mlx":
        warn_without_openblas()
    with runtime_folder() as runtime:
        info = node_info(model_name, model_dir)
        specs = make_specs(options, runtime, model_dir, model_name, keys, info)
        asyncio.run(supervise(specs, lambda: announce(options.router)))


async def announce(router: RouterOptions) -> None:
    """Say when requests can come."""
    url = url_of(router)
    while not await asyncio.to_thread(is_ready, url):  # noqa: ASYNC110 - HTTP has no event
        await asyncio.sleep(READY_POLL_S)
    say(
        f"ready {url}",
        f"try: curl {url}/v1/chat/completions -H 'Content-Type: application/json'"
        ' -d \'{"messages": [{"role": "user", "content": "What is the capital of France?"}],'
        ' "temperature": 0}\'',
    )


def url_of(router: RouterOptions) -> str:
    """Where to find the API from this machine."""
    host = "127.0.0.1" if router.host in WILDCARDS else router.host
    return f"http://{bracketed(host)}:{router.port}"


def is_ready(url: str) -> bool:
    """Whether the fleet can generate."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"{url}/ready", timeout=READY_TIMEOUT_S) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, OSError):
        return False
