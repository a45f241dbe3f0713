"""`mlxfleet bench report`: files of records as one page with pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from rich.console import Console

from mlxfleet.bench.report.loaded import load_files
from mlxfleet.bench.report.markdown import markdown as document
from mlxfleet.bench.report.page import page
from mlxfleet.common.errors import ConfigError


def report(
    *files: Path,
    out: Annotated[Path, Parameter(name=["--out", "-o"])] = Path("report.html"),
    markdown: Path | None = None,
    title: str = "mlxfleet bench",
) -> None:
    """Make one HTML page of what measurements left behind: pictures, tables and the method.

    Parameters
    ----------
    files
        JSON lines that bench serve, compare, offline and peers have written.
    out
        HTML file to write.
    markdown
        Markdown file to write as well, with the tables.
    title
        Title of the page.
    """
    if not files:
        raise ConfigError("give the files to report on: mlxfleet bench report RESULTS.jsonl")
    loaded = load_files(files)
    write(out, page(loaded, title), "--out")
    if markdown is not None:
        write(markdown, document(loaded), "--markdown")


def write(path: Path, text: str, flag: str) -> None:
    """Write a file; ConfigError names the flag if that fails."""
    try:
        path.write_text(text)
    except OSError as error:
        raise ConfigError(f"{flag}: cannot write {path}: {error.strerror}") from error
    Console(stderr=True).print(f"wrote {path}", highlight=False, soft_wrap=True)
