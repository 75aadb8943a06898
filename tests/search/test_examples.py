"""Every example says what its plugins take, whether its data is at hand or not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from search.files import Files
from search.plugins import DatasetInfo
from search.recipe import prepare
from search.spec import read_spec

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").rglob("*.yaml"))
CIFAR = DatasetInfo("cifar", tuple(map(str, range(100))), 3, 32, (0.5,) * 3, (0.25,) * 3, mirror=True, pad=4)


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_is_a_job(example: Path, tmp_path: Path) -> None:
    spec = read_spec(yaml.safe_load(example.read_text()))
    recipe = prepare(spec, Files(cache=tmp_path), info=replace(CIFAR, task=spec.task))
    assert set(recipe.distillers) == {"search", "finalists"}


@pytest.mark.parametrize("name", ["bkd", "pcl", "sequence", "srm"])
@pytest.mark.timeout(30)
def test_the_methods_of_papers_can_be_opened_on_their_networks(name: str, tmp_path: Path) -> None:
    """Built and surveyed, and the course of the least student opened."""
    [example] = [path for path in EXAMPLES if path.stem == name]
    spec = read_spec(yaml.safe_load(example.read_text()))
    assert spec.distiller("finalists").name == name
    prepare(spec, Files(cache=tmp_path), info=CIFAR).check()
