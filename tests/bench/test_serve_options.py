"""What is told to be wrong before anything is sent."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mlxfleet.bench.serve_options import (
    API_KEY,
    ArrivalOptions,
    DataOptions,
    Options,
    ReportOptions,
    TargetOptions,
)
from mlxfleet.common.errors import ConfigError

URL = "http://127.0.0.1:8000"


def make_options(url: str = URL, **changes: Any) -> Options:
    """Each change goes to the group that has an option of this name."""
    groups: dict[str, Any] = {}
    for name, kind in (
        ("target", TargetOptions),
        ("arrival", ArrivalOptions),
        ("data", DataOptions),
        ("report", ReportOptions),
    ):
        known = kind.__dataclass_fields__
        groups[name] = kind(**{key: value for key, value in changes.items() if key in known})
    return Options(url=url, **groups)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"url": "127.0.0.1:8000"}, "http://HOST:PORT"),
        ({"concurrency": (1,), "request_rate": (1.0,)}, "not both"),
        ({"concurrency": (0,)}, "--concurrency must be at least 1"),
        ({"request_rate": (0.0,)}, "--request-rate must be more than 0"),
        ({"request_rate": (1.0, float("nan"))}, "--request-rate must be more than 0"),
        ({"requests": 0}, "--requests must be at least 1"),
        ({"think_s": -1.0}, "--think-s cannot be negative"),
        ({"prompts": Path("a"), "trace": Path("b")}, "one of --sharegpt"),
        ({"header": ("no colon",)}, "NAME:VALUE"),
        ({"extra_body": "[1]"}, "JSON object"),
        ({"slo": ("tttft:5",)}, "--slo tttft:5"),
        ({"slo": ("ttft:0",)}, "--slo ttft:0"),
        ({"input_tokens": "many"}, "--input-tokens many"),
        ({"api_key_file": Path("/nowhere/key")}, "--api-key-file"),
        ({"out": Path("/nowhere/out")}, "no folder"),
    ],
)
def test_unusable_options_are_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        make_options(**changes).checked()


def test_a_file_is_not_written_over_unless_told_to(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.write_text("figures")
    with pytest.raises(ConfigError, match="--overwrite"):
        make_options(out=out).checked()
    make_options(out=out, overwrite=True).checked()


def test_key_comes_from_the_environment_or_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(API_KEY, "from-environment")
    assert TargetOptions().headers() == {"Authorization": "Bearer from-environment"}
    (tmp_path / "key").write_text("from-file\n")
    options = TargetOptions(api_key_file=tmp_path / "key", header=("X-Team: a:b",))
    assert options.headers() == {"X-Team": "a:b", "Authorization": "Bearer from-file"}
