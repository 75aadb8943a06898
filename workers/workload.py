"""What every worker of a job needs, once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from search.files import Files
from search.plugins import DatasetInfo
from search.spec import read_spec
from workers.ports import Artifacts

Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Workload:
    """
    `arrays` are shared by all workers of a node and never copied per trial: `train_images` `[views * n, ...]`,
    `train_labels`, `train_logits`, and the same three for `validation`. The test set is not among them.
    """

    spec: Mapping[str, Any]
    info: DatasetInfo
    files: Files
    artifacts: Artifacts
    teacher: str
    """Key of the artifact with the teacher's weights."""
    arrays: Arrays
    library: str | None = None
    """Key of the index of the library, where students are grafted from it."""
    elastic: str | None = None
    """Key of the elastic student's weights, where students are cut from those."""
    structure: tuple[str, ...] = ()
    """Keys of the networks whose widths were learned, one a level, where students are cut from those."""

    def device(self) -> str:
        return "cuda" if read_spec(self.spec).resources.gpus_per_trial else "cpu"
