"""The README's tables of options, made from the flags of the commands.

`python -m mlxfleet.common.option_table README.md` writes them between their two marks.
"""

from __future__ import annotations

import sys
from pathlib import Path

from mlxfleet.common.cli import app

BEGIN, END = "<!-- options:begin -->\n", "<!-- options:end -->"
HEAD = "| option | default | meaning |\n|---|---|---|\n"
SHARED = {
    "router": "`mlxfleet router` takes those of the HTTP side and of the processes around it, and",
    "node": "`mlxfleet node` takes those of queueing and of the worker, and",
    "keys": "`mlxfleet keys` takes",
}


def option_table() -> str:
    """Flags, defaults and meanings as Markdown tables: all of `launch`, and what others add."""
    known = rows("launch")
    text = HEAD + "".join(known.values())
    for command, introduction in SHARED.items():
        more = {flag: row for flag, row in rows(command).items() if known.get(flag) != row}
        text += f"\n{introduction}\n\n" + HEAD + "".join(more.values())
    return text


def rows(command: str) -> dict[str, str]:
    """A command's flags, and the table's row of each."""
    found = {}
    for argument in app[command].assemble_argument_collection(parse_docstring=True):
        if not argument.show:
            continue
        default = argument.field_info.default
        absent = default in (None, False, ()) or default is argument.field_info.empty
        shown = "" if absent else f"`{default}`"
        meaning = " ".join((argument.parameter.help or "").split())
        found[argument.name] = f"| `{argument.name}` | {shown} | {meaning} |\n"
    return found


def main() -> None:
    """Rewrite the tables in a file."""
    path = Path(sys.argv[1])
    head, _, rest = path.read_text().partition(BEGIN)
    _, _, tail = rest.partition(END)
    path.write_text(head + BEGIN + option_table() + END + tail)


if __name__ == "__main__":
    main()
