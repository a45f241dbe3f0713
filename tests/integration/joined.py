"""Front ends and nodes started with the real commands, and a link between them that can be cut."""

from __future__ import annotations

import contextlib
import json
import socket
import threading

import psutil

from tests.integration.fleet import Fleet, wait_for

JOIN = "nodes join with --router "


class Front(Fleet):
    """`mlxfleet router` on free ports."""

    command = ("router", "--port", "0", "--node-port", "0")

    @property
    def node_address(self) -> str:
        """Where nodes join."""
        found: str = wait_for(
            lambda: next((line for line in self.lines if line.startswith(JOIN)), None),
            "the address for nodes",
        )
        return found.removeprefix(JOIN)

    def ready_nodes(self) -> set[str]:
        """Names of nodes that get requests."""
        nodes = json.loads(self.get("/fleet")[1])["nodes"]
        return {
            node["name"]
            for node in nodes
            if node["state"] in ("ready", "busy") and node["breaker"] != "open"
        }


class Node(Fleet):
    """`mlxfleet node`; ready when the router has let it in."""

    command = ("node", "--memory-gb", "1")

    def __enter__(self) -> Node:
        self.ready_line = wait_for(self._ready_line, "the node's ready line")
        return self

    def _ready_line(self) -> str | None:
        if self.process.poll() is not None:
            raise AssertionError(f"node ended with {self.process.returncode}:\n{self.output}")
        return next((line for line in self.lines if line.startswith("ready node ")), None)

    def kill_all(self) -> None:
        """SIGKILL the parent and its children, as a lost machine would be."""
        parent = psutil.Process(self.process.pid)
        for process in (*parent.children(recursive=True), parent):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()

    def exit_code(self) -> int:
        """Wait for its end."""
        code = self.process.wait(timeout=60)
        self.__exit__()
        return code


class Cable:
    """A TCP port that leads to another, until it is cut."""

    def __init__(self, target: str) -> None:
        host, _, port = target.removeprefix("tcp://").rpartition(":")
        self._target = (host, int(port))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"tcp://127.0.0.1:{self._listener.getsockname()[1]}"
        self._ends: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            far = socket.create_connection(self._target)
            self._ends += [near, far]
            for source, sink in ((near, far), (far, near)):
                thread = threading.Thread(target=self._copy, args=(source, sink), daemon=True)
                self._threads.append(thread)
                thread.start()

    @staticmethod
    def _copy(source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        source.close()

    def cut(self) -> None:
        """Break every connection; new ones get through."""
        ends, self._ends = self._ends, []
        for end in ends:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Be gone."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()
        for thread in self._threads:
            thread.join(timeout=10)
