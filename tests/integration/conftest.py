"""Fleets that the tests of a module share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.fleet import Fleet


@pytest.fixture(scope="module")
def tiny_fleet(tiny_model: Path) -> Iterator[Fleet]:
    """A fleet with the tiny model."""
    with Fleet("--model", str(tiny_model), "--memory-gb", "2") as fleet:
        yield fleet


@pytest.fixture(scope="module")
def demo_fleet(demo_model: Path) -> Iterator[Fleet]:
    """A fleet with the demo model, started as `make serve` does."""
    with Fleet() as fleet:
        yield fleet
