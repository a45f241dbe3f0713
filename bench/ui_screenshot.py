"""Pictures of the live page of a fleet under load, for the README.

Usage: `python -m mlxfleet.bench.ui_screenshot --model DIR [--out docs]`

Four nodes are simulated: one of them throttles after a while and another swaps. A fifth has the
demo model, which is asked a question. Needs the package playwright and a Chromium.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import cyclopts
import uvloop
from playwright.async_api import Browser, async_playwright

from mlxfleet.bench.far_fleet import free_port_pair
from mlxfleet.bench.load import run_load
from mlxfleet.bench.prompt_load import prompt_load
from mlxfleet.bench.prompts import random_prompts
from mlxfleet.bench.servers import (
    HOST,
    ServerError,
    ServerSpec,
    console_script,
    free_port,
    serving,
    start,
    stop,
)
from mlxfleet.common.demo_model import ensure_demo_model

SIMULATED = [f"studio-{number}" for number in range(1, 5)]
HOT, SWAPPING = "studio-3", "studio-4"
REAL = "mini-1"
MODEL = "simulated"
SIM_FLAGS = [
    *("--engine", "sim", "--max-running", "16", "--sim-kv-tokens", "16384"),
    *("--sim-step-ms", "22", "--sim-row-ms", "1"),
]
THROTTLED = f"{HOT} slow 1.4\n"
# When it throttles, as a share of the time before the pictures.
THROTTLES_AT = 0.5
SENSORS = {
    "gpu_temperature_c": 61,
    "cpu_temperature_c": 54,
    "total_power_w": 118,
    "memory_pressure": 0,
    "memory_total_bytes": 192_000_000_000,
    "memory_used_bytes": 88_000_000_000,
    "swap_used_bytes": 0,
    "thermal_state": 0,
}
QUESTION = "What is the capital of France?"
VIEW_TIMEOUT_MS = 60_000.0
BROWSER_FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]
Scheme = Literal["light", "dark"]
PICTURES: dict[str, Scheme] = {"ui.png": "light", "ui-dark.png": "dark"}


@cyclopts.Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Options:
    """What is shown."""

    model: Path
    """MLX model folder, for the tokenizer of the simulated nodes."""

    out: Path = Path("docs")
    """Folder for the pictures."""

    chromium: Path | None = None
    """The browser; the one on the path if not given."""

    after_s: float = 200.0
    """How long the fleet runs before the pictures are taken; its histories are three minutes."""


def telemetry(throttled: bool) -> str:
    """What the nodes' sensors say."""
    warm = {"gpu_temperature_c": 66, "total_power_w": 124}
    hot = {"gpu_temperature_c": 99, "total_power_w": 91, "thermal_state": 2}
    swapping = {
        "memory_used_bytes": 187_000_000_000,
        "swap_used_bytes": 6_400_000_000,
        "memory_pressure": 1,
    }
    small = {
        **{"gpu_temperature_c": 48, "cpu_temperature_c": 51, "total_power_w": 21},
        **{"memory_total_bytes": 24_000_000_000, "memory_used_bytes": 9_700_000_000},
    }
    named = {SIMULATED[1]: warm, HOT: hot if throttled else {}, SWAPPING: swapping, REAL: small}
    lines = [{"sensors": SENSORS}, *({"node": n, "sensors": s} for n, s in named.items())]
    return "\n".join(json.dumps(line) for line in lines)


@asynccontextmanager
async def fleet(simulated: Path, real: Path, folder: Path) -> AsyncIterator[str]:
    """A router and its nodes; gives the router's address."""
    http_port, node_port = free_port(), free_port_pair()
    url = f"http://{HOST}:{http_port}"
    models = ["--model", str(simulated), "--model", str(real)]
    listen = ["--host", HOST, "--port", str(http_port), "--node-port", str(node_port)]
    router = ServerSpec("router", [console_script(), "router", *listen, *models], url, MODEL)
    sensors = ["--telemetry", str(folder / "sensors")]
    sim = ["--model", str(simulated), *SIM_FLAGS, "--sim-faults", str(folder / "faults")]
    mlx = ["--model", str(real), "--memory-gb", "2"]
    async with AsyncExitStack() as closing:
        for name in (*SIMULATED, REAL):
            join = ["--router", f"tcp://{HOST}:{node_port}", "--name", name, *sensors]
            flags = mlx if name == REAL else sim
            spec = ServerSpec(name, [console_script(), "node", *join, *flags], url)
            node = await start(spec, folder / f"{name}.log")
            closing.push_async_callback(stop, node)
        await closing.enter_async_context(serving(router, folder / "router.log"))
        yield url


@asynccontextmanager
async def under_load(url: str) -> AsyncIterator[None]:
    """Conversations that share prefixes, and long ones of low priority."""
    long = partial(prompt_load, url=url, model=MODEL, requests=10_000)
    warm = {"temperature": 1.0}
    chats = random_prompts(24, 120, seed="chats", common_words=160)
    jobs = random_prompts(400, 400, seed="jobs")
    loads = [
        long(prompts=chats, concurrency=40, max_tokens=180, extra=warm),
        long(prompts=jobs, concurrency=56, max_tokens=400, extra={**warm, "priority": "batch"}),
    ]
    tasks = [asyncio.create_task(run_load(load)) for load in loads]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def take(browser: Browser, url: str, model: str, scheme: Scheme, path: Path) -> None:
    """A picture of the page, in light or dark, after a question."""
    page = await browser.new_page(
        viewport={"width": 1280, "height": 800}, color_scheme=scheme, reduced_motion="reduce"
    )
    page.set_default_timeout(VIEW_TIMEOUT_MS)
    await page.goto(f"{url}/ui")
    await page.locator("#requests tbody tr").nth(8).wait_for()
    await page.locator("#model").select_option(model)
    await page.locator("#temperature").fill("0")
    await page.locator("#message").fill(QUESTION)
    await page.locator("#message").press("Enter")
    await page.locator("#conversation .figures", has_text="ended").wait_for()
    await page.screenshot(path=path, full_page=True)
    await page.close()


async def run(options: Options) -> None:
    """Start everything and take all pictures."""
    real = ensure_demo_model()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        simulated = folder / MODEL
        # A simulated node needs no weights.
        shutil.copytree(options.model, simulated, ignore=shutil.ignore_patterns("*.safetensors"))
        (folder / "sensors").write_text(telemetry(throttled=False))
        async with (
            fleet(simulated, real, folder) as url,
            under_load(url),
            async_playwright() as playwright,
        ):
            await asyncio.sleep(options.after_s * THROTTLES_AT)
            (folder / "faults").write_text(THROTTLED)
            (folder / "sensors").write_text(telemetry(throttled=True))
            await asyncio.sleep(options.after_s * (1 - THROTTLES_AT))
            browser = await playwright.chromium.launch(
                executable_path=options.chromium or shutil.which("chromium"), args=BROWSER_FLAGS
            )
            for file, scheme in PICTURES.items():
                await take(browser, url, real.name, scheme, options.out / file)
                print(options.out / file)
            await browser.close()


def main(options: Options) -> None:
    """Take the pictures."""
    try:
        uvloop.run(run(options))
    except ServerError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    cyclopts.run(main)
