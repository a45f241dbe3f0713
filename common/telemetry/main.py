"""The telemetry process: one per machine, beside its nodes. It only publishes, so whatever happens
to it, nobody waits for it."""

from __future__ import annotations

import asyncio
import contextlib

import zmq

from mlxfleet.common import channels
from mlxfleet.common.config import TelemetryProcess
from mlxfleet.common.messages import MachineSample
from mlxfleet.common.process import Service, run_service
from mlxfleet.common.telemetry.sensors import PERIOD_S
from mlxfleet.common.telemetry.source import open_source


class TelemetryService(Service):
    """Publishes a sample a second."""

    def __init__(self, told: TelemetryProcess) -> None:
        super().__init__()
        self._told = told

    async def startup(self) -> None:
        """Bind. Sensors are opened later: a machine whose sensors cannot be read is ready too."""
        self._context = zmq.Context()
        self._channel: channels.Channel[None, MachineSample] = channels.publisher(
            self._context, self._told.address
        )

    async def main_loop(self) -> None:
        """Sample and publish until asked to stop."""
        source = open_source(self._told.source)
        while not self.stopping.is_set():
            self._channel.send(source.sample())
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.stopping.wait(), PERIOD_S)

    async def shutdown(self) -> None:
        """Close the socket. Threads of sensors end with the process."""
        self._channel.close()
        self._context.term()


def main() -> None:
    """Run the process to its end."""
    run_service(TelemetryProcess, TelemetryService)


if __name__ == "__main__":
    main()
