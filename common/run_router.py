"""`mlxfleet router`: a front end for nodes that join over TCP."""

from __future__ import annotations

import asyncio
import dataclasses
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mlxfleet.common import config
from mlxfleet.common.addresses import ANY_HOST, tcp_address
from mlxfleet.common.allowed import check_allowed
from mlxfleet.common.config import (
    FrontOptions,
    LinkOptions,
    ObserveOptions,
    RouterOptions,
    SecurityOptions,
    ServedModel,
)
from mlxfleet.common.errors import ConfigError
from mlxfleet.common.fleet_specs import FrontEnd, front_specs, served_model, tcp_links
from mlxfleet.common.launch import url_of
from mlxfleet.common.links import advertised_host, bind_host, free_ports, router_security
from mlxfleet.common.model_files import resolve_model
from mlxfleet.common.preflight import check_machine, free_port, read_keys, refuse_open_port
from mlxfleet.common.process import configure_logging
from mlxfleet.common.runtime import runtime_folder
from mlxfleet.common.say import say
from mlxfleet.common.supervising import supervise
from mlxfleet.common.tokenizer_files import tokenizer_hash
from mlxfleet.common.tracing import check_tracing


@dataclass(frozen=True, kw_only=True)
class RouterCommand:
    """All options of a front end; no models stands for the demo model."""

    models: Sequence[str]
    router: RouterOptions
    front: FrontOptions
    link: LinkOptions
    security: SecurityOptions
    trust_remote_code: bool
    observe: ObserveOptions = ObserveOptions()  # noqa: RUF009 - frozen

    def validated(self) -> RouterCommand:
        """Check every option; ConfigError names the wrong one."""
        for part in (self.router, self.front, self.link, self.security, self.observe):
            config.validated(part)
        check_tracing(self.observe)
        check_allowed(self.router)
        if self.router.served_model_name is not None and len(self.models) > 1:
            raise ConfigError("--served-model-name: it can only name a single --model")
        return self


def run_router(command: RouterCommand) -> None:
    """Run until stopped by SIGTERM or SIGINT, or until a process cannot be kept running."""
    configure_logging("router-parent")
    keys = read_keys(command.validated().router)
    check_machine()
    refuse_open_port(command.router, keys)
    security = router_security(command.link, command.security)
    router = dataclasses.replace(command.router, port=free_port(command.router))
    host = bind_host(command.link.node_host)
    models = served_models(command.models, command.router)
    ports = free_ports(host, command.link.node_port, 1 + len(models) * command.front.detokenizers)
    advertised = advertised_host(command.link)
    front = FrontEnd(
        models=models,
        router=router,
        options=command.front,
        links=tcp_links(host, advertised, ports, security),
        keys=keys,
        trust_remote_code=command.trust_remote_code,
        observe=command.observe,
    )

    async def announce() -> None:
        shown = socket.gethostname() if advertised == ANY_HOST else advertised
        say(f"nodes join with --router {tcp_address(shown, ports[0])}", f"ready {url_of(router)}")

    with runtime_folder() as runtime:
        asyncio.run(supervise(front_specs(front, runtime), announce))


def served_models(models: Sequence[str], options: RouterOptions) -> list[tuple[ServedModel, Path]]:
    """What is told of each model, and its folder. ConfigError if two have the same name."""
    found: dict[str, tuple[ServedModel, Path]] = {}
    wanted: Sequence[str | None] = models or [None]
    for model in wanted:
        folder, source = resolve_model(model, weights=False)
        served = served_model(options, folder, source, tokenizer_hash(folder))
        if served.name in found:
            raise ConfigError(f"--model: there are two models of the name {served.name}")
        found[served.name] = served, folder
    return list(found.values())
