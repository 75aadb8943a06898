"""The alerts and the dashboard before Prometheus itself; skipped where there is none, since nothing else needs it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import httpx2
import pytest
import yaml
from prometheus_client import CollectorRegistry, generate_latest
from sqlalchemy import Engine

from search.errors import StaleClaim
from search.spec import read_spec
from search.trial import Score, Trial
from service import metrics
from service.metrics import Metrics, dispatcher_registry, publish
from service.settings import Settings
from service.store.engine import connect
from service.store.outbox import SqlOutbox
from service.store.record import SqlRecord
from service.throttle import Throttle
from tests.databases import WholeLedger
from tests.service.receiver import free_port, wait_until
from workers.dispatcher import Dispatcher
from workers.memory import MemoryLedger
from workers.ports import JobState, Phase

DEPLOY = Path(__file__).parents[2] / "deploy"
CONFIG = DEPLOY / "prometheus" / "prometheus.yaml"
RULES = DEPLOY / "prometheus" / "alerts.yaml"
TRIED = DEPLOY / "prometheus" / "alerts.test.yaml"
ALERTS: list[str] = [
    rule["alert"] for group in yaml.safe_load(RULES.read_text(encoding="utf-8"))["groups"] for rule in group["rules"]
]
PANELS: dict[str, dict[str, Any]] = {
    panel["title"]: panel
    for panel in json.loads((DEPLOY / "grafana" / "stillhouse.json").read_text(encoding="utf-8"))["panels"]
    if panel["type"] != "row"
}

PROMETHEUS, PROMTOOL = shutil.which("prometheus") or "", shutil.which("promtool") or ""
with_promtool = pytest.mark.skipif(not PROMTOOL, reason="there is no promtool (Debian: apt install prometheus)")
with_prometheus = pytest.mark.skipif(not PROMETHEUS, reason="there is no Prometheus (Debian: apt install prometheus)")
pytestmark = pytest.mark.timeout(60)

EVERY = "250ms"
"""Between scrapes, and between looks at the rules."""
SPEC = read_spec({"teacher": {"name": "t"}, "dataset": {"name": "d"}, "budget": {"macs": "50%"}})
MOVED = Trial("", 0, "moved", {"site": 1}, {"site": 2}, {"macs": 3})
KEPT = replace(MOVED, key="kept", origin={"site": 1})


def promtool(*arguments: str | Path, text: str = "") -> str:
    """What it says, which it has to say without finding fault."""
    done = subprocess.run([PROMTOOL, *map(str, arguments)], input=text, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@with_promtool
def test_promtool_finds_no_fault_in_the_configuration() -> None:
    told = promtool("check", "config", "--lint=all", "--lint-fatal", CONFIG)
    assert f"{len(ALERTS)} rules found" in told


@with_promtool
def test_alerts_fire_on_what_they_are_for_and_neither_below_nor_before() -> None:
    assert "SUCCESS" in promtool("test", "rules", TRIED)


@with_promtool
def test_a_rule_that_does_not_do_as_told_is_found(tmp_path: Path) -> None:
    tried = yaml.safe_load(TRIED.read_text(encoding="utf-8"))
    tried["tests"] = [test for test in tried["tests"] if "StillhouseQueueOld" in str(test)]
    (tmp_path / TRIED.name).write_text(yaml.safe_dump(tried), encoding="utf-8")
    (tmp_path / RULES.name).write_text(RULES.read_text(encoding="utf-8").replace("> 3600", "> 3700"), encoding="utf-8")
    with pytest.raises(AssertionError, match="alertname: StillhouseQueueOld, time: 15m"):
        promtool("test", "rules", tmp_path / TRIED.name)


def test_every_alert_is_tried_both_ways() -> None:
    tests = yaml.safe_load(TRIED.read_text(encoding="utf-8"))["tests"]
    tried = [case for test in tests for case in test["alert_rule_test"]]
    assert {case["alertname"] for case in tried if case["exp_alerts"]} == set(ALERTS), "fires"
    assert {case["alertname"] for case in tried if not case["exp_alerts"]} == set(ALERTS), "is silent"


@with_promtool
def test_a_panel_tells_none_from_nothing_known(tmp_path: Path) -> None:
    """Nobody is ready where nobody is; of requests none failed, and of no requests no share did."""
    (ready,) = PANELS["Replicas that are ready"]["targets"]
    (failed,) = PANELS["Share of answers of 500 and above"]["targets"]
    zero, requests = [{"labels": "{}", "value": 0}], 'stillhouse_http_seconds_count{status="2xx"}'
    tests = [
        {"promql_expr_test": [{"expr": told["expr"], "eval_time": "10m", "exp_samples": samples}], **series}
        for told, samples, series in (
            (ready, zero, {}),
            (failed, [], {}),
            (failed, zero, {"interval": "15s", "input_series": [{"series": requests, "values": "0+1x40"}]}),
        )
    ]
    (tmp_path / "panels.test.yaml").write_text(yaml.safe_dump({"tests": tests}), encoding="utf-8")
    assert "SUCCESS" in promtool("test", "rules", tmp_path / "panels.test.yaml")


@dataclass(frozen=True)
class House:
    """Two APIs over one record, and a dispatcher."""

    engine: Engine
    apis: tuple[tuple[Metrics, Throttle], ...]
    dispatcher: Dispatcher

    @property
    def registries(self) -> list[tuple[str, CollectorRegistry]]:
        """With the scrape that finds each."""
        apis = [("stillhouse-api", api.registry) for api, _ in self.apis]
        return [*apis, ("stillhouse-dispatcher", dispatcher_registry(self.dispatcher))]

    def open(self) -> None:
        """So much that every counter of requests is there before it grows."""
        for api, throttle in self.apis:
            api.observe("GET", "/v1/jobs", 200, 0.02)
            api.observe("GET", "/v1/jobs", 503, 0.1)
            throttle.take("key")

    def live(self) -> None:
        """
        At each API three requests that are answered, one that fails and one refused; a driver that ended badly. A job
        that one driver lost and another one finished: four scores, one of them taken over. A letter that was given up,
        and one that waits.
        """
        for api, throttle in self.apis:
            for _ in range(3):
                api.observe("GET", "/v1/jobs", 200, 0.02)
            api.observe("GET", "/v1/jobs", 503, 0.1)
            throttle.take("key")
        self.dispatcher.ended[False] += 1
        ledger = WholeLedger(self.engine)
        ledger.webhooks.create("https://hooks.example.org/", ["JOB_QUEUED", "JOB_SUCCEEDED"])
        ledger.submit(SPEC)
        outbox = SqlOutbox(self.engine)
        (letter,) = outbox.take(1, lease_seconds=60)
        outbox.give_up(letter, 404, "the receiver answered 404")
        lost, claim = ledger.claim("driver", 0.0), ledger.claim("another", 1000)
        assert lost is not None
        assert claim is not None
        with pytest.raises(StaleClaim):
            ledger.renew(lost, 10)
        ledger.enter(claim, Phase.SEARCH)
        for proposal, seconds in ((MOVED, 0.3), (KEPT, 7.0)):
            trial = ledger.start_trial(claim, ledger.open_trial(claim, proposal).id)
            ledger.score_trial(claim, trial.id, Score(0, 10, 0.5, 0.1, seconds), last=False)
        for cached in (False, True):
            ledger.start_trial(claim, trial.id)
            ledger.score_trial(claim, trial.id, Score(1 + cached, 20 + cached, 0.5, 0.1, 100.0, cached), last=cached)
        correlation = {"steps": 10, "later_steps": 400, "finalists": True, "value": 0.8}
        ledger.enter(claim, Phase.FINALISTS)
        ledger.finish(claim, Phase.FINALISTS, {"evidence": {"correlations": [correlation]}})
        ledger.close(claim, JobState.SUCCEEDED)


@pytest.fixture(scope="module")
def house(migrated_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    engine = connect(f"sqlite:///{shutil.copy(migrated_file, tmp_path_factory.mktemp('house'))}")
    throttles = Throttle(0.001, 1), Throttle(0.001, 1)
    apis = [
        (Metrics(SqlRecord(engine, settled_seconds=0.0), throttle, ready=lambda: True, streams=lambda: 1), throttle)
        for throttle in throttles
    ]
    dispatcher = Dispatcher(MemoryLedger(), lambda claim: None, owner="o", slots=3, lease_seconds=1)  # type: ignore[arg-type, return-value]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metrics, "KEPT_SECONDS", 0.0)
        made = House(engine, tuple(apis), dispatcher)
        made.open()
        yield made
    engine.dispose()


@with_promtool
def test_promtool_finds_no_fault_in_the_names(house: House) -> None:
    for _, registry in house.registries:
        assert promtool("check", "metrics", text=generate_latest(registry).decode()) == ""


@dataclass(frozen=True)
class Prometheus:
    url: str
    targets: Mapping[str, list[str]]
    """Of each scrape."""

    def ask(self, path: str, **question: str) -> Any:
        answer = httpx2.get(f"{self.url}/api/v1/{path}", params=question).json()
        assert answer["status"] == "success", answer
        return answer["data"]

    def query(self, told: str) -> list[tuple[dict[str, str], float]]:
        found = self.ask("query", query=told)
        assert found["resultType"] == "vector", told
        return [(sample["metric"], float(sample["value"][1])) for sample in found["result"]]

    def wait(self, true: Callable[[], bool]) -> None:
        wait_until(true, 20.0)

    def wait_for_scrapes(self, more: int) -> None:
        """So many more of every target."""

        def fewest() -> int:
            counts = [count for _, count in self.query("count_over_time(stillhouse_info[1h])")]
            return int(min(counts)) if len(counts) == sum(map(len, self.targets.values())) else 0

        enough = fewest() + more
        self.wait(lambda: fewest() >= enough)


@contextmanager
def scraping(house: House, home: Path) -> Iterator[Prometheus]:
    """Prometheus with our configuration, but for where the targets are and how often they are looked at."""
    with ExitStack() as stack:
        targets: dict[str, list[str]] = {}
        for name, registry in house.registries:
            server = publish(Settings(home=home, metrics_port=0), registry)
            assert server is not None
            stack.callback(server.server_close)
            stack.callback(server.shutdown)
            targets.setdefault(name, []).append(f"127.0.0.1:{server.server_port}")
        config = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))
        config["global"] = {"scrape_interval": EVERY, "scrape_timeout": EVERY, "evaluation_interval": EVERY}
        for scrape in config["scrape_configs"]:
            del scrape["dns_sd_configs"]
            scrape["static_configs"] = [{"targets": targets[scrape["job_name"]]}]
        (home / CONFIG.name).write_text(yaml.safe_dump(config), encoding="utf-8")
        shutil.copy(RULES, home)
        place = f"127.0.0.1:{free_port()}"
        options = (
            f"--config.file={home / CONFIG.name}",
            f"--storage.tsdb.path={home}",
            f"--web.listen-address={place}",
        )
        log = stack.enter_context((home / "log").open("w+b"))
        process = subprocess.Popen([PROMETHEUS, *options], stdout=log, stderr=log)
        stack.callback(process.wait)
        stack.callback(process.terminate)

        def ready() -> bool:
            assert process.poll() is None, (home / "log").read_text(encoding="utf-8")
            try:
                return httpx2.get(f"http://{place}/-/ready").is_success
            except httpx2.TransportError:
                return False

        wait_until(ready, 20.0)
        yield Prometheus(f"http://{place}", targets)


@pytest.fixture(scope="module")
def prometheus(house: House, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """It has looked at everything before and after something happened."""
    with scraping(house, tmp_path_factory.mktemp("prometheus")) as found:
        found.wait_for_scrapes(3)
        house.live()
        found.wait_for_scrapes(3)
        yield found


def drawn(prometheus: Prometheus, panel: dict[str, Any]) -> dict[str, float]:
    """The latest value of every line, by its legend."""
    lines: dict[str, float] = {}
    for target in panel["targets"]:
        found = prometheus.query(target["expr"])
        for labels, value in found:
            legend = re.sub(r"\{\{(\w+)\}\}", lambda name, of=labels: of[name[1]], target["legendFormat"])  # type: ignore[misc]
            assert legend not in lines, "two lines of one name"
            lines[legend] = value
    return lines


@with_prometheus
def test_every_panel_draws_what_happened(prometheus: Prometheus) -> None:
    """Rates are those of a window that is longer than all there was: what there was, spread over 300 s."""
    about = pytest.approx
    apis, dispatchers = prometheus.targets["stillhouse-api"], prometheus.targets["stillhouse-dispatcher"]
    each = {f"stillhouse-api {place}": ANY for place in apis} | {f"stillhouse-dispatcher {dispatchers[0]}": ANY}
    found = {title: drawn(prometheus, panel) for title, panel in PANELS.items()}
    assert found == {
        "Replicas that are ready": {"ready": 2},
        "Version": {version("stillhouse"): 3},
        "Jobs by state": dict.fromkeys(JobState, 0) | {"SUCCEEDED": 1},
        "Age of the queue": {"oldest": 0},
        "From submission to the first claim": {"half": about(0.25), "95 %": about(0.475)},
        "Drivers": {"running": 0, "slots": 3},
        "Trouble with drivers": {
            "ended badly": about(1, abs=0.3),
            "leases expired": about(1, abs=0.3),
            "stale writes refused": about(1, abs=0.3),
        },
        "Scores in an hour": {"scores": about(3, abs=0.9)},
        "Seconds of training, from rung to rung": {"half": about(7.5), "95 %": about(264), "mean": about(107.3 / 3)},
        "Share of proposals moved into the budget": {"moved": about(0.5)},
        "Short training foretells long training": {"least": 0.8, "median": 0.8},
        "Requests a second": {"2xx": about(6 / 300, rel=0.3), "5xx": about(2 / 300, rel=0.3)},
        "Latency, 99 %": {"/v1/jobs": about(0.099)},
        "Share of answers of 500 and above": {"5xx": about(0.25)},
        "Time spent answering": {"under way": about(0.32 / 300, rel=0.3)},
        "Event streams": {"open": 2},
        "Refused for their rate": {"refused": about(2 / 300, rel=0.3), "keys": 2},
        "Connections to the database": {**dict.fromkeys(apis, ANY), "limit": 16},
        "Deliveries": {"waiting": 1, "dead": 1},
        "Outbox lag": {"oldest": about(0, abs=30)},
        "Memory": each,
        "Open files": each,
    }


@with_prometheus
def test_alerts_tell_of_what_happened_and_of_nothing_else(prometheus: Prometheus) -> None:
    def rules() -> dict[str, Any]:
        return {rule["name"]: rule for group in prometheus.ask("rules")["groups"] for rule in group["rules"]}

    prometheus.wait(lambda: rules()["StillhouseServerErrors"]["state"] == "pending")
    found = rules()
    assert [*found] == ALERTS
    assert {(rule["health"], rule.get("lastError")) for rule in found.values()} == {("ok", None)}
    assert {name: rule["state"] for name, rule in found.items() if rule["state"] != "inactive"} == {
        "StillhouseStaleWrites": "firing",
        "StillhouseServerErrors": "pending",
        "StillhouseOutboxDead": "firing",
    }
    (errors,) = found["StillhouseServerErrors"]["alerts"]
    assert errors["annotations"]["summary"] == "25% of all answers are 500 or above."
