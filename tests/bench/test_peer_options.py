"""Options of the comparison, as they are typed."""

from __future__ import annotations

from pathlib import Path

import cyclopts
import pytest

from mlxfleet.bench.peer_options import Options
from mlxfleet.common.errors import ConfigError


def parse(tmp_path: Path, *flags: str) -> Options:
    """Options from a command line, with a model and a script that exist."""
    (tmp_path / "config.json").touch()
    (tmp_path / "peers.sh").touch()
    parsed: list[Options] = []

    def command(options: Options) -> None:
        parsed.append(options)

    needed = ["--model", str(tmp_path), "--peers-script", str(tmp_path / "peers.sh")]
    app = cyclopts.App(default_command=command)
    app([*needed, *flags], exit_on_error=False, result_action="return_value")
    return parsed[0]


def test_lists_are_separated_by_commas(tmp_path: Path) -> None:
    options = parse(tmp_path, "--peers", "one,two", "--concurrency", "1,16")
    assert options.peers == ("one", "two")
    assert options.concurrency == (1, 16)


def test_there_may_be_no_peers(tmp_path: Path) -> None:
    assert parse(tmp_path, "--peers", "").peers == ()


def test_launch_flags_are_passed_on_as_they_are(tmp_path: Path) -> None:
    flags = ["--launch-flag=--max-running=4", "--launch-flag", "--blas-threads=1"]
    assert parse(tmp_path, *flags).launch_flag == ("--max-running=4", "--blas-threads=1")


@pytest.mark.parametrize("flags", [["--rounds", "0"], ["--concurrency", "0"], ["--out", "no/f"]])
def test_unusable_options_are_refused(tmp_path: Path, flags: list[str]) -> None:
    with pytest.raises(ConfigError):
        parse(tmp_path, *flags).validated()
