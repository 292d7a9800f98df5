# SPDX-License-Identifier: Apache-2.0
"""The rules of Prometheus and the dashboard of Grafana in charts/ocdserve/files."""

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from tests.deploy.prometheus import FILES, REPOSITORY

RULES: list[dict[str, Any]] = yaml.safe_load((FILES / "rules.yaml").read_text("utf-8"))["groups"][0]["rules"]
ALERTS = {rule["alert"]: rule for rule in RULES if "alert" in rule}


def expressions() -> list[str]:
    """Those of the rules and of the dashboard, as Grafana sends them."""
    dashboard = json.loads((FILES / "dashboard.json").read_text("utf-8"))
    sent = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    assert len(sent) > 15
    return [
        *(rule["expr"] for rule in RULES),
        *(one.replace("$instance", ".*").replace("$__rate_interval", "1m") for one in sent),
    ]


def test_prometheus_takes_the_rules(tool: Callable[[str], Path]) -> None:
    done = subprocess.run(
        [tool("promtool"), "check", "rules", "--lint-fatal", FILES / "rules.yaml"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(RULES)} rules found" in done.stdout


def test_each_alert_fires_for_its_cause_and_not_without(tool: Callable[[str], Path]) -> None:
    tested: dict[str, set[bool]] = {}
    for test in yaml.safe_load((FILES / "rules_test.yaml").read_text("utf-8"))["tests"]:
        for case in test["alert_rule_test"]:
            tested.setdefault(case["alertname"], set()).add(bool(case["exp_alerts"]))
    assert tested == {name: {True, False} for name in ALERTS}
    done = subprocess.run(
        [tool("promtool"), "test", "rules", FILES / "rules_test.yaml"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_test_notices_that_an_alert_does_not_fire(tool: Callable[[str], Path], tmp_path: Path) -> None:
    silent = [{**rule, "expr": "vector(0) > 1"} if "alert" in rule else rule for rule in RULES]
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump({"groups": [{"name": "ocdserve", "rules": silent}]}))
    (tmp_path / "rules_test.yaml").write_bytes((FILES / "rules_test.yaml").read_bytes())
    done = subprocess.run(
        [tool("promtool"), "test", "rules", tmp_path / "rules_test.yaml"], capture_output=True, text=True, check=False
    )
    assert set(re.findall(r"alertname: (\w+)", done.stdout + done.stderr)) == ALERTS.keys()


def test_each_alert_says_how_bad_it_is_and_what_to_do() -> None:
    runbook = (REPOSITORY / "docs" / "runbook.md").read_text("utf-8")
    assert set(re.findall(r"^##+ (.*)$", runbook, re.M)) == ALERTS.keys()
    for name, rule in ALERTS.items():
        assert re.fullmatch(r"Ocdserve[A-Z][A-Za-z]+", name)
        assert rule["labels"]["severity"] in ("info", "warning", "critical")
        assert rule["annotations"]["runbook"] == f"docs/runbook.md#{name.lower()}"
        assert re.search(rf"^##+ {name}$", runbook, re.M), name
        assert rule["annotations"]["summary"].startswith("ocdserve: ")


def test_rules_and_dashboard_ask_for_metrics_that_are_declared() -> None:
    from ocdserve.backend.serve.process.metrics import FAMILIES

    declared = {family.name: set(family.labels) for family in FAMILIES}
    for expression in expressions():
        for name, labels in re.findall(r"\b(ocdserve_\w+)(?:\{(.*?)\})?", expression):
            family = re.sub(r"_(sum|count|bucket)$", "", name) if name not in declared else name
            assert family in declared, name
            assert set(re.findall(r"(\w+)=", labels)) <= {*declared[family], "job", "instance", "le"}, expression
