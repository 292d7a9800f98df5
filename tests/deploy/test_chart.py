# SPDX-License-Identifier: Apache-2.0
"""charts/ocdserve: what Helm makes of six sets of values, against the schemas of Kubernetes and KServe."""

import argparse
import re
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from tests.deploy.prometheus import REPOSITORY, TOOLS

CHART = REPOSITORY / "charts" / "ocdserve"
KSERVE = REPOSITORY.parent / "shared" / "kserve"
VALUES = sorted(path.name for path in (CHART / "ci").glob("*-values.yaml"))
SHM = {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "1Gi"}}

# Of operators whose schemas are not at hand.
UNCHECKED = {
    "monitoring.coreos.com/v1 PodMonitor",
    "monitoring.coreos.com/v1 PrometheusRule",
    "monitoring.coreos.com/v1 ServiceMonitor",
    "keda.sh/v1alpha1 ScaledObject",
    "gateway.networking.k8s.io/v1 HTTPRoute",
}
# Contradictions that values.schema.json refuses.
REFUSED = {
    "a number that is none": "replicas=x",
    "a name that is not known": "replica=3",
    "no memory limit": "resources.limits.memory=null",
    "no limits": "resources.limits=null",
    "an engine without a GPU": "engine.enabled=true",
    "KServe without a repository": "kserve.enabled=true",
    "KServe with an HPA": "kserve.enabled=true,kserve.storageUri=pvc://a/b,autoscaling.enabled=true,autoscaling.kind=hpa",
    "a route without a gateway": "gateway.enabled=true",
    "a folder without a claim": "serve.bundle=/bundle/mine",
}


def parsed(text: str) -> list[Any]:
    return [one for one in yaml.load_all(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)) if one]


@pytest.fixture(scope="module")
def rendered(tool: Callable[[str], Path]) -> Callable[[str], list[dict[str, Any]]]:
    """A function from a file of values to the objects that Helm makes."""
    helm = tool("helm")

    @cache
    def render(values: str) -> list[dict[str, Any]]:
        command = [helm, "template", "detect", CHART, "--namespace", "ocr", "--values", CHART / "ci" / values]
        return parsed(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    return render


@pytest.fixture(scope="module")
def validate() -> Callable[[Any], None]:
    """A function that checks an object of Kubernetes itself, unknown fields included."""
    if not (TOOLS / "python" / "kubernetes_validate").is_dir():
        pytest.skip("kubernetes-validate is not installed; scripts/install_deploy_tools.sh does it")
    sys.path.append(str(TOOLS / "python"))
    module = import_module("kubernetes_validate")
    sys.path.remove(str(TOOLS / "python"))
    return lambda one: module.validate(one, "1.37", strict=True)


@pytest.fixture(scope="module")
def kserve_schemas() -> dict[str, Any]:
    """KServe's schemas by kind, without the fields that they do not name."""
    if not KSERVE.is_dir():
        pytest.skip(f"no definitions of KServe: {KSERVE} does not exist")
    found = {}
    for file in KSERVE.glob("*.yaml"):
        (definition,) = parsed(file.read_text("utf-8"))
        versions = definition["spec"]["versions"]
        (schema,) = (one["schema"]["openAPIV3Schema"] for one in versions if one["storage"])
        found[definition["spec"]["names"]["kind"]] = strict(schema)
    return found


def strict(schema: Any) -> Any:
    """A schema that refuses what it does not name, as Kubernetes' field validation does."""
    if isinstance(schema, list):
        return [strict(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: strict(value) for key, value in schema.items()}
    is_closed = isinstance(schema.get("properties"), dict) and "type" in schema
    if is_closed and not schema.get("x-kubernetes-preserve-unknown-fields"):
        made.setdefault("additionalProperties", False)
    return made


def of_kind(objects: list[dict[str, Any]], kind: str) -> dict[str, Any]:
    (found,) = (one for one in objects if one["kind"] == kind)
    return found


def pod_of(objects: list[dict[str, Any]]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The pod's specification, and the container that serves."""
    kinds = {one["kind"] for one in objects}
    if "Deployment" in kinds:
        pod = of_kind(objects, "Deployment")["spec"]["template"]["spec"]
    else:
        runtime = of_kind(objects, "ClusterServingRuntime")["spec"]
        pod = {**of_kind(objects, "InferenceService")["spec"]["predictor"], **runtime}
    (container,) = pod["containers"]
    return pod, container


def test_there_are_six_sets_of_values() -> None:
    assert len(VALUES) == 6


def test_the_chart_has_the_version_of_the_project() -> None:
    (chart,) = parsed((CHART / "Chart.yaml").read_text("utf-8"))
    (version,) = re.findall(r'^version = "(.+)"$', (REPOSITORY / "pyproject.toml").read_text("utf-8"), re.M)
    assert (chart["version"], chart["appVersion"]) == (version, version)


def test_helm_finds_no_fault(tool: Callable[[str], Path]) -> None:
    for values in VALUES:
        command = [tool("helm"), "lint", "--strict", "--quiet", CHART, "--values", CHART / "ci" / values]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{values}: {done.stdout}"


@pytest.mark.parametrize("values", REFUSED.values(), ids=REFUSED)
def test_contradictions_are_refused(tool: Callable[[str], Path], values: str) -> None:
    command = [tool("helm"), "template", "detect", CHART, "--set", values]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode != 0 and "values don't meet the specifications of the schema" in done.stderr


@pytest.mark.parametrize("values", VALUES)
def test_objects_are_valid(
    rendered: Callable[[str], list[dict[str, Any]]],
    validate: Callable[[Any], None],
    kserve_schemas: dict[str, Any],
    values: str,
) -> None:
    for one in rendered(values):
        kind = f"{one['apiVersion']} {one['kind']}"
        if schema := kserve_schemas.get(one["kind"]):
            jsonschema.Draft7Validator(schema).validate(one)
        elif kind not in UNCHECKED:
            validate(one)


def test_a_misspelt_field_of_kserve_is_found(
    rendered: Callable[[str], list[dict[str, Any]]], kserve_schemas: dict[str, Any]
) -> None:
    service = of_kind(rendered("kserve-values.yaml"), "InferenceService")
    model = {**service["spec"]["predictor"]["model"], "protocolVerson": "v2"}
    wrong = {**service, "spec": {"predictor": {**service["spec"]["predictor"], "model": model}}}
    with pytest.raises(jsonschema.ValidationError, match="'protocolVerson' was unexpected"):
        jsonschema.Draft7Validator(kserve_schemas["InferenceService"]).validate(wrong)


@pytest.mark.parametrize("values", VALUES)
def test_pods_fulfil_the_standard_restricted(rendered: Callable[[str], list[dict[str, Any]]], values: str) -> None:
    pod, container = pod_of(rendered(values))
    security = pod["securityContext"]
    assert (security["runAsNonRoot"], security["runAsUser"]) == (True, 10001)
    assert security["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["automountServiceAccountToken"] is False
    assert {"hostNetwork", "hostPID", "hostIPC"}.isdisjoint(pod)
    for one in (container, *pod.get("initContainers", ())):
        assert one["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
    assert SHM in pod["volumes"] and {"name": "shm", "mountPath": "/dev/shm"} in container["volumeMounts"]
    assert all({"emptyDir", "persistentVolumeClaim"} & volume.keys() for volume in pod["volumes"])
    assert all(volume["emptyDir"].get("sizeLimit") for volume in pod["volumes"] if "emptyDir" in volume)


@pytest.mark.parametrize("values", VALUES)
def test_commands_of_the_pod_exist(rendered: Callable[[str], list[dict[str, Any]]], values: str) -> None:
    pod, container = pod_of(rendered(values))
    served = command_of(container["args"])
    assert served.host == "0.0.0.0" and served.log_format == "json"
    assert pod["terminationGracePeriodSeconds"] == served.drain_s + served.exit_timeout_s + 10
    startup, liveness = container["startupProbe"], container["livenessProbe"]
    assert startup["periodSeconds"] * startup["failureThreshold"] > served.ready_timeout_s
    program, *arguments = liveness["exec"]["command"]
    asked = command_of(arguments)
    assert program == "ocdserve" and asked.canary and asked.timeout_s < liveness["timeoutSeconds"]
    assert asked.url == f"http://127.0.0.1:{served.http_port}"
    # The launcher replaces a process that hangs within 90 s.
    assert liveness["periodSeconds"] * (liveness["failureThreshold"] - 1) > 90
    assert {startup["httpGet"]["port"], container["readinessProbe"]["httpGet"]["port"]} == {served.http_port}
    assert {served.http_port, served.metrics_port} <= {port["containerPort"] for port in container["ports"]}
    for one in pod.get("initContainers", ()):
        assert command_of(["build", *one["args"], "--output", "x"]).runtime == "tensorrt"


def command_of(words: list[str]) -> argparse.Namespace:
    """The options of a command line of ocdserve."""
    from ocdserve.cli import COMMANDS

    (module,) = (one.module for one in COMMANDS if one.name == words[0])
    parser = argparse.ArgumentParser(exit_on_error=False)
    import_module(module).add_arguments(parser)
    return parser.parse_args(words[1:])


@pytest.mark.parametrize("values", [name for name in VALUES if not name.startswith("kserve")])
def test_everything_selects_the_pods(rendered: Callable[[str], list[dict[str, Any]]], values: str) -> None:
    objects = rendered(values)
    deployment = of_kind(objects, "Deployment")
    labels = deployment["spec"]["template"]["metadata"]["labels"].items()
    services = {one["metadata"]["name"]: one for one in objects if one["kind"] == "Service"}
    assert services.keys() == {"detect-ocdserve", "detect-ocdserve-pods"}
    assert services["detect-ocdserve-pods"]["spec"]["clusterIP"] == "None"
    selectors = [service["spec"]["selector"] for service in services.values()]
    selectors.append(of_kind(objects, "PodDisruptionBudget")["spec"]["selector"]["matchLabels"])
    selectors += [one["spec"]["podSelector"]["matchLabels"] for one in objects if one["kind"] == "NetworkPolicy"]
    assert all(selector and selector.items() <= labels for selector in selectors)
    ports = {port["name"] for port in pod_of(objects)[1]["ports"]}
    named = [port["targetPort"] for service in services.values() for port in service["spec"]["ports"]]
    assert set(named) == ports == {"http", "grpc", "metrics"}
    for monitor in (one for one in objects if one["kind"] == "ServiceMonitor"):
        (found,) = (
            service
            for service in services.values()
            if monitor["spec"]["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
        )
        assert found["metadata"]["labels"][monitor["spec"]["jobLabel"]] == "ocdserve"
        assert monitor["spec"]["endpoints"][0]["port"] in {port["name"] for port in found["spec"]["ports"]}
    # The Gateway API may refuse one of two routes of different kinds that have a hostname in common.
    (route,) = [one for one in objects if one["kind"].endswith("Route")] or [None]
    for rule in route["spec"]["rules"] if route else ():
        (backend,) = rule["backendRefs"]
        assert backend["port"] in {port["port"] for port in services[backend["name"]]["spec"]["ports"]}
    scaled = [one for one in objects if one["kind"] in ("HorizontalPodAutoscaler", "ScaledObject")]
    assert ("replicas" in deployment["spec"]) == (not scaled)
    assert all(one["spec"]["scaleTargetRef"]["name"] == deployment["metadata"]["name"] for one in scaled)


@pytest.fixture(scope="module")
def with_settings(tool: Callable[[str], Path]) -> Callable[..., list[dict[str, Any]]]:
    """A function from settings, as of --set-json, to the objects that Helm makes of a release `123` in `456`."""

    def render(*settings: str) -> list[dict[str, Any]]:
        options = [word for one in settings for word in ("--set-json", one)]
        command = [tool("helm"), "template", "123", CHART, "--namespace", "456", *options]
        return parsed(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    return render


def test_names_that_look_like_numbers_stay_names(
    with_settings: Callable[..., list[dict[str, Any]]], validate: Callable[[Any], None]
) -> None:
    claims = ('model.claim="7"', 'engine={"enabled":true,"claim":"8"}', "gpu.enabled=true")
    objects = with_settings(*claims, 'autoscaling={"enabled":true,"kind":"hpa"}')
    for one in objects:
        validate(one)
    (metric,) = of_kind(objects, "HorizontalPodAutoscaler")["spec"]["metrics"]
    assert metric["external"]["metric"]["selector"] == {"matchLabels": {"namespace": "456", "release": "123"}}


def test_an_empty_list_of_peers_lets_nobody_in(with_settings: Callable[..., list[dict[str, Any]]]) -> None:
    def rules(*settings: str) -> list[dict[str, Any]]:
        return list(of_kind(with_settings(*settings), "NetworkPolicy")["spec"]["ingress"] or ())

    assert rules("networkPolicy.clients=[]") == [{"from": [{"namespaceSelector": {}}], "ports": [{"port": "metrics"}]}]
    assert rules("networkPolicy.clients=[]", "networkPolicy.monitoring=[]") == []


def test_a_deployment_can_be_recreated(with_settings: Callable[..., list[dict[str, Any]]]) -> None:
    deployment = of_kind(with_settings('strategy.type="Recreate"'), "Deployment")
    # Kubernetes refuses a rollingUpdate here.
    assert deployment["spec"]["strategy"] == {"type": "Recreate"}


@pytest.mark.parametrize("kserve", [False, True])
def test_monitors_name_the_release_and_wait_for_init_containers(
    with_settings: Callable[..., list[dict[str, Any]]], kserve: bool
) -> None:
    settings = ["monitoring.serviceMonitor=true", *(['kserve={"enabled":true,"storageUri":"pvc://a/b"}'] * kserve)]
    (monitor,) = (one["spec"] for one in with_settings(*settings) if one["kind"].endswith("Monitor"))
    (endpoint,) = monitor["podMetricsEndpoints" if kserve else "endpoints"]
    assert endpoint["relabelings"] == [
        {"action": "drop", "sourceLabels": ["__meta_kubernetes_pod_phase"], "regex": "Pending"},
        {"sourceLabels": ["__meta_kubernetes_pod_label_app_kubernetes_io_instance"], "targetLabel": "release"},
    ]


def test_a_runtime_of_the_cluster_has_the_namespace_in_its_name_and_a_port_of_grpc(
    rendered: Callable[[str], list[dict[str, Any]]],
) -> None:
    objects = rendered("kserve-values.yaml")
    runtime, service = of_kind(objects, "ClusterServingRuntime"), of_kind(objects, "InferenceService")
    name = "detect-ocdserve-ocr"
    assert runtime["metadata"]["name"] == service["spec"]["predictor"]["model"]["runtime"] == name
    # Of these KServe's service has the first at port 80, and the others as they are.
    ports = {port["name"]: port["containerPort"] for port in runtime["spec"]["containers"][0]["ports"]}
    assert ports == {"http1": 8080, "h2c": 9000, "metrics": 8002}


def test_gpu_resources_and_the_engine_are_in_the_pod(rendered: Callable[[str], list[dict[str, Any]]]) -> None:
    pod, container = pod_of(rendered("gpu-engine-values.yaml"))
    (engine,) = pod["initContainers"]
    expected = {"cpu": "2", "memory": "4Gi", "nvidia.com/mig-1g.10gb": 1}
    assert container["resources"]["limits"] == engine["resources"]["limits"] == expected
    assert container["args"][-6:] == ["--gpu", "--bundle", "/built/bundle", "--mps", "--instances", "3"]
    assert container["image"] == engine["image"] == "ocdserve:0.2.0-gpu"
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert volumes["engines"]["persistentVolumeClaim"] == {"claimName": "detect-ocdserve-engines"}
    assert volumes["model"]["persistentVolumeClaim"] == {"claimName": "detectors", "readOnly": True}
    places = {mount["name"]: mount["mountPath"] for mount in engine["volumeMounts"]}
    assert {**places, "shm": "", "tmp": ""} == {
        "shm": "",
        "tmp": "",
        "engines": "/engines",
        "built": "/built",
        "model": "/bundle",
    }


def test_rules_and_dashboard_are_the_files(rendered: Callable[[str], list[dict[str, Any]]]) -> None:
    objects = rendered("keda-monitoring-values.yaml")
    (rules,) = parsed((CHART / "files" / "rules.yaml").read_text("utf-8"))
    assert of_kind(objects, "PrometheusRule")["spec"] == rules
    data = of_kind(objects, "ConfigMap")["data"]
    assert data == {"ocdserve.json": (CHART / "files" / "dashboard.json").read_text("utf-8")}
    trigger = of_kind(objects, "ScaledObject")["spec"]["triggers"][0]["metadata"]
    assert trigger["query"] == 'max(ocdserve:queue_seconds_per_request{namespace="ocr", release=~"detect|"})'
    assert trigger["threshold"] == "0.3"
    assert "ocdserve:queue_seconds_per_request" in {rule.get("record") for rule in rules["groups"][0]["rules"]}
