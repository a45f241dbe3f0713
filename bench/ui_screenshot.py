"""Pictures of the live page of a simulated fleet under load, for the README.

Usage: `python -m mlxfleet.bench.ui_screenshot --model DIR [--out docs]`

One node throttles and another swaps, as `--telemetry` and `--sim-faults` have it. Needs the package
playwright and a Chromium.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import cyclopts
import uvloop
from playwright.async_api import Browser, async_playwright

from mlxfleet.bench.client import Load, run_load
from mlxfleet.bench.prompts import random_prompts
from mlxfleet.bench.servers import ServerError, mlxfleet_spec, serving

NODES = 4
NODE_FLAGS = ["--engine", "sim", "--nodes", str(NODES), "--max-running", "16"]
SPEED_FLAGS = ["--sim-step-ms", "22", "--sim-row-ms", "1", "--sim-kv-tokens", "16384"]
HOT = "node-2"
SWAPPING = "node-3"
FAULTS = f"{HOT} slow 1.35\n"
SETTLED_S = 75.0
VIEW_TIMEOUT_MS = 30_000.0
BROWSER_FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
Scheme = Literal["light", "dark"]
PICTURES: dict[str, Scheme] = {"ui.png": "light", "ui-dark.png": "dark"}


@cyclopts.Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Options:
    """What is shown."""

    model: Path
    """MLX model folder, for its tokenizer."""

    out: Path = Path("docs")
    """Folder for the pictures."""

    chromium: Path | None = None
    """The browser; the one on the path if not given."""

    after_s: float = SETTLED_S
    """How long the fleet runs before the pictures are taken."""


def telemetry() -> str:
    """What the nodes' sensors say."""
    calm = {
        "gpu_temperature_c": 61,
        "cpu_temperature_c": 54,
        "total_power_w": 118,
        "memory_pressure": 0,
        "memory_total_bytes": 192e9,
        "memory_used_bytes": 88e9,
        "swap_used_bytes": 0,
        "thermal_state": 0,
    }
    hot = {"gpu_temperature_c": 98, "total_power_w": 92, "thermal_state": 2}
    swapping = {"memory_used_bytes": 187e9, "swap_used_bytes": 6.4e9, "memory_pressure": 1}
    lines = [
        {"sensors": whole_numbers(calm)},
        {"node": "node-1", "sensors": {"gpu_temperature_c": 64, "total_power_w": 121}},
        {"node": HOT, "sensors": hot},
        {"node": SWAPPING, "sensors": whole_numbers(swapping)},
    ]
    return "\n".join(json.dumps(line) for line in lines)


def whole_numbers(sensors: dict[str, float]) -> dict[str, int]:
    """Bytes are integers."""
    return {name: int(value) for name, value in sensors.items()}


@asynccontextmanager
async def under_load(url: str) -> AsyncIterator[None]:
    """Conversations that share prefixes, and a few long ones of low priority."""
    common = {"url": url, "requests": 10**6, "run_timeout_s": 600.0, "temperature": 1.0}
    chats = random_prompts(24, 120, seed="chats", common_words=160)
    jobs = random_prompts(400, 400, seed="jobs")
    loads = [
        Load(prompts=chats, concurrency=28, max_tokens=180, **common),
        Load(prompts=jobs, concurrency=18, max_tokens=400, extra={"priority": "batch"}, **common),
    ]
    tasks = [asyncio.create_task(run_load(load)) for load in loads]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def take(browser: Browser, url: str, scheme: Scheme, path: Path) -> None:
    """A picture of the page, in light or dark."""
    page = await browser.new_page(
        viewport={"width": 1280, "height": 800}, color_scheme=scheme, reduced_motion="reduce"
    )
    page.set_default_timeout(VIEW_TIMEOUT_MS)
    await page.goto(f"{url}/ui")
    await page.locator("#requests tbody tr").nth(8).wait_for()
    await page.screenshot(path=path, full_page=True)
    await page.close()


async def run(options: Options) -> None:
    """Start everything and take all pictures."""
    chromium = options.chromium or shutil.which("chromium")
    with tempfile.TemporaryDirectory() as folder:
        sensors, faults = Path(folder) / "telemetry", Path(folder) / "faults"
        sensors.write_text(telemetry())
        faults.write_text(FAULTS)
        files = ["--telemetry", str(sensors), "--sim-faults", str(faults)]
        spec = mlxfleet_spec(options.model, [*NODE_FLAGS, *SPEED_FLAGS, *files])
        async with (
            serving(spec, Path(folder) / "log"),
            under_load(spec.url),
            async_playwright() as playwright,
        ):
            await asyncio.sleep(options.after_s)
            browser = await playwright.chromium.launch(executable_path=chromium, args=BROWSER_FLAGS)
            for name, scheme in PICTURES.items():
                await take(browser, spec.url, scheme, options.out / name)
                print(options.out / name)
            await browser.close()


def main(options: Options) -> None:
    """Take the pictures."""
    try:
        uvloop.run(run(options))
    except ServerError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    cyclopts.run(main)
