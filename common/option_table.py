"""The README's table of options, made from the flags of `mlxfleet launch`.

`python -m mlxfleet.common.option_table README.md` writes it between its two marks.
"""

from __future__ import annotations

import sys
from pathlib import Path

from mlxfleet.common.cli import app

BEGIN, END = "<!-- options:begin -->\n", "<!-- options:end -->"


def option_table() -> str:
    """Flags, defaults and meanings as a Markdown table."""
    lines = ["| option | default | meaning |", "|---|---|---|"]
    for argument in app["launch"].assemble_argument_collection(parse_docstring=True):
        if not argument.show:
            continue
        default = argument.field_info.default
        shown = "" if default in (None, False) else f"`{default}`"
        meaning = " ".join((argument.parameter.help or "").split())
        lines.append(f"| `{argument.name}` | {shown} | {meaning} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Rewrite the table in a file."""
    path = Path(sys.argv[1])
    head, _, rest = path.read_text().partition(BEGIN)
    _, _, tail = rest.partition(END)
    path.write_text(head + BEGIN + option_table() + END + tail)


if __name__ == "__main__":
    main()
