"""What deploy/ watches: queries of alerts and the dashboard, and a Milvus server as the compose file runs it."""

import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import combinations
from typing import Any
from urllib.request import urlopen

import pytest
from conftest import needs_milvus
from deployment import DEPLOY, ROOT, compose_services, read
from searched import unit

from dr_keras.index.index import Entry, Index
from dr_keras.server.peers import Peers
from dr_keras.server.prometheus import Metrics

DASHBOARD = DEPLOY / "grafana/dashboards/dr_keras.json"

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
    mounts = compose_services()["grafana"]["volumes"]
    assert folder in {mount["target"] for mount in mounts if isinstance(mount, dict)}


def test_prometheus_scrapes_what_compose_runs():
    services = compose_services()
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
        for name, value in compose_services()["milvus"]["environment"].items()
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
