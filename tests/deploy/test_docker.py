# SPDX-License-Identifier: Apache-2.0
"""docker/: the images' file, what is left out of them, and the services of compose.yaml."""

import platform
import re
import runpy
import subprocess
import sysconfig
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import yaml

from ocdserve.backend.serve.public.front_door import envoy_path

REPOSITORY = Path(__file__).resolve().parents[2]
DOCKER = REPOSITORY / "docker"
TARGETS = ("cpu", "gpu", "builder", "triton")
PROJECT = (REPOSITORY / "pyproject.toml").read_text("utf-8")
DIGESTS = {"one": f"sha256:{'1' * 64}", "library/two": f"sha256:{'2' * 64}"}


def instructions() -> list[tuple[str, str]]:
    """Name and text of each instruction of the Dockerfile; lines that belong together joined."""
    text = re.sub(r"^#.*\n", "", (DOCKER / "Dockerfile").read_text("utf-8"), flags=re.MULTILINE)
    lines = text.replace("\\\n", " ").splitlines()
    return [(line.split()[0], line.partition(" ")[2].strip()) for line in lines if line.strip()]


def stages() -> dict[str, list[tuple[str, str]]]:
    """Instructions by stage, the stage's own FROM first."""
    found: dict[str, list[tuple[str, str]]] = {}
    for name, text in instructions():
        if name == "FROM":
            current = found.setdefault(text.split()[-1], [])
        elif not found:
            continue
        current.append((name, text))
    return found


def services() -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((DOCKER / "compose.yaml").read_text("utf-8"))
    return dict(content["services"])


def test_hadolint_has_nothing_to_say(tool: Callable[[str], Path]) -> None:
    done = subprocess.run([tool("hadolint"), DOCKER / "Dockerfile"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_every_image_comes_from_an_argument_or_a_stage_and_the_last_is_the_cpus() -> None:
    arguments = {text.partition("=")[0] for name, text in instructions() if name == "ARG" and "_IMAGE=" in text}
    found = stages()
    assert set(TARGETS) <= found.keys() and list(found)[-1] == "cpu"
    for body in found.values():
        base = body[0][1].split()[0]
        assert base in found or base[2:-1] in arguments, base


@pytest.mark.parametrize("target", TARGETS)
def test_a_target_runs_as_a_number_and_without_a_shell(target: str) -> None:
    body = dict(stages()[target])
    assert body["USER"] == "10001:10001"
    for name in {"ENTRYPOINT", "CMD"} & body.keys():
        assert re.fullmatch(r'\[("[^"]+"(, )?)+\]', body[name]), body[name]
    if target == "triton":
        assert "ENTRYPOINT" not in body  # NVIDIA's
    else:
        assert body["ENTRYPOINT"] == '["ocdserve"]'
    if target == "builder":
        assert body["HEALTHCHECK"] == "NONE" and "EXPOSE" not in body
    else:
        assert body["HEALTHCHECK"].endswith('CMD ["ocdserve", "health"]') and body["EXPOSE"] == "8000 8001 8002"


def test_images_are_made_of_extras_and_files_that_there_are_and_that_the_context_has() -> None:
    let_in = re.findall(r"^!(\S+)$", (REPOSITORY / ".dockerignore").read_text("utf-8"), re.MULTILINE)
    extras = re.findall(r"^([a-z-]+) = \[", PROJECT.partition("[project.optional-dependencies]")[2], re.MULTILINE)
    text = " ".join(line for _, line in instructions())
    asked = re.findall(r"--(?:extra|group) ([a-z-]+)", text) + re.findall(r"TRITON_EXTRA=(\S+)", text)
    assert len(asked) >= 6 and set(asked) <= set(extras)
    copied = [line.split() for name, line in instructions() if name == "COPY" and "--from" not in line]
    sources = [source for *some, _ in copied for source in some if source != "."]
    assert len(sources) >= 6
    for source in [*sources, *let_in]:
        assert (REPOSITORY / source).exists(), source
    assert set(sources) <= set(let_in)
    # What the wheel is built of.
    hatch = re.search(r"^only-include = \[(.*)\]", PROJECT, re.MULTILINE)
    assert hatch is not None
    for folder in re.findall(r'"([^"]+)"', hatch[1]):
        assert any(Path(folder).is_relative_to(name) for name in let_in), folder


@pytest.mark.skipif(platform.machine() != "x86_64", reason="on other machines some files have other names")
def test_everything_that_is_left_out_of_the_image_is_in_its_packages() -> None:
    packages = Path(sysconfig.get_path("purelib"))
    names = re.findall(r"^[^#\n]+$", (DOCKER / "unneeded.txt").read_text("utf-8"), re.MULTILINE)
    assert len(names) > 10
    assert [name for name in names if not list(packages.glob(name))] == []


@pytest.mark.parametrize("name", services())
def test_a_service_is_contained(name: str) -> None:
    service = services()[name]
    assert service["read_only"] is True and service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["pids_limit"] and service["mem_limit"] and service["healthcheck"]["test"][0] == "CMD"
    assert service["logging"]["options"].keys() == {"max-size", "max-file"}
    assert service["profiles"] == [
        name if name in ("cpu", "gpu", "proxy") else "monitoring",
    ]
    if name in ("cpu", "gpu"):
        version = re.search(r'^version = "(.*)"', PROJECT, re.MULTILINE)
        assert version is not None and service["image"] == f"ocdserve:{version[1]}-{name}"
        assert service["build"] == {"context": "..", "dockerfile": "docker/Dockerfile", "target": name}
        assert (service["shm_size"], service["networks"]) == ("1gb", {"default": {"aliases": ["ocdserve"]}})
        assert service["healthcheck"]["test"][1:] == ["ocdserve", "health"]
    for volume in service.get("volumes", []):
        source, _target, *mode = volume.split(":")
        assert not source.startswith(".") or ((DOCKER / source).exists() and mode == ["ro"]), volume


def test_only_the_proxy_listens_beyond_the_machine() -> None:
    open_ports = {name for name, one in services().items() if not all(p.startswith("127.") for p in one["ports"])}
    assert open_ports == {"proxy"}


def test_the_proxy_refuses_raw_bodies_and_asks_whether_servers_are_ready() -> None:
    file = DOCKER / "envoy.yaml"
    done = subprocess.run([envoy_path(), "--mode", "validate", "-c", file], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    resources = yaml.safe_load(file.read_text("utf-8"))["static_resources"]
    clusters = {one["name"]: one for one in resources["clusters"]}
    assert [one["health_checks"][0]["http_health_check"]["path"] for one in clusters.values()] == [
        "/v2/health/ready"
    ] * 2
    (host,) = resources["listeners"][0]["filter_chains"][0]["filters"][0]["typed_config"]["route_config"][
        "virtual_hosts"
    ]
    refused, *passed = host["routes"]
    assert refused["direct_response"]["status"] == 400
    assert re.fullmatch(refused["match"]["headers"][0]["string_match"]["safe_regex"]["regex"], "0")
    assert {route["route"]["cluster"] for route in passed} == clusters.keys()


def test_the_proxy_refuses_before_its_memory_is_full() -> None:
    manager = yaml.safe_load((DOCKER / "envoy.yaml").read_text("utf-8"))["overload_manager"]
    (monitor,) = manager["resource_monitors"]
    # The rest is for what one interval brings: 100 MB at 8 Gbit/s.
    assert services()["proxy"]["mem_limit"] == "1gb"
    assert monitor["typed_config"]["max_heap_size_bytes"] <= 2**30 - 250_000_000
    assert {action["name"] for action in manager["actions"]} == {
        f"envoy.overload_actions.{name}"
        for name in ("shrink_heap", "stop_accepting_requests", "reset_high_memory_stream")
    }


def test_nobody_can_log_in_to_grafana() -> None:
    settings = services()["grafana"]["environment"]
    # Its first password is "admin", and the API takes it without the login form.
    assert (settings["GF_AUTH_DISABLE_LOGIN_FORM"], settings["GF_AUTH_BASIC_ENABLED"]) == ("true", "false")


def test_prometheus_and_alertmanager_take_their_files(tool: Callable[[str], Path], tmp_path: Path) -> None:
    text = (DOCKER / "monitoring" / "prometheus.yaml").read_text("utf-8")
    (tmp_path / "prometheus.yaml").write_text(text, "utf-8")
    rules = REPOSITORY / "charts" / "ocdserve" / "files" / "rules.yaml"
    (tmp_path / "rules.yaml").write_bytes(rules.read_bytes())
    for command in (
        [tool("promtool"), "check", "config", tmp_path / "prometheus.yaml"],
        [tool("amtool"), "check-config", DOCKER / "monitoring" / "alertmanager.yaml"],
    ):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


class Registry(BaseHTTPRequestHandler):
    """Names digests to those who have fetched a token first."""

    def do_GET(self) -> None:
        right = self.path == "/token?service=registry&scope=pull"
        self._answer(200 if right else 400, {}, b'{"token": "secret"}')

    def do_HEAD(self) -> None:
        if self.headers.get("Authorization") != "Bearer secret":
            realm = f"http://{self.headers['Host']}/token"
            self._answer(401, {"WWW-Authenticate": f'Bearer realm="{realm}",service="registry",scope="pull"'})
            return
        assert "application/vnd.oci.image.index.v1+json" in self.headers["Accept"]
        known = {f"/v2/{name}/manifests/3.12-slim": digest for name, digest in DIGESTS.items()}
        found = known.get(self.path)
        self._answer(200 if found else 404, {"Docker-Content-Digest": found or ""})

    def _answer(self, status: int, headers: dict[str, str], body: bytes = b"") -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def registry() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Registry) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()


def test_digests_are_those_that_a_registry_names_and_none_is_invented(
    registry: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main = runpy.run_path(str(REPOSITORY / "scripts" / "pin_images.py"))["main"]
    file = tmp_path / "Dockerfile"
    lines = [
        f"ARG ONE_IMAGE={registry}/one:3.12-slim",
        f"    image: {registry}/library/two:3.12-slim@sha256:{'0' * 64}",
        f"ARG GONE_IMAGE={registry}/one:3.13",
        "    image: ocdserve:0.2.0-cpu",
        f"# of {registry}/one:3.12-slim",
    ]
    file.write_text("\n".join(lines), "utf-8")

    assert main([str(file)]) == 1
    assert file.read_text("utf-8").splitlines() == [
        f"{lines[0]}@{DIGESTS['one']}",
        f"    image: {registry}/library/two:3.12-slim@{DIGESTS['library/two']}",
        *lines[2:],
    ]
    said = capsys.readouterr()
    assert f"{registry}/one:3.13 is left without a new digest: HTTP Error 404" in said.err
    file.write_text(lines[0], "utf-8")
    assert main([str(file)]) == 0 and file.read_text("utf-8") == f"{lines[0]}@{DIGESTS['one']}"
