"""The OpenAPI document: up to date, complete, and true."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest

from service.client import Client
from service.openapi import COMMAND, SNAPSHOT, document

DOCUMENT = document()
OPERATIONS = {
    operation["operationId"]: (method, path, operation)
    for path, operations in DOCUMENT["paths"].items()
    for method, operation in operations.items()
}


def test_the_committed_description_is_up_to_date() -> None:
    assert json.loads(SNAPSHOT.read_text()) == DOCUMENT, (
        f"the API has changed: run `{COMMAND}`, and review the difference"
    )


def test_each_operation_has_a_name_of_its_own_a_summary_and_a_tag() -> None:
    assert len(OPERATIONS) == sum(len(operations) for operations in DOCUMENT["paths"].values())
    for name, (_, _, operation) in OPERATIONS.items():
        assert operation["description"], name
        assert operation["tags"], name


@pytest.mark.parametrize(
    "name",
    [
        "create",
        "list",
        "get",
        "trials",
        "events",
        "artifacts",
        "cancel",
        "trial",
        "curve",
        "pareto",
        "sensitivity",
        "timeline",
        "logs",
    ],
)
def test_operations_on_jobs_are_called_as_in_the_client(name: str) -> None:
    with Client("http://localhost:1") as client:
        assert callable(getattr(client.jobs, name))
    assert f"jobs.{name}" in OPERATIONS


@pytest.mark.parametrize("name", [name for name in OPERATIONS if name.startswith("webhooks.")])
def test_operations_on_webhooks_are_called_as_in_the_client(name: str) -> None:
    with Client("http://localhost:1") as client:
        assert callable(getattr(client.webhooks, name.removeprefix("webhooks.")))


@pytest.mark.parametrize("name", OPERATIONS)
def test_each_operation_tells_its_errors(name: str) -> None:
    _, path, operation = OPERATIONS[name]
    answers = operation["responses"]
    problems = {status for status in answers if int(status) >= 400}
    assert {"400", "403", "500"} <= problems
    open_to_all = path in ("/healthz", "/readyz", "/problems/{name}")
    assert ("401" in problems) == bool(operation.get("security")) == (not open_to_all)
    if "{" in path:
        assert "404" in problems
    if operation.get("parameters") and any(found["in"] in ("query", "header") for found in operation["parameters"]):
        assert "422" in problems
    for status in problems:
        assert set(answers[status]["content"]) == {"application/problem+json"}, status
        assert answers[status]["content"]["application/problem+json"]["examples"], status


def resolved(schema: Any) -> dict[str, Any]:
    return {**schema, "components": DOCUMENT["components"]}


def examples() -> list[tuple[str, Any, Any]]:
    found = []
    for name, (_, _, operation) in OPERATIONS.items():
        bodies = {"request": operation["requestBody"]} if "requestBody" in operation else {}
        for status, answer in (bodies | operation["responses"]).items():
            for content in answer.get("content", {}).values():
                shown = [content["example"]] if "example" in content else []
                shown += [example["value"] for example in content.get("examples", {}).values()]
                found += [(f"{name} {status}", content["schema"], example) for example in shown]
    return found


def test_every_example_is_an_example_of_its_schema() -> None:
    cases = examples()
    assert len(cases) > 50
    for label, schema, example in cases:
        try:
            jsonschema.validate(example, resolved(schema), jsonschema.Draft202012Validator)
        except jsonschema.ValidationError as error:
            pytest.fail(f"{label}: {error.message} at {list(error.path)}")


def test_every_success_has_an_example() -> None:
    for name, (_, _, operation) in OPERATIONS.items():
        for status, answer in operation["responses"].items():
            for kind, content in answer.get("content", {}).items():
                if int(status) < 300 and kind != "application/octet-stream":
                    assert "example" in content, f"{name} {status} {kind}"


def test_links_lead_from_a_new_job_to_what_can_be_done_with_it() -> None:
    links = OPERATIONS["jobs.create"][2]["responses"]["201"]["links"]
    for link in links.values():
        _, path, _ = OPERATIONS[link["operationId"]]
        assert set(link["parameters"]) == {"job_id"}
        assert "{job_id}" in path


def test_the_body_of_a_submission_is_the_spec() -> None:
    body = OPERATIONS["jobs.create"][2]["requestBody"]
    assert body["content"]["application/json"]["schema"] == {"$ref": "#/components/schemas/JobSpec"}
    spec = DOCUMENT["components"]["schemas"]["JobSpec"]
    assert set(spec["required"]) == {"teacher", "dataset", "budget"}
    assert spec["additionalProperties"] is False


def test_no_reference_leads_nowhere() -> None:
    text = json.dumps(DOCUMENT)
    names = {part.split('"')[0] for part in text.split("#/components/schemas/")[1:]}
    assert names <= set(DOCUMENT["components"]["schemas"])
    assert "HTTPValidationError" not in names, "every 422 is a problem document"
