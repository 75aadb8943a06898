"""
Nothing twice: what a network scored in one setting is kept beside its weights, for this job and for all later ones.

A checkpoint's key names all that decides it: the network, where its weights came from, and every step it has walked
since. Whoever comes to the same key finds the score and goes on from the same weights. Two jobs that train the same
network at once publish the same twice, which harms nobody.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from search.errors import NotFound
from search.space import Space
from search.spec import JobSpec, Trained
from workers.assignment import Done, Message
from workers.ports import Artifacts

_VERSION = 1
"""Of how networks are cut, trained and scored; part of every key. It rises when the same words come to mean others."""


@dataclass(frozen=True)
class Scores:
    """
    The scores of one setting: a job's spec, its teacher's weights, its dataset and the donor of its students' weights,
    the last three by their keys.
    """

    artifacts: Artifacts
    spec: JobSpec
    space: Space
    teacher: str
    dataset: str
    donor: str = "slice"

    def key(self, choices: Mapping[str, int], rung: int, *, seed: int | None = None) -> str:
        """Of the checkpoint that a network leaves at a rung, trained with the search's seed or with another."""
        search = self.spec.search
        return _key(
            self._origin(choices, search.seed if seed is None else seed),
            {"steps": search.rungs[: rung + 1], "training": search.training.model_dump(mode="json")},
        )

    def final_key(self, choices: Mapping[str, int], rung: int, step: int) -> str:
        """Of the checkpoint at `step` of the long training of a network that came as far as `rung` in the search."""
        finalists = self.spec.finalists
        return _key(
            {"from": self.key(choices, rung), "seed": self.spec.search.seed, "distill": self._distill("finalists")},
            {"step": step, "of": finalists.steps, "training": finalists.training.model_dump(mode="json")},
        )

    def find(self, key: str) -> Done | None:
        """
        What is kept under a checkpoint's key, the score told as if it had taken no time. None when there is nothing, or
        when score and checkpoint are not both there and whole: then it is trained again, and mended by that.
        """
        try:
            kept = _Kept.model_validate_json(self.artifacts.get(_score_key(key)))
            whole = hashlib.sha256(self.artifacts.get(key)).hexdigest() == kept.checkpoint
        except (NotFound, ValidationError):
            return None
        return Done(step=kept.step, accuracy=kept.accuracy, kl=kept.kl, seconds=0.0) if whole else None

    def _origin(self, choices: Mapping[str, int], seed: int) -> dict[str, Any]:
        search = self.spec.search
        return {
            "teacher": self.teacher,
            "dataset": self.dataset,
            "network": self.space.network(choices),
            "donor": self.donor,
            "views": [search.views, search.seed],
            "seed": seed,
            "distill": self._distill("search"),
            "calibration_batches": search.calibration_batches,
            "device": "cuda" if self.spec.resources.gpus_per_trial else "cpu",
        }

    def _distill(self, part: Trained) -> dict[str, Any]:
        return self.spec.distiller(part).model_dump(mode="json")


class _Kept(Message):
    step: int
    accuracy: float
    kl: float
    checkpoint: str
    """SHA-256 of the checkpoint that was scored."""


def keep(artifacts: Artifacts, key: str, checkpoint: bytes, done: Done) -> None:
    """Stores a checkpoint and then its score, which is what makes it known."""
    stored = artifacts.put(key, checkpoint)
    kept = _Kept(step=done.step, accuracy=done.accuracy, kl=done.kl, checkpoint=stored.sha256)
    artifacts.put(_score_key(key), kept.model_dump_json().encode())


def _key(origin: Mapping[str, Any], walked: Mapping[str, Any]) -> str:
    decides = json.dumps([_VERSION, origin, walked], sort_keys=True)
    return f"scores/{hashlib.sha256(decides.encode()).hexdigest()[:32]}.safetensors"


def _score_key(key: str) -> str:
    return f"{key.removesuffix('.safetensors')}.json"
