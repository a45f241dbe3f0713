"""`mlxfleet launch`: a one-machine fleet, from start to end."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import signal
import sys
import urllib.error
import urllib.request
from collections.abc import Sequence
from typing import Any

from mlxfleet.common.blas import MISSING, find_openblas
from mlxfleet.common.config import RouterOptions
from mlxfleet.common.fleet_specs import Launch, make_specs
from mlxfleet.common.model_files import resolve_model
from mlxfleet.common.preflight import free_port, read_api_keys, refuse_open_port
from mlxfleet.common.process import configure_logging
from mlxfleet.common.runtime import runtime_folder
from mlxfleet.common.supervisor import ProcessSpec, Supervisor

log = logging.getLogger(__name__)

READY_POLL_S = 0.02


def launch(options: Launch) -> None:
    """Run until stopped by SIGTERM or SIGINT, or until a process cannot be kept running."""
    configure_logging("launch")
    keys = read_api_keys(options.validated().router)
    refuse_open_port(options.router, keys)
    port = free_port(options.router)
    router = dataclasses.replace(options.router, port=port)
    options = dataclasses.replace(options, router=router)
    model_dir, model_name = resolve_model(options.model)
    needs_blas = options.sim.engine == "mlx" and sys.platform.startswith("linux")
    if needs_blas and find_openblas() is None:
        log.warning(MISSING)
    with runtime_folder() as runtime:
        specs = make_specs(options, runtime, model_dir, model_name, keys)
        asyncio.run(supervise(specs, options.router))


async def supervise(specs: Sequence[ProcessSpec], router: RouterOptions) -> None:
    """Start, announce, wait for a signal or a failure, stop."""
    supervisor = Supervisor()
    stop = asyncio.Event()

    def on_signal() -> None:
        if stop.is_set():
            log.warning("stopping at once")
            supervisor.force()
        else:
            log.info("stopping; once more to stop at once")
            stop.set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    stopping = asyncio.create_task(stop.wait())
    serving = asyncio.create_task(serve(supervisor, specs, router))
    try:
        waited: set[asyncio.Future[Any]] = {stopping, serving, supervisor.failure}
        await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
        for task in (serving, supervisor.failure):
            if task.done():
                task.result()
    finally:
        serving.cancel()
        await supervisor.stop()


async def serve(
    supervisor: Supervisor, specs: Sequence[ProcessSpec], router: RouterOptions
) -> None:
    """Start all processes and say when requests can come."""
    await supervisor.start(specs)
    host = "127.0.0.1" if router.host in ("0.0.0.0", "::", "") else router.host
    url = f"http://{bracketed(host)}:{router.port}"
    while not await asyncio.to_thread(is_ready, url):  # noqa: ASYNC110 - HTTP has no event
        await asyncio.sleep(READY_POLL_S)
    print(f"ready {url}", flush=True)
    print(
        f"try: curl {url}/v1/chat/completions -H 'Content-Type: application/json'"
        ' -d \'{"messages": [{"role": "user", "content": "What is the capital of France?"}]}\'',
        flush=True,
    )
    await asyncio.Event().wait()


def is_ready(url: str) -> bool:
    """Whether the fleet can generate."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"{url}/ready", timeout=5) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def bracketed(host: str) -> str:
    """A host as it stands in a URL."""
    return f"[{host}]" if ":" in host else host
