"""The file that a measurement is to write."""

from __future__ import annotations

from pathlib import Path

from mlxfleet.common.errors import ConfigError


def check_out(out: Path | None, *, overwrite: bool) -> None:
    """ConfigError if a file cannot be written, or is there and shall stay."""
    if out is None:
        return
    if not out.parent.is_dir():
        raise ConfigError(f"--out: there is no folder {out.parent}")
    if out.exists() and not overwrite:
        raise ConfigError(f"--out: {out} is there already; add --overwrite, or choose another")
