"""The example that CONTRIBUTING.md gives is one that works."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
import torch
import yaml

from search.catalog import KINDS, Catalog
from search.errors import InvalidSpec
from search.part import read_part
from search.spec import Pick

TEXT = (Path(__file__).parents[1] / "CONTRIBUTING.md").read_text(encoding="utf-8")


def block(language: str) -> str:
    (found,) = re.findall(rf"^```{language}\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
    return str(found)


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The example as a distribution that pip has installed."""
    (tmp_path / "squared.py").write_text(block("python"), encoding="utf-8")
    information = tmp_path / "example-1.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: example\nVersion: 1.0\n", encoding="utf-8")
    groups = tomllib.loads(block("toml"))["project"]["entry-points"]
    lines = [f"[{group}]\n{name} = {target}\n" for group, points in groups.items() for name, target in points.items()]
    (information / "entry_points.txt").write_text("".join(lines), encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.timeout(30)  # it looks through all that is installed
def test_the_worked_example_is_found_checked_and_made(installed: None) -> None:
    catalog = Catalog()
    pick = read_part(Pick, yaml.safe_load(block("yaml"))["distill"])
    distiller = catalog.make("distillers", pick)
    loss = distiller.loss(torch.zeros(2, 3), torch.zeros(2, dtype=torch.int64), torch.full((2, 3), 2.0))
    assert loss.item() == pytest.approx(0.5 * 4.0)
    described = {entry.name: entry for entry in catalog.describe("distillers")}["squared"]
    assert described.summary.startswith("Mean squared distance")
    with pytest.raises(InvalidSpec) as caught:
        catalog.make("distillers", Pick(name="squared", options={"scale": -1}))
    assert [error.pointer for error in caught.value.errors] == ["/options/scale"]


def test_the_glossary_names_every_kind_of_plugin_and_no_word_twice() -> None:
    words = re.findall(r"^\| \*\*(.+?)\*\* \|", TEXT, re.MULTILINE)
    each = [word for entry in words for word in entry.split(", ")]
    assert len(each) == len(set(each))
    for kind in KINDS:
        assert kind in TEXT.lower()
