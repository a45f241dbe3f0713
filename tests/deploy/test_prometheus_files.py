"""Prometheus takes its files, and alerts fire when they should and not else."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.deploy.expressions import DASHBOARDS, DEPLOY, alerts

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
CONFIG = DEPLOY / "prometheus" / "prometheus.yml"
ALERT_TESTS = sorted(HERE.glob("*_alerts.yml"))

needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="no promtool: apt-get install prometheus"
)


def promtool(*arguments: object) -> None:
    """Run it; its output says what is wrong."""
    command = ["promtool", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@needs_promtool
def test_prometheus_takes_the_configuration_and_its_rules() -> None:
    promtool("check", "config", CONFIG)


@needs_promtool
@pytest.mark.parametrize("path", ALERT_TESTS, ids=lambda path: path.stem)
def test_alerts(path: Path) -> None:
    promtool("test", "rules", path)


def test_every_alert_is_seen_to_fire_and_to_be_quiet() -> None:
    fires: dict[str, set[bool]] = {name: set() for name in alerts()}
    for path in ALERT_TESTS:
        for test in yaml.safe_load(path.read_text())["tests"]:
            for case in test["alert_rule_test"]:
                fires[case["alertname"]].add(bool(case["exp_alerts"]))
    assert {name: cases for name, cases in fires.items() if cases != {True, False}} == {}


def test_every_alert_has_a_runbook() -> None:
    titles = re.findall(r"^### (\w+)$", (ROOT / "docs" / "runbook.md").read_text(), re.MULTILINE)
    assert sorted(titles) == sorted(alerts())
    for name, alert in alerts().items():
        assert alert["labels"]["severity"] in ("critical", "warning", "info")
        assert alert["annotations"].keys() == {"summary", "description", "runbook"}
        assert alert["annotations"]["runbook"] == f"docs/runbook.md#{name.lower()}"


def test_grafana_knows_how_often_prometheus_scrapes() -> None:
    """It makes rates over four of these times."""
    provisioning = DASHBOARDS / "provisioning"
    [source] = yaml.safe_load((provisioning / "datasources" / "prometheus.yml").read_text())[
        "datasources"
    ]
    scrape = yaml.safe_load(CONFIG.read_text())["global"]["scrape_interval"]
    assert source["jsonData"]["timeInterval"] == scrape
