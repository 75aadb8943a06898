"""What the README and the guide tell people to type is typed."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from search.export.bundle import FILES
from search.spec import JobSpec
from service import latchkey
from service.cli import app
from service.takehome import STUDENT_FILES
from service.terminal import Exit
from tests.service.served import COST, WEIGHTS, claimed, finish_phase, listening, make_app, searched, taught
from workers.memory import MemoryArtifacts, MemoryLedger
from workers.ports import JobState, Phase

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs" / "guide").glob("*.md"))]
README = (ROOT / "README.md").read_text()
USUAL = "http://127.0.0.1:8431"
KEY = "sth_a-key-that-nobody-types"


class Swift(MemoryLedger):
    """Every job it takes is at a good end at once, as if a driver had done it."""

    def __init__(self, artifacts: MemoryArtifacts) -> None:
        super().__init__()
        self._artifacts = artifacts

    def submit(self, *args: Any, **options: Any) -> Any:
        record, new = super().submit(*args, **options)
        claim = claimed(self)
        taught(self, claim)
        winner = searched(self, claim)[1]
        self.finish(claim, Phase.SEARCH, {"finalists": [winner]})
        finalist = {"trial": winner, "accuracy": 0.88, "kl": 0.12}
        chosen = {"finalists": [finalist], "winner": winner, "accuracy": 0.87, "kl": 0.13}
        finish_phase(self, claim, Phase.FINALISTS, chosen)
        artifact = self._artifacts.put(f"jobs/{claim.job_id}/student/weights.safetensors", WEIGHTS)
        self.keep(claim, "student/weights.safetensors", artifact, "application/octet-stream")
        exported = {"trial": winner, "cost": COST, "bytes": len(WEIGHTS), "deviation": {"bundle": 0.0}}
        finish_phase(self, claim, Phase.EXPORT, exported)
        self.close(claim, JobState.SUCCEEDED)
        return record, new


@pytest.fixture
def url(tmp_path: Path) -> Iterator[str]:
    artifacts = MemoryArtifacts()
    latchkey.keep_in(tmp_path / ".stillhouse", KEY)
    with listening(make_app(tmp_path / ".stillhouse", Swift(artifacts), artifacts, api_key=KEY)) as url:
        yield url


def blocks(heading: str, language: str) -> list[str]:
    section = README.split(f"## {heading}\n")[1].split("\n## ")[0]
    return re.findall(rf"```{language}\n(.*?)```", section, flags=re.DOTALL)


def typed(command: list[str], url: str, folder: Path) -> str:
    shutil.copytree(ROOT / "examples", folder / "examples")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"STILLHOUSE_URL": url, "PATH": path, "PYTHONPATH": str(ROOT), "HOME": str(folder)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=folder, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.timeout(60)
def test_a_job_by_curl(url: str, tmp_path: Path) -> None:
    block = blocks("A job in five lines", "sh")[0]
    assert USUAL in block
    assert '"state":"SUCCEEDED"' in typed(["sh", "-euc", block.replace(USUAL, url)], url, tmp_path)


@pytest.mark.timeout(60)
def test_a_job_by_python(url: str, tmp_path: Path) -> None:
    (block,) = blocks("A job in five lines", "python")
    assert len(block.strip().splitlines()) <= 6
    assert "verdicts" in typed([sys.executable, "-c", block], url, tmp_path)
    assert (tmp_path / "student" / "weights.safetensors").read_bytes() == WEIGHTS


@pytest.mark.timeout(60)
def test_a_job_by_shell(url: str, tmp_path: Path) -> None:
    block = blocks("A job in five lines", "sh")[1]
    assert "fewer MACs" in typed(["sh", "-euc", block], url, tmp_path)
    assert (tmp_path / "student" / "weights.safetensors").read_bytes() == WEIGHTS


@pytest.mark.timeout(60)
def test_the_example_in_python(url: str, tmp_path: Path) -> None:
    out = typed([sys.executable, str(ROOT / "examples" / "submit.py")], url, tmp_path)
    assert "JOB_SUCCEEDED" in out
    assert "macs: 480 of at most 500" in out


@pytest.mark.timeout(60)
def test_every_command_that_is_written_down_exists() -> None:
    groups = {group.name for group in app.registered_groups}
    written = {
        (command, option)
        for page in PAGES
        for line in re.findall(r"stillhouse ([a-z]+ ?[^\n`|#)]*)", page.read_text())
        for first, *rest in [line.split()]
        for command in [f"{first} {rest[0]}" if first in groups and rest else first]
        for option in ["", *(word for word in rest if word.startswith("--"))]
    }
    assert {("pull", "--out"), ("keys create", "--scope")} <= written
    helps = {command: CliRunner().invoke(app, [*command.split(), "--help"]) for command, _ in written}
    assert [command for command, answer in helps.items() if answer.exit_code != 0] == []
    assert [pair for pair in written if pair[1] not in helps[pair[0]].stdout] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page: Path) -> None:
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", page.read_text()) if "://" not in link]
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_every_target_of_make_exists() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    code = "\n".join(re.findall(r"```sh\n.*?```|`[^`\n]+`", README, flags=re.DOTALL))
    named = set(re.findall(r"\bmake ([a-z]+)", code))
    assert {"demo", "test"} <= named <= targets


def test_the_guide_names_every_field_of_a_job_as_it_is() -> None:
    guide = (ROOT / "docs" / "guide" / "jobs.md").read_text().split("## Budget")[0]
    fields = JobSpec.model_fields
    for path in re.findall(
        r"`([a-z_]+(?:\.[a-z_]+)?)`", "".join(re.findall(r"^\| (.*?) \|", guide, flags=re.MULTILINE))
    ):
        head, _, tail = path.partition(".")
        assert head in fields, path
        assert not tail or tail in fields[head].annotation.model_fields, path  # type: ignore[union-attr]
    assert all(f"`{name}" in guide for name in fields if name != "version")


def test_the_guide_tells_every_exit_code() -> None:
    guide = (ROOT / "docs" / "guide" / "command-line.md").read_text()
    assert [int(code) for code in re.findall(r"^\| (\d+) \|", guide, flags=re.MULTILINE)] == list(Exit)


def test_the_readme_lists_the_files_of_a_student() -> None:
    (listing,) = re.findall(r"```\nstudent/\n(.*?)```", README, flags=re.DOTALL)
    assert {line.split()[0] for line in listing.splitlines()} == set(FILES) == STUDENT_FILES
