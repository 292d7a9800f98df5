# SPDX-License-Identifier: Apache-2.0
"""The tools of scripts/install_deploy_tools.sh, and a real Prometheus that scrapes servers by our rules."""

import json
import os
import re
import shutil
import socket
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

REPOSITORY = Path(__file__).resolve().parents[2]
TOOLS = REPOSITORY / ".tools" / "deploy"
FILES = REPOSITORY / "charts" / "ocdserve" / "files"


def find_tool(name: str) -> Path | None:
    """The program of this name, where it is installed."""
    found = shutil.which(name, path=f"{TOOLS / 'bin'}{os.pathsep}{os.environ.get('PATH', '')}")
    return Path(found) if found else None


def faster(rules: str, times: int) -> str:
    """The file of rules with all its durations divided, in whole seconds."""
    seconds = {"s": 1, "m": 60}

    def divided(match: "re.Match[str]") -> str:
        return f"{match[1]}{max(1, int(match[2]) * seconds[match[3]] // times)}s{match[4]}"

    return re.sub(r"(\[|\bfor: )(\d+)([sm])(\]|$)", divided, rules, flags=re.M)


class Prometheus:
    """A running Prometheus."""

    def __init__(self, url: str) -> None:
        self._url = url

    def query(self, expression: str) -> list[tuple[dict[str, str], float]]:
        """Labels and values of an instant query.

        Raises:
            urllib.error.HTTPError: Prometheus does not take the expression.
        """
        found = self._get(f"query?{urllib.parse.urlencode({'query': expression})}")["result"]
        return [(one["metric"], float(one["value"][1])) for one in found]

    def firing(self) -> set[str]:
        """Names of the alerts that fire."""
        return {one["labels"]["alertname"] for one in self._get("alerts")["alerts"] if one["state"] == "firing"}

    def is_ready(self) -> bool:
        """Whether it has scraped and evaluated its rules."""
        try:
            return bool(self.query('ocdserve:queue_seconds_per_request{job="ocdserve"}'))
        except OSError:
            return False

    def _get(self, path: str) -> Any:
        with urllib.request.urlopen(f"{self._url}/api/v1/{path}", timeout=10) as response:
            return json.loads(response.read())["data"]


@contextmanager
def prometheus(program: Path, folder: Path, targets: Sequence[str], rules: str) -> Iterator[Prometheus]:
    """Scrape targets (HOST:PORT) as the job `ocdserve`, each second, and evaluate a file of rules as often."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
    interval = {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"}
    job = {"job_name": "ocdserve", "static_configs": [{"targets": list(targets)}]}
    configuration = {"global": interval, "rule_files": ["rules.yaml"], "scrape_configs": [job]}
    (folder / "rules.yaml").write_text(rules, "utf-8")
    (folder / "prometheus.yaml").write_text(yaml.safe_dump(configuration), "utf-8")
    command = [str(program), f"--config.file={folder / 'prometheus.yaml'}", f"--storage.tsdb.path={folder / 'data'}"]
    with (folder / "prometheus.log").open("wb") as log:
        process = subprocess.Popen([*command, f"--web.listen-address={address}"], stdout=log, stderr=log)
    try:
        running = Prometheus(f"http://{address}")
        deadline = time.monotonic() + 60
        while not running.is_ready():
            assert process.poll() is None and time.monotonic() < deadline, (folder / "prometheus.log").read_text()
            time.sleep(0.2)
        yield running
    finally:
        process.terminate()
        process.wait(30)
