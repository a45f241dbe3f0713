"""`mlxfleet bench report`: files of records as one page with pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from rich.console import Console

from mlxfleet.bench.report.loaded import load_files
from mlxfleet.bench.report.page import page
from mlxfleet.common.errors import ConfigError


def report(
    *files: Path,
    out: Annotated[Path, Parameter(name=["--out", "-o"])] = Path("report.html"),
    title: str = "mlxfleet bench",
) -> None:
    """Make one HTML page of what measurements left behind: pictures, tables and the method.

    Parameters
    ----------
    files
        JSON lines that bench serve, compare, offline and peers have written.
    out
        HTML file to write.
    title
        Title of the page.
    """
    if not files:
        raise ConfigError("give the files to report on: mlxfleet bench report RESULTS.jsonl")
    text = page(load_files(files), title)
    try:
        out.write_text(text)
    except OSError as error:
        raise ConfigError(f"--out: cannot write {out}: {error.strerror}") from error
    Console(stderr=True).print(f"wrote {out}", highlight=False, soft_wrap=True)
