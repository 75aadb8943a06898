"""
Ray Tune with Optuna's TPE as the two usually meet: widths are drawn, every trial is trained for the same short time and
reports its accuracy, less a penalty where it costs more than the limit.

Nothing is projected, so trials may be spent on networks that do not fit. Ray runs on this machine, one trial at a time,
and is shut down at the end; what it needs itself is not counted, only what its trials compute.
"""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# Read by Ray when it is imported.
os.environ.update(
    RAY_AIR_NEW_OUTPUT="0",
    RAY_CHDIR_TO_TRIAL_DIR="0",
    RAY_ENABLE_UV_RUN_RUNTIME_ENV="0",
    RAY_USAGE_STATS_ENABLED="0",
    TUNE_DISABLE_AUTO_CALLBACK_LOGGERS="1",
)

import optuna
import ray
import torch
from ray import tune
from ray.tune.search import ConcurrencyLimiter
from ray.tune.search.optuna import OptunaSearch

from benchmarks.final import SCHEDULE, Compute, Found, Options, distil, looked_at
from benchmarks.teachers import Bench, kept
from search.budget import Budget
from search.space import Candidate
from search.surgery import Survey
from search.training import Pupil


def tune_tpe(bench: Bench, budget: Budget, seed: int, compute: Compute, options: Options) -> Found:
    """The best trial within the budget, with the weights of its short training."""
    sites = [site for site in bench.survey.space.sites if site.kind == "width"]
    for name in ("ray", "ray.tune"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    trials = max(1, options.samples // (options.trial_steps * SCHEDULE.batch_size))
    folder = Path(tempfile.mkdtemp(prefix="sth-tune-"))
    ray.init(
        address="local",
        num_cpus=1,
        include_dashboard=False,
        logging_level="ERROR",
        log_to_driver=False,
        object_store_memory=2**30,
        _temp_dir=str(folder),
    )
    try:
        spec = bench.spec
        trainable = tune.with_parameters(
            _Trial,
            teacher=(spec.teacher.name, spec.dataset.name, spec.search.seed),
            budget=budget,
            seed=seed,
            options=options,
            folder=folder,
        )
        searcher = OptunaSearch(metric="objective", mode="max", sampler=optuna.samplers.TPESampler(seed=seed))
        tuner = tune.Tuner(
            tune.with_resources(trainable, {"cpu": 1}),
            param_space={site.name: tune.randint(0, len(site.choices)) for site in sites},
            tune_config=tune.TuneConfig(
                search_alg=ConcurrencyLimiter(searcher, max_concurrent=1), num_samples=trials, reuse_actors=True
            ),
            run_config=tune.RunConfig(
                name="tune",
                storage_path=str(folder),
                verbose=0,
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            ),
        )
        ended = [result.metrics for result in tuner.fit() if result.error is None and result.metrics]
        compute.samples += sum(metrics["samples"] for metrics in ended)
        compute.seconds += sum(metrics["seconds"] for metrics in ended)
        fitting = [metrics for metrics in ended if metrics["fits"]]
        note = f"{len(fitting)} of {len(ended)} trials within the budget"
        if not fitting:
            nearest = min(metrics["excess"] for metrics in ended)
            return Found(None, f"{note}, the nearest {nearest:.1f} times its limit")
        best = max(fitting, key=lambda metrics: metrics["accuracy"])
        pupil = Pupil(bench.survey.graft(_candidate(bench.survey, best["config"])))
        pupil.restore((folder / f"{best['trial_id']}.safetensors").read_bytes())
        return Found(pupil.model, note)
    finally:
        ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


def _candidate(survey: Survey, config: Mapping[str, int]) -> Candidate:
    """Of the choices drawn, by their number; blocks stay."""
    return survey.space.candidate(
        {
            site.name: site.choices[config[site.name]] if site.name in config else site.full
            for site in survey.space.sites
        }
    )


class _Trial(tune.Trainable):  # type: ignore[misc]
    """An actor that carries out one trial after another, each in one step."""

    def setup(
        self,
        config: dict[str, Any],
        *,
        teacher: tuple[str, str, int] = ("", "", 0),
        budget: Budget | None = None,
        seed: int = 0,
        options: Options | None = None,
        folder: Path | None = None,
    ) -> None:
        assert budget is not None
        assert options is not None
        assert folder is not None
        torch.set_num_threads(1)
        self._bench, self._budget, self._seed, self._options = kept(*teacher), budget, seed, options
        self._folder = folder
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._candidate = _candidate(self._bench.survey, new_config)
        return True

    def step(self) -> dict[str, Any]:
        bench, compute = self._bench, Compute()
        cost = {metric: int(values[0]) for metric, values in bench.survey.costs([self._candidate]).items()}
        excess = max(cost[metric] / limit for metric, limit in self._budget.limits.items())
        with compute.timed():
            student = bench.survey.graft(self._candidate)
        distil(student, bench, self._seed, self._options.trial_steps, compute)
        reached = looked_at(student, bench, compute).accuracy
        (self._folder / f"{self.trial_id}.safetensors").write_bytes(Pupil(student).checkpoint())
        return {
            "objective": reached - self._options.penalty * max(0.0, excess - 1),
            "accuracy": reached,
            "fits": self._budget.holds(cost),
            "excess": excess,
            "samples": compute.samples,
            "seconds": compute.seconds,
            "done": True,
        }
