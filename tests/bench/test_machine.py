"""What is recorded of the machine."""

from __future__ import annotations

import pytest

from mlxfleet.bench.machine import describe_machine


def test_what_servers_inherit_for_openblas_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENBLAS_EXAMPLE", "1")
    assert describe_machine().blas_settings["OPENBLAS_EXAMPLE"] == "1"
