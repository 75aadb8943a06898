"""Filters and orders: read, written, and in SQL what they are in plain Python."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path as FilePath
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine
from starlette.testclient import TestClient

from search.trial import State
from service.app import create_app
from service.filters import (
    JOBS,
    TRIALS,
    And,
    By,
    Comparison,
    Expression,
    Kind,
    Not,
    Operator,
    Or,
    Path,
    Value,
    Vocabulary,
    holds,
    settled,
    written,
)
from service.grammar import DEEPEST, LONGEST, MOST_COMPARISONS, Unreadable, read_filter, read_order
from service.settings import Settings
from service.store.engine import latest_revision
from service.store.ports import Views
from service.store.record import SqlRecord
from service.store.values import Listing
from tests.databases import NEWEST_FIRST, OPERATOR
from tests.service.rows import BEGAN, put_jobs, put_trials
from tests.service.served import client_of
from tests.service.test_tenancy import Willing
from tests.service.views import job_field, paged, trial_field
from workers.memory import MemoryArtifacts

pytestmark = pytest.mark.timeout(60)  # the first test waits for Postgres to start

EVERYTHING = 10**6
VALUES: dict[Kind, st.SearchStrategy[Any]] = {
    Kind.TEXT: st.sampled_from(
        ["a", "b", "é", "O'Neill", 'say "no"', "back\\slash", "small_resnet", "digits", "", "%"]
    ),
    Kind.NUMBER: st.sampled_from([-2, 0, 1, 7, 2**40, 0.1, 0.5, 6.5, -0.0, 1e300, 40, 2**63 - 1]),
    Kind.MOMENT: st.integers(-3, 8).map(lambda micro: BEGAN + timedelta(microseconds=micro)),
    Kind.FLAG: st.booleans(),
}
NAMES = {"labels": ["team", "x.y", "NULL"], "cost": ["macs", "latency", "nothing"], "choices": ["keep", "layer1.width"]}


def comparisons(vocabulary: Vocabulary) -> st.SearchStrategy[Expression]:
    paths: list[Path] = [(name,) for name in vocabulary.fields]
    paths += [(family, name) for family in vocabulary.families for name in NAMES[family]]

    @st.composite
    def comparison(draw: st.DrawFn) -> Expression:
        path = draw(st.sampled_from(paths))
        field = vocabulary.field(path)
        equality = bool(field.words) or field.kind is Kind.FLAG
        value = draw(st.none() | (st.sampled_from(field.words) if field.words else VALUES[field.kind]))
        signs = [Operator.EQUAL, Operator.UNEQUAL] if equality or value is None else list(Operator)
        return Comparison(path, draw(st.sampled_from(signs)), value)

    return comparison()


def expressions(vocabulary: Vocabulary) -> st.SearchStrategy[Expression]:
    return st.recursive(
        comparisons(vocabulary),
        lambda parts: (
            parts.map(Not)
            | st.lists(parts, min_size=2, max_size=3).map(lambda some: And(tuple(some)))
            | st.lists(parts, min_size=2, max_size=3).map(lambda some: Or(tuple(some)))
        ),
        max_leaves=6,
    )


def orders(vocabulary: Vocabulary) -> st.SearchStrategy[tuple[By, ...]]:
    paths: list[Path] = [(name,) for name in vocabulary.fields]
    paths += [(family, name) for family in vocabulary.families for name in NAMES[family]]
    keys = st.lists(st.sampled_from(paths), max_size=3, unique=True)
    return keys.flatmap(
        lambda some: st.tuples(*(st.booleans().map(lambda falling, path=path: By(path, falling)) for path in some))
    )


VOCABULARIES = st.sampled_from([JOBS, TRIALS])


@given(VOCABULARIES.flatmap(lambda known: st.tuples(st.just(known), expressions(known))))
def test_what_is_written_is_read_as_the_same(case: tuple[Vocabulary, Expression]) -> None:
    vocabulary, expression = case
    assert read_filter(written(expression), vocabulary) == expression


@given(VOCABULARIES, st.text(alphabet="()\"\\'<>=!. \tandANDORNOTstate=labels0123456789-:TZ\x00é\ud800", max_size=60))
@example(JOBS, "\ud800")
def test_any_text_is_read_or_refused(vocabulary: Vocabulary, text: str) -> None:
    for read in (read_filter, read_order):
        try:
            read(text, vocabulary)
        except Unreadable:
            continue


def test_the_grammar() -> None:
    state = Comparison(("state",), Operator.EQUAL, "FAILED")
    macs = Comparison(("cost", "macs"), Operator.LESS, 200_000_000)
    for text, meant in (
        ("", None),
        ("  \n", None),
        ("state=FAILED", state),
        ("state = 'FAILED'", state),
        ("((state = FAILED))", state),
        ("state=FAILED AND macs<2e8", And((state, macs))),
        ("state=FAILED OR (NOT cost.macs<2e8)", Or((state, Not(macs)))),
        ('choices."layer1.width" >= -0.5', Comparison(("choices", "layer1.width"), Operator.AT_LEAST, -0.5)),
        ("cached != true", Comparison(("cached",), Operator.UNEQUAL, True)),
        ("accuracy = null", Comparison(("accuracy",), Operator.EQUAL, None)),
    ):
        assert read_filter(text, TRIALS) == meant, text
    at = datetime(2026, 1, 5, 7, 30, tzinfo=UTC)
    for text in ("created_at >= 2026-01-05T09:30:00+02:00", "created_at >= '2026-01-05T07:30:00.000Z'"):
        assert read_filter(text, JOBS) == Comparison(("created_at",), Operator.AT_LEAST, at)
    assert read_order(" priority desc,created_at ", JOBS) == (By(("priority",), True), By(("created_at",), False))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("sate = FAILED", 'there is no field `sate` here, did you mean "state"? (at character 1)'),
        ("number = 1 AND state = FALED", 'never `FALED`, did you mean "FAILED"? (at character 24)'),
        ("state = failed", 'did you mean "FAILED"?'),
        ("state < FAILED", "compared by = and != only"),
        ("accuracy > null", "null is compared by = and != only (at character 12)"),
        ("accuracy > 'x'", "`accuracy` is compared with a number, not with `'x'` (at character 12)"),
        ("accuracy >", "a number is expected here (at character 11)"),
        ("accuracy 1", "expected after `accuracy` (at character 10)"),
        ("(number = 1", "a parenthesis is missing: `)` (at character 12)"),
        ("number = 1)", "`)` is not expected here"),
        ("number = 1 number = 2", "write AND or OR before it (at character 12)"),
        ("number = 1 AND number = 2 OR number = 3", "put parentheses around"),
        ("number = 1 AND", "the name of a field is expected here (at character 15)"),
        ("NOT", "the name of a field is expected here"),
        ("number = 1e400", "larger than any number of ours"),
        (f"number = {2**63}", "larger than any number of ours"),
        (f"number = {'1' * 33}", "at most 32 characters"),
        ("number = 0x10", "no meaning"),
        ("number = 1; drop table jobs", "`;` has no meaning here (at character 11)"),
        ('key = "a', "has no end"),
        ('key = "a\x00b"', "control characters"),
        ("choices.'x' = 1", "`.` has no meaning here"),
        ("a.b.c = 1", "there is no field"),
        ("é = 1", "`é` has no meaning here"),
        ("(" * (DEEPEST + 1) + "number = 1" + ")" * (DEEPEST + 1), "deep at most"),
        ("NOT " * (DEEPEST + 1) + "number = 1", "deep at most"),
        (" OR ".join(["number = 1"] * (MOST_COMPARISONS + 1)), "at most 50 comparisons"),
        ("number = 1" + " " * LONGEST, f"at most {LONGEST} characters"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(text: str, said: str) -> None:
    with pytest.raises(Unreadable) as refused:
        read_filter(text, TRIALS)
    assert said in refused.value.message


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("accuracy down", "is not a field to order by"),
        ("accuracy,", "is not a field to order by"),
        ("macs, cost.macs", "`cost.macs` stands twice"),
        ("mac", 'did you mean "macs"?'),
        ("number, kl, step, rung, seconds", "at most 4"),
    ],
)
def test_an_order_that_is_wrong_is_refused(text: str, said: str) -> None:
    with pytest.raises(Unreadable) as refused:
        read_order(text, TRIALS)
    assert said in refused.value.message


def test_a_time_that_is_none_is_refused() -> None:
    for text in ("2026-13-01T00:00:00Z", "0001-01-01T00:00:00+23:59", "2026-01-01", "2026-01-01T00:00:00"):
        with pytest.raises(Unreadable):
            read_filter(f'created_at > "{text}"', JOBS)


def listed(views: Views, job_id: str, vocabulary: Vocabulary, listing: Listing) -> tuple[list[Any], Any]:
    if vocabulary is TRIALS:
        page = views.trials(job_id, listing)
        return list(page.items), page.after
    found = views.jobs(listing)
    return [record for record, _ in found.items], found.after


@pytest.fixture
def views(engine: Engine) -> tuple[Views, str]:
    """A record of 24 jobs, the first with 40 trials; others' are beside them."""
    put_jobs(engine, 24)
    first = put_jobs(engine, 2, seed=1)
    put_trials(engine, first[0], 40)
    put_trials(engine, first[1], 5, seed=1)
    return SqlRecord(engine).views(OPERATOR), first[0]


FEW = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


LISTS = pytest.mark.parametrize(("vocabulary", "field_of"), [(JOBS, job_field), (TRIALS, trial_field)])


@LISTS
def test_sql_and_plain_python_mean_the_same_rows(
    views: tuple[Views, str], vocabulary: Vocabulary, field_of: Callable[[Any, Path], Value]
) -> None:
    order = settled((), vocabulary)
    rows, _ = listed(*views, vocabulary, Listing(order, EVERYTHING))
    assert len(rows) >= 26

    @FEW
    @given(expressions(vocabulary))
    def same(expression: Expression) -> None:
        found, _ = listed(*views, vocabulary, Listing(order, EVERYTHING, expression))
        assert found == [row for row in rows if holds(expression, partial(field_of, row))]

    same()


@LISTS
def test_pages_of_any_order_hold_each_row_once(
    views: tuple[Views, str], vocabulary: Vocabulary, field_of: Callable[[Any, Path], Value]
) -> None:
    rows, _ = listed(*views, vocabulary, Listing(settled((), vocabulary), EVERYTHING))

    @settings(FEW, max_examples=25)
    @given(orders(vocabulary), st.integers(7, 30))
    def walked(order: tuple[By, ...], size: int) -> None:
        whole, after, seen = settled(order, vocabulary), None, list[Any]()
        while True:
            found, after = listed(*views, vocabulary, Listing(whole, size, None, after))
            seen += found
            if after is None:
                break
        assert seen == paged(rows, Listing(whole, EVERYTHING), field_of).items

    walked()


def test_pages_do_not_shift_when_rows_are_added(views: tuple[Views, str], engine: Engine) -> None:
    kept, _ = views
    order = settled((By(("priority",), True), By(("labels", "team"), False)), JOBS)
    whole = [record.id for record, _ in kept.jobs(Listing(order, EVERYTHING)).items]
    first = kept.jobs(Listing(order, 9))
    put_jobs(engine, 8, seed=2)
    second = kept.jobs(Listing(order, EVERYTHING, None, first.after))
    seen = [record.id for page in (first, second) for record, _ in page.items]
    assert [job_id for job_id in seen if job_id in whole] == whole


@pytest.fixture
def http(views: tuple[Views, str], engine: Engine, tmp_path: FilePath) -> Iterator[tuple[TestClient, str]]:
    app = create_app(
        Settings(home=tmp_path, auth="off"),
        SqlRecord(engine),
        MemoryArtifacts(),
        Willing(),
        schema_version=latest_revision(),
    )
    with client_of(app) as client:
        yield client, views[1]


def test_lists_are_filtered_ordered_and_paged_over_http(http: tuple[TestClient, str]) -> None:
    client, job_id = http
    path = f"/v1/jobs/{job_id}/trials"
    asked = {"filter": "state = COMPLETED OR rung >= 1", "order_by": "macs desc, accuracy", "page_size": "5"}
    whole = client.get(path, params=asked | {"page_size": "500"}).json()["trials"]
    assert all(trial["state"] == "COMPLETED" or len(trial["scores"]) > 1 for trial in whole)
    seen, token = [], ""
    while True:
        page = client.get(path, params=asked | {"page_token": token}).json()
        seen += page["trials"]
        if not (token := page["next_page_token"]):
            break
        last = token
    assert seen == whole
    assert len(whole) > 10
    for change in ({"filter": "rung >= 1"}, {"order_by": "macs"}, {"state": "FAILED"}):
        answer = client.get(path, params=asked | {"page_token": last} | change)
        assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, "/page_token")
    both = client.get(path, params={"filter": "rung >= 1", "state": "STOPPED"}).json()["trials"]
    assert {trial["state"] for trial in both} == {State.STOPPED}
    found = client.get("/v1/jobs", params={"filter": 'labels.team = "a"', "order_by": "priority desc"}).json()["jobs"]
    assert {job["labels"]["team"] for job in found} == {"a"}
    assert [job["priority"] for job in found] == sorted((job["priority"] for job in found), reverse=True)


def test_a_wrong_filter_is_a_problem_with_a_pointer_and_what_is_allowed(http: tuple[TestClient, str]) -> None:
    client, job_id = http
    for path, name, text in (
        ("/v1/jobs", "filter", "stat = QUEUED"),
        ("/v1/jobs", "order_by", "stat"),
        (f"/v1/jobs/{job_id}/trials", "filter", "stat = FAILED"),
    ):
        answer = client.get(path, params={name: text})
        assert (answer.status_code, answer.json()["code"]) == (422, "INVALID_PARAMETER")
        [error] = answer.json()["errors"]
        assert (error["location"], error["pointer"]) == ("query", f"/{name}")
        assert 'did you mean "state"?' in error["message"]
        assert "state" in error["allowed"]


INJECTIONS = [
    *(
        "' OR '1'='1",
        "1=1",
        "1 OR 1=1",
        "id = 'x' OR 1=1",
        "id = \"x' OR '1'='1\"",
        "id = 'x'; DROP TABLE jobs",
        "id = 'x'--",
    ),
    *(
        "id = 'x' /*",
        "id = 'x' UNION SELECT digest FROM keys",
        'id = "\\" OR 1=1"',
        "id = (SELECT id FROM jobs)",
        "id LIKE '%'",
    ),
    *(
        'labels."x\' OR 1=1" = "a"',
        'labels."x\\"" = "a"',
        'labels."$.*" = "a"',
        "labels.team' = 'a'",
        'labels."{}" = "a"',
    ),
    *("spec = 'a'", "tenant != 'default'", "owner = 'x'", "token = 1", "idempotency_key != null", "password = 'a'"),
    *(
        "priority = 1 COLLATE NOCASE",
        "priority = pg_sleep(5)",
        "priority = randomblob(9)",
        "id = $1",
        "id = :tenant",
        "id = ?",
    ),
    *('id = "%s"', 'id = "%(tenant)s"', 'id = "\\\\\' OR 1=1"', 'teacher = "\u02bc OR 1=1"', 'teacher = "＇ OR 1=1"'),
]


def test_injections_are_refused_or_are_texts_that_nothing_equals(http: tuple[TestClient, str]) -> None:
    client, job_id = http
    whole = ids(client)
    for text in INJECTIONS:
        for path, name in (("/v1/jobs", "filter"), ("/v1/jobs", "order_by"), (f"/v1/jobs/{job_id}/trials", "filter")):
            answer = client.get(path, params={name: text})
            assert answer.status_code in (200, 422), (text, answer.text)
            if answer.status_code == 200:
                assert answer.json()[path.rpartition("/")[2]] == [], text
    assert ids(client) == whole


def ids(client: TestClient) -> list[str]:
    return [job["id"] for job in client.get("/v1/jobs", params={"page_size": 500}).json()["jobs"]]


def test_the_newest_come_first_when_nobody_asks(http: tuple[TestClient, str], views: tuple[Views, str]) -> None:
    client, _ = http
    listed = [job["id"] for job in client.get("/v1/jobs").json()["jobs"]]
    assert listed == [record.id for record, _ in views[0].jobs(Listing(NEWEST_FIRST, 50)).items]
