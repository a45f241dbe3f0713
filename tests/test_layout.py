"""The borders that keep the tree what docs/architecture.md says it is."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ["bench", "common", "detokenizer_proc", "router", "tokenizer_proc", "workers"]
WITHOUT_MLX = [
    "mlxfleet.common.cli",
    "mlxfleet.bench.benchmarks",
    "mlxfleet.bench.chaos.__main__",
    "mlxfleet.bench.hostile.__main__",
    "mlxfleet.bench.offline.command",
    "mlxfleet.bench.peers_command",
    "mlxfleet.bench.report_command",
    "mlxfleet.common.launch",
    "mlxfleet.common.telemetry.main",
    "mlxfleet.router.main",
    "mlxfleet.tokenizer_proc.main",
    "mlxfleet.detokenizer_proc.main",
    "mlxfleet.workers.scheduler_main",
    "mlxfleet.workers.sim_main",
    "mlxfleet.workers.sim_nodes_main",
]


@pytest.mark.parametrize("module", WITHOUT_MLX)
def test_only_the_worker_imports_mlx_and_none_opentelemetry(module: str) -> None:
    code = f"import sys, {module}; print(*{{m.split('.')[0] for m in sys.modules}})"
    run = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert not {"mlx", "opentelemetry", "requests"} & set(run.stdout.split())


def test_every_package_is_listed_and_linked() -> None:
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    found = {path.parent.relative_to(ROOT) for path in ROOT.glob("*/**/__init__.py")}
    code = {str(p).replace("/", ".") for p in found if p.parts[0] in PACKAGES}
    assert sorted(f"mlxfleet.{name}" for name in code) == sorted(listed)
    links = {path.name for path in (ROOT / "typings" / "mlxfleet").iterdir()}
    assert links == set(PACKAGES)


def test_the_wheel_holds_every_file(tmp_path: Path) -> None:
    source = tmp_path / "source"
    unwanted = shutil.ignore_patterns(".*", "build", "tests", "typings", "__pycache__")
    shutil.copytree(ROOT, source, ignore=unwanted)
    build = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation"]
    subprocess.run([*build, "-w", str(tmp_path), str(source)], check=True)
    [wheel] = tmp_path.glob("*.whl")
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    expected = {
        f"mlxfleet/{path.relative_to(ROOT)}"
        for name in PACKAGES
        for path in (ROOT / name).rglob("*")
        if path.suffix in {".py", ".html", ".css", ".js"} or path.name == "py.typed"
    }
    assert packed == expected


def test_no_registry_in_the_lock() -> None:
    for name in ("requirements.lock", "requirements-dev.lock"):
        assert not re.search(r"https?://|--index|--find-links", (ROOT / name).read_text())
