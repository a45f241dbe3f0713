"""`mlxfleet launch`: every process of a one-machine fleet, from start to end."""

from __future__ import annotations

import asyncio
import dataclasses
import ipaddress
import logging
import os
import shutil
import signal
import socket
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from mlxfleet.common import config
from mlxfleet.common.blas import MISSING, find_openblas, worker_environment
from mlxfleet.common.config import (
    DetokenizerProcess,
    FleetOptions,
    RouterOptions,
    RouterProcess,
    SchedulerOptions,
    SchedulerProcess,
    TokenizerProcess,
    WorkerOptions,
    WorkerProcess,
)
from mlxfleet.common.errors import ConfigError, listen_error
from mlxfleet.common.model_files import resolve_model
from mlxfleet.common.process import configure_logging
from mlxfleet.common.supervisor import ProcessSpec, Supervisor

log = logging.getLogger(__name__)

API_KEY_ENV = "MLXFLEET_API_KEY"
READY_POLL_S = 0.02
# macOS allows 104 bytes for a socket's path, and its own temporary folder takes half of them.
RUNTIME_PARENT = "/tmp"
RUNTIME_PREFIX = "mlxfleet-"


@dataclass(frozen=True, kw_only=True)
class Launch:
    """All options of a fleet on one machine."""

    model: str | None
    router: RouterOptions
    fleet: FleetOptions
    scheduler: SchedulerOptions
    worker: WorkerOptions

    def validated(self) -> Launch:
        """Check every option; ConfigError names the wrong one."""
        for part in (self.router, self.fleet, self.scheduler, self.worker):
            config.validated(part)
        return self


def launch(options: Launch) -> None:
    """Run until stopped by SIGTERM or SIGINT, or until a process cannot be kept running."""
    configure_logging("launch")
    keys = read_api_keys(options.validated().router)
    refuse_open_port(options.router, keys)
    port = free_port(options.router)
    router = dataclasses.replace(options.router, port=port)
    options = dataclasses.replace(options, router=router)
    model_dir, model_name = resolve_model(options.model)
    if sys.platform.startswith("linux") and find_openblas() is None:
        log.warning(MISSING)
    remove_stale_runtimes()
    runtime = Path(tempfile.mkdtemp(prefix=f"{RUNTIME_PREFIX}{os.getpid()}-", dir=RUNTIME_PARENT))
    try:
        specs = make_specs(options, runtime, model_dir, model_name, keys)
        asyncio.run(supervise(specs, options.router))
    finally:
        shutil.rmtree(runtime, ignore_errors=True)


def make_specs(
    options: Launch, runtime: Path, model_dir: Path, model_name: str, keys: tuple[str, ...]
) -> list[ProcessSpec]:
    """Write each process's orders into the private runtime folder; return how to start them."""

    def address(name: str) -> str:
        return f"ipc://{runtime}/{name}.sock"

    trust = options.worker.trust_remote_code
    router = RouterProcess(
        name="router",
        model_name=options.router.served_model_name or model_name,
        api_keys=keys,
        tokenizer_address=address("tokenizers"),
        detokenizer_address=address("detokenizers"),
        node_address=address("nodes"),
        options=options.router,
    )
    specs = [process_spec(runtime, "mlxfleet.router", router, stop_order=0, stop_grace_s=None)]
    for i in range(options.fleet.tokenizers):
        tokenizer = TokenizerProcess(
            name=f"tokenizer-{i}",
            model_dir=model_dir,
            router_address=router.tokenizer_address,
            trust_remote_code=trust,
        )
        specs.append(process_spec(runtime, "mlxfleet.tokenizer_proc", tokenizer))
    for i in range(options.fleet.detokenizers):
        detokenizer = DetokenizerProcess(
            name=f"detokenizer-{i}",
            model_dir=model_dir,
            router_address=router.detokenizer_address,
            token_address=address(f"tokens-{i}"),
            trust_remote_code=trust,
        )
        specs.append(process_spec(runtime, "mlxfleet.detokenizer_proc", detokenizer))
    scheduler = SchedulerProcess(
        name="scheduler-0",
        node="node-0",
        router_address=router.node_address,
        worker_address=address("worker-0"),
        options=options.scheduler,
    )
    specs.append(process_spec(runtime, "mlxfleet.workers.scheduler_main", scheduler))
    worker = WorkerProcess(
        name="worker-0",
        model_dir=model_dir,
        scheduler_address=scheduler.worker_address,
        options=options.worker,
    )
    blas = worker_environment(options.worker.blas_threads)
    specs.append(process_spec(runtime, "mlxfleet.workers.worker_main", worker, environment=blas))
    return specs


def process_spec(
    runtime: Path,
    module: str,
    process: RouterProcess
    | TokenizerProcess
    | DetokenizerProcess
    | SchedulerProcess
    | WorkerProcess,
    *,
    environment: dict[str, str] | None = None,
    stop_order: int = 1,
    stop_grace_s: float | None = 5.0,
) -> ProcessSpec:
    """How to start a process whose orders are `process`."""
    orders = runtime / f"{process.name}.json"
    config.save(process, orders)
    inherited = {key: value for key, value in os.environ.items() if key != API_KEY_ENV}
    return ProcessSpec(
        name=process.name,
        command=[sys.executable, "-m", module, str(orders)],
        environment={**inherited, **(environment or {})},
        stop_order=stop_order,
        stop_grace_s=stop_grace_s,
    )


def remove_stale_runtimes() -> None:
    """Remove what a launch that was killed left behind; it can hold API keys."""
    for folder in Path(RUNTIME_PARENT).glob(f"{RUNTIME_PREFIX}*-*"):
        owner = folder.name.removeprefix(RUNTIME_PREFIX).partition("-")[0]
        ours = folder.is_dir() and folder.stat().st_uid == os.getuid()
        if ours and owner.isdigit() and not psutil.pid_exists(int(owner)):
            shutil.rmtree(folder, ignore_errors=True)


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


def read_api_keys(options: RouterOptions) -> tuple[str, ...]:
    """Accepted API keys, from the file and the environment; ConfigError if the file is unfit."""
    keys = [os.environ.get(API_KEY_ENV, "").strip()]
    if options.api_key_file is not None:
        try:
            keys += options.api_key_file.read_text().split("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"--api-key-file: cannot read it: {error}") from error
    found = tuple(key.strip() for key in keys if key.strip() and not key.startswith("#"))
    if options.api_key_file is not None and not found:
        raise ConfigError(f"--api-key-file: there is no key in {options.api_key_file}")
    return found


def refuse_open_port(options: RouterOptions, keys: tuple[str, ...]) -> None:
    """No key, no public address, unless asked for."""
    if keys or options.allow_no_auth or is_loopback(options.host):
        return
    raise ConfigError(
        f"--host {options.host} is open to others and there is no API key. Give --api-key-file"
        f" or {API_KEY_ENV}, or --allow-no-auth if that is meant"
    )


def is_loopback(host: str) -> bool:
    """Whether an address is only reachable from this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def free_port(options: RouterOptions) -> int:
    """The port to listen on, a free one for port 0. Fails before the model is loaded if it is
    taken; a router that is restarted takes the same one again."""
    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((options.host, options.port))
        except OSError as error:
            raise listen_error(options.host, options.port, error) from error
        return int(probe.getsockname()[1])
