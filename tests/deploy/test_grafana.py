"""The dashboard asks only for metrics and labels that a real server shows."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from gr2.client import Client
from gr2.serving.observing.exposition import parse
from gr2.serving.server import Server

DASHBOARD = Path(__file__).parents[2] / "deploy" / "grafana" / "gr2.json"
BY_PROMETHEUS = {"job", "instance"}
METRIC = re.compile(r"\b(gr2_\w+|process_\w+)(?:\{([^}]*)\})?")
GROUPING = re.compile(r"\bby \(([^)]*)\)")


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> dict[str, set[str]]:
    """Metric to its labels, of a bundle as `gr2 export` writes it."""
    pytest.importorskip("torch")
    from gr2.export.random_bundle import write_random_bundle

    folder = write_random_bundle(tmp_path_factory.mktemp("bundle") / "export", items=100, batched=False)
    server = Server(folder, port=0)
    server.start()
    with Client(server.address) as client:
        client.rerank([], [3, 7], timeout=10)
    labels: dict[str, set[str]] = {}
    for sample in parse(server.metrics.text()):
        labels.setdefault(sample.name, set()).update(sample.labels)
    server.stop(5)
    return labels


def queries() -> list[str]:
    dashboard = json.loads(DASHBOARD.read_text())
    variables = [each["query"] for each in dashboard["templating"]["list"] if each["type"] == "query"]
    return variables + [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]


@pytest.mark.parametrize("query", queries())
def test_a_query_uses_what_is_exported(query: str, shown: dict[str, set[str]]) -> None:
    found = METRIC.findall(query)
    assert found
    grouped = {label.strip() for group in GROUPING.findall(query) for label in group.split(",")}
    for name, selector in found:
        assert name in shown
        wanted = set(re.findall(r"(\w+)=", selector)) | grouped
        assert wanted <= shown[name] | BY_PROMETHEUS
    assert query.count("(") == query.count(")")
    assert query.count("{") == query.count("}")


def test_a_rate_is_of_a_counter_and_a_gauge_is_not(shown: dict[str, set[str]]) -> None:
    rated = {name for query in queries() for name in re.findall(r"(?:rate|increase)\((\w+)", query)}
    plain = {name for query in queries() for name, _ in METRIC.findall(query)} - rated
    counters = ("_total", "_bucket", "_sum", "_count")
    assert rated
    assert all(name.endswith(counters) for name in rated)
    assert not any(name.endswith(counters) for name in plain)


def test_panels_do_not_overlap_and_have_their_own_numbers() -> None:
    panels = json.loads(DASHBOARD.read_text())["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken = [
        (x, y)
        for panel in panels
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]
    assert len(set(taken)) == len(taken)
    assert max(x for x, _ in taken) < 24
