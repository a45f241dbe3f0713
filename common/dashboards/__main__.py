"""Write every dashboard's JSON into the folder that is named."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from grafana_foundation_sdk.cog.encoder import JSONEncoder

from mlxfleet.common.dashboards import fleet, macs, node

DASHBOARDS = {
    "fleet.json": fleet.dashboard,
    "node.json": node.dashboard,
    "macs.json": macs.dashboard,
}


def dashboard_files() -> dict[str, str]:
    """The text of each file."""
    return {
        name: json.dumps(make().build(), cls=JSONEncoder, indent=2, sort_keys=True) + "\n"
        for name, make in DASHBOARDS.items()
    }


def main() -> None:
    """Write the files."""
    if len(sys.argv) != 2:
        sys.exit("usage: python -m mlxfleet.common.dashboards FOLDER")
    for name, text in dashboard_files().items():
        (Path(sys.argv[1]) / name).write_text(text)


if __name__ == "__main__":
    main()
