"""Hosts in miniature: network namespaces with an address, an sshd and a home folder each.

They are joined by a bridge in a namespace of their own, the one from which `mlxfleet up` runs.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from tests.integration.fleet import COMMAND, wait_for

SSHD = "/usr/sbin/sshd"
NETWORK = "10.77.91"
CLONE_NEWNET = 0x40000000
SSHD_CONFIG = """\
ListenAddress {address}
Port 22
HostKey {folder}/host_key
PidFile none
AuthorizedKeysFile {keys}
AuthenticationMethods publickey
StrictModes no
UsePAM no
PermitRootLogin prohibit-password
PrintMotd no
SetEnv {environment}
"""

T = TypeVar("T")


def why_impossible() -> str | None:
    """What keeps this machine from having such hosts, or None."""
    if not sys.platform.startswith("linux"):
        return "network namespaces are Linux's"
    if os.getuid() != 0:
        return "only root may make network namespaces"
    for program in ("ip", SSHD, "ssh", "ssh-keygen"):
        if shutil.which(program) is None:
            return f"there is no {program}: apt-get install iproute2 openssh-server"
    probe = f"mf{os.getpid()}-probe"
    made = subprocess.run(["ip", "netns", "add", probe], capture_output=True, text=True)
    if made.returncode:
        return f"network namespaces are not allowed here: {made.stderr.strip()}"
    entered = subprocess.run(["ip", "netns", "exec", probe, "true"], capture_output=True, text=True)
    subprocess.run(["ip", "netns", "delete", probe], check=True)
    return entered.stderr.strip() or None


class NetHosts:
    """A number of hosts, and the place from which they are commanded. Use as a context manager."""

    def __init__(self, folder: Path, count: int) -> None:
        self.folder = folder
        self.control = f"mf{os.getpid()}-0"
        self.addresses = [f"{NETWORK}.{10 + i}" for i in range(count)]
        self.identity = folder / "identity"
        self.known_hosts = folder / "known_hosts"
        self._closing = contextlib.ExitStack()

    def __enter__(self) -> NetHosts:
        with contextlib.ExitStack() as undo:
            undo.enter_context(self._closing)
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
            keygen(self.identity)
            self._namespace(self.control)
            run("ip", "-n", self.control, "link", "add", "bridge", "type", "bridge")
            up(self.control, "bridge", f"{NETWORK}.1")
            for index in range(len(self.addresses)):
                self._host(index)
            undo.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.close()

    def _namespace(self, name: str) -> None:
        run("ip", "netns", "add", name)
        self._closing.callback(run, "ip", "netns", "delete", name)
        run("ip", "-n", name, "link", "set", "lo", "up")

    def name(self, index: int) -> str:
        """The namespace of a host."""
        return f"mf{os.getpid()}-{index + 1}"

    def home(self, index: int) -> Path:
        """The home folder of a host."""
        return self.folder / f"host-{index}" / "home"

    def _host(self, index: int) -> None:
        name, address, folder = self.name(index), self.addresses[index], self.home(index).parent
        self.home(index).mkdir(parents=True)
        self._namespace(name)
        link = ["link", "add", f"host{index}", "type", "veth", "peer", "name", "eth0"]
        run("ip", "-n", self.control, *link, "netns", name)
        run("ip", "-n", self.control, "link", "set", f"host{index}", "master", "bridge", "up")
        up(name, "eth0", address)
        keygen(folder / "host_key")
        with self.known_hosts.open("a") as file:
            kind, key, *_ = (folder / "host_key.pub").read_text().split()
            file.write(f"{address} {kind} {key}\n")
        environment = {"HOME": str(self.home(index))}
        if "PYTHONPATH" in os.environ:
            environment["PYTHONPATH"] = os.environ["PYTHONPATH"]
        config = SSHD_CONFIG.format(
            address=address,
            folder=folder,
            keys=f"{self.identity}.pub",
            environment=" ".join(f"{key}={value}" for key, value in environment.items()),
        )
        (folder / "sshd_config").write_text(config)
        with (folder / "sshd.log").open("wb") as log:
            command = [SSHD, "-D", "-e", "-f", str(folder / "sshd_config")]
            process = subprocess.Popen(["ip", "netns", "exec", name, *command], stderr=log)
        self._closing.callback(end, process)
        # Until it listens, connections to it are refused.
        probe = [
            "ip",
            "netns",
            "exec",
            self.control,
            "ssh-keyscan",
            "-T",
            "1",
            "-t",
            "ed25519",
            address,
        ]
        wait_for(
            lambda: subprocess.run(probe, capture_output=True, check=False).stdout,
            f"sshd of {address}",
        )

    def in_control(self, *arguments: str) -> list[str]:
        """The command that runs `mlxfleet` in the place from which hosts are commanded."""
        return ["ip", "netns", "exec", self.control, COMMAND, *arguments]

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run `mlxfleet` in the place from which hosts are commanded."""
        return subprocess.run(
            self.in_control(*arguments),
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )

    def inside(self, work: Callable[[], T]) -> T:
        """Do work in a thread whose network is that of the place from which hosts are commanded."""

        def enter_and_work() -> T:
            enter(self.control)
            return work()

        with ThreadPoolExecutor(1) as pool:
            return pool.submit(enter_and_work).result()


def enter(namespace: str) -> None:
    """Give the calling thread another network."""
    libc = ctypes.CDLL(None, use_errno=True)
    with open(f"/run/netns/{namespace}") as file:
        if libc.setns(file.fileno(), CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "setns")


def up(namespace: str, device: str, address: str) -> None:
    """Give a device an address, and switch it on."""
    run("ip", "-n", namespace, "address", "add", f"{address}/24", "dev", device)
    run("ip", "-n", namespace, "link", "set", device, "up")


def keygen(path: Path) -> None:
    """Make an ssh key without a passphrase."""
    run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path))


def run(*command: str) -> None:
    """Run a command that must succeed."""
    subprocess.run(command, check=True, capture_output=True)


def end(process: subprocess.Popen[bytes]) -> None:
    """Stop a process and wait for it."""
    process.terminate()
    process.wait(timeout=10)
