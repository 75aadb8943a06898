"""What is drawn, what is alarmed about and what is explained are the figures that there are."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from sqlalchemy import Engine

from service.metrics import Metrics, dispatcher_registry
from service.store.record import SqlRecord
from service.throttle import Throttle
from workers.dispatcher import Dispatcher
from workers.memory import MemoryLedger

pytestmark = pytest.mark.timeout(30)  # the first test makes a database

HOUSE = Path(__file__).parents[2]
DASHBOARD: dict[str, Any] = json.loads((HOUSE / "deploy" / "grafana" / "stillhouse.json").read_text(encoding="utf-8"))
ALERTS: list[dict[str, Any]] = [
    rule
    for group in yaml.safe_load((HOUSE / "deploy" / "prometheus" / "alerts.yaml").read_text(encoding="utf-8"))["groups"]
    for rule in group["rules"]
]
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
ENDINGS = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count"), "gauge": ("",)}
"""Of the samples of a family, by its type."""
OF_PROMETHEUS = {"instance", "job"}
"""Labels that a scrape adds."""


@pytest.fixture
def exported(sqlite: Engine) -> dict[str, set[str]]:
    """Every sample that can be scraped of an API or a dispatcher, with its labels."""
    api = Metrics(SqlRecord(sqlite), Throttle(1.0, 1), ready=lambda: True, streams=lambda: 0)
    api.observe("GET", "/healthz", 200, 0.1)
    dispatcher = Dispatcher(MemoryLedger(), lambda claim: None, owner="o", slots=1, lease_seconds=1)  # type: ignore[arg-type, return-value]
    found: dict[str, set[str]] = {}
    for registry in (api.registry, dispatcher_registry(dispatcher)):
        for family in registry.collect():
            labels = {name for sample in family.samples for name in sample.labels}
            labels |= {"of"} if family.name == "stillhouse_proxy_correlation" else set()  # no job knows it yet
            for ending in ENDINGS[family.type]:
                found[f"{family.name}{ending}"] = labels
    return found


def expressions() -> Iterator[str]:
    for panel in PANELS:
        yield from (target["expr"] for target in panel["targets"])
    yield from (rule["expr"] for rule in ALERTS)


def test_every_metric_that_is_used_can_be_scraped(exported: dict[str, set[str]]) -> None:
    used = {name for told in expressions() for name in re.findall(r"\b(?:stillhouse|process)_\w+", told)}
    assert used <= exported.keys()
    ours = {name for name in exported if name.startswith("stillhouse_")}
    assert not {name for name in ours - used if not name.endswith(("_bucket", "_sum", "_count"))}, "drawn nowhere"


def test_every_label_that_is_used_can_be_scraped(exported: dict[str, set[str]]) -> None:
    for told in expressions():
        names = re.findall(r"\b(?:stillhouse|process)_\w+", told)
        known = OF_PROMETHEUS.union(*(exported[name] for name in names))
        chosen = {name for part in re.findall(r"\{([^}]*)\}", told) for name in re.findall(r"(\w+)\s*[=!]", part)}
        kept = {name.strip() for part in re.findall(r"by \(([^)]*)\)", told) for name in part.split(",")}
        assert chosen | kept <= known, told
    for panel in PANELS:
        for target in panel["targets"]:
            shown = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
            kept = {name.strip() for part in re.findall(r"by \(([^)]*)\)", target["expr"]) for name in part.split(",")}
            assert shown <= kept | OF_PROMETHEUS, target


def test_every_metric_is_explained_and_nothing_else_is(exported: dict[str, set[str]]) -> None:
    guide = (HOUSE / "docs" / "guide" / "operating.md").read_text(encoding="utf-8")
    explained = set(re.findall(r"`(stillhouse_\w+)`", guide))
    families = {re.sub(r"_(bucket|sum|count)$", "", name) for name in exported if name.startswith("stillhouse_")}
    assert explained == families


def test_the_dashboard_is_one_that_grafana_can_load() -> None:
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    assert {panel["datasource"]["uid"] for panel in PANELS} == {"${source}"}
    assert [variable["type"] for variable in DASHBOARD["templating"]["list"]] == ["datasource"]
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {(place["x"] + right, place["y"] + down) for right in range(place["w"]) for down in range(place["h"])}
        assert not cells & taken, f"{panel['title']} lies on another panel"
        assert max(right for right, _ in cells) < 24
        taken |= cells


def test_every_alert_says_what_is_wrong_and_what_to_do() -> None:
    assert len({rule["alert"] for rule in ALERTS}) == len(ALERTS)
    for rule in ALERTS:
        assert rule["labels"]["severity"] in ("critical", "warning")
        assert rule["annotations"]["summary"].endswith(".")
        assert rule["annotations"]["description"]
    wanted = {"NotReady", "QueueOld", "LeasesExpire", "StaleWrites", "ServerErrors", "OutboxDead"}
    assert {f"Stillhouse{name}" for name in wanted} <= {rule["alert"] for rule in ALERTS}


@pytest.mark.parametrize("told", [*expressions()])
def test_brackets_of_expressions_are_closed(told: str) -> None:
    """The least that can be said without Prometheus at hand."""
    open_ones: list[str] = []
    for sign in re.sub(r'"[^"]*"', '""', told):
        if sign in "([{":
            open_ones.append(")]}"["([{".index(sign)])
        elif sign in ")]}":
            assert open_ones.pop() == sign
    assert not open_ones
