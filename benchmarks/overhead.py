"""
What REST, the record and Ray Tune cost beside the trials themselves.

    python -m benchmarks.overhead [long] [short] [workers]

`long`: trials of ten seconds, through a server and in a bare loop of as many processes, which run side by side: a trial
sleeps nearly all of its time. `short`: a thousand trials that train for a millisecond, end to end. `workers`: real
trials, with one worker and with two. Without a name all three are measured.

A trial is what it always is: cut from the teacher, trained, its batch norms recalibrated, scored on validation (250
images), its checkpoint synced to disk. The network is the smallest there is, and the pace of its training is set by a
distiller that sleeps, which comes in by an entry point as any plugin does.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from search.distillers.hinton import Hinton

if TYPE_CHECKING:
    from torch import Tensor

    from service.client import Client
    from service.documents import JobDocument
    from workers.assignment import Assignment
    from workers.workload import Workload

WORKERS = 2
LONG, SHORT, REAL = 20, 1000, 12
"""Trials of each kind."""

SMALLEST: Mapping[str, Any] = {
    "teacher": {"name": "small_resnet", "options": {"width": 8, "depth": 1}, "epochs": 1},
    "dataset": {"name": "digits", "options": {"size": 8}},
    "budget": {"macs": "30%"},
    "space": {"divisor": 1},
    "finalists": {"count": 1, "steps": 1},
    "export": {"onnx": False},
}
SEARCH: Mapping[str, Any] = {
    "strategy": {"name": "random"},
    "views": 1,
    "repeats": 0,
    "calibration_batches": 1,
    "training": {"batch_size": 8},
}


class Paced(Hinton):
    """Distillation that sleeps in every step."""

    class Options(Hinton.Options):
        seconds: float = Field(0.0, ge=0)
        """Of sleep in a step."""

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        self._seconds = options.seconds

    def loss(self, logits: Tensor, labels: Tensor, teacher_logits: Tensor | None) -> Tensor:
        time.sleep(self._seconds)
        return super().loss(logits, labels, teacher_logits)


@contextmanager
def serving(folder: Path) -> Iterator[Client]:
    """A server of its own with its state in `folder`, which knows the plugin."""
    from service.client import Client

    installed = folder / "plugins" / "paced-1.dist-info"
    installed.mkdir(parents=True)
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: paced\nVersion: 1\n")
    (installed / "entry_points.txt").write_text("[stillhouse.distillers]\npaced = benchmarks.overhead:Paced\n")
    sys.path.insert(0, str(installed.parent))  # for the bare loop, too
    os.environ["PYTHONPATH"] = os.pathsep.join([str(installed.parent), str(Path(__file__).parents[1])])
    process = subprocess.Popen(
        [sys.executable, "-m", "service.cli", "serve", "--home", str(folder / "home"), "--port", "0", "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert process.stdout is not None
        lines = iter(process.stdout.readline, "}\n")  # of an indented document
        url = str(json.loads("".join(lines) + "}")["url"])
        with Client(url) as client:
            yield client
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


@dataclass(frozen=True)
class Finished:
    """`seconds` from the request to the end of the job, `search` those of its search phase, by the ledger."""

    job: JobDocument
    seconds: float
    search: float
    scored: Sequence[float]
    """When each trial was scored, in seconds, in order."""

    @property
    def pace(self) -> float:
        """Trials a second after the first of every worker, so that their start does not count."""
        first = self.job.spec["resources"]["concurrent_trials"]
        return (len(self.scored) - first) / (self.scored[-1] - self.scored[first - 1])


def finish(client: Client, spec: Mapping[str, Any]) -> Finished:
    began = time.monotonic()
    job = client.jobs.wait(client.jobs.create(spec).id)
    seconds = time.monotonic() - began
    times: dict[str, float] = {}
    scored, after = [], 0
    while events := client.jobs.events(job.id, after):
        after = events[-1].seq
        for event in events:
            if event.data.get("phase") == "search" and event.kind in ("PHASE_ENTERED", "PHASE_FINISHED"):
                times[event.kind] = event.at.timestamp()
            if event.kind == "TRIAL_SCORED":
                scored.append(event.at.timestamp())
    return Finished(job, seconds, times["PHASE_FINISHED"] - times["PHASE_ENTERED"], scored)


def small_job(trials: int, steps: int, seconds: float, workers: int = WORKERS) -> dict[str, Any]:
    """Trials of so many steps, each of which sleeps for so many seconds."""
    return {
        **SMALLEST,
        "distill": {"name": "paced", "options": {"seconds": seconds}},
        "search": {**SEARCH, "trials": trials, "rungs": [steps]},
        "resources": {"concurrent_trials": workers},
    }


def real_job(workers: int) -> dict[str, Any]:
    """Students of a fifth of `small_resnet`; both jobs train them alike, and neither finds the other's scores."""
    return {
        "teacher": {"name": "small_resnet", "epochs": 1},
        "dataset": {"name": "cluttered_digits", "options": {"train": 2000, "validation": 1000, "test": 100}},
        "budget": {"macs": "20%"},
        "space": {"divisor": 2},
        "distill": {"name": "hinton", "options": {"temperature": 4 + workers / 1000}},
        "search": {"strategy": {"name": "random"}, "views": 1, "trials": REAL, "rungs": [40]},
        "finalists": {"count": 1, "steps": 1},
        "export": {"onnx": False},
        "resources": {"concurrent_trials": workers},
    }


def workload_of(spec: Mapping[str, Any], home: Path) -> tuple[Workload, list[Assignment]]:
    """What the workers of a job are given, whose teacher the server has already, and its assignments."""
    from search.files import Files
    from search.recipe import prepare
    from search.spec import read_spec
    from workers.artifacts import FolderArtifacts
    from workers.assignment import Assignment
    from workers.results import TeacherResult
    from workers.teaching import training_arrays
    from workers.workload import Workload

    read, files, artifacts = read_spec(spec), Files(cache=home / "cache"), FolderArtifacts(home / "artifacts")
    recipe = prepare(read, files)
    kept = artifacts.get(f"teachers/{recipe.teacher_key}/teacher.json")
    result = TeacherResult.model_validate_json(kept)
    document, arrays = read.model_dump(mode="json"), training_arrays(recipe, result, artifacts)
    workload = Workload(document, recipe.info, files, artifacts, result.weights, arrays)
    strategy = recipe.open_strategy(found := recipe.survey(recipe.build_teacher()), recipe.levels(found))
    asked = [strategy.ask() for _ in range(read.search.trials)]
    (steps,) = read.search.rungs
    return workload, [
        Assignment(
            trial=f"bare-{number}",
            number=number,
            choices=proposal.candidate.as_dict(),
            schedule="search",
            start=0,
            stop=steps,
            cosine=(0, steps),
            read=None,
            fresh=False,
            seed=read.search.seed,
            write=f"bare/{number}.safetensors",
        )
        for number, proposal in enumerate(asked)
        if proposal is not None
    ]


def bare(workload: Workload, assignments: Sequence[Assignment]) -> None:
    """A process of the bare loop: one trial after the other."""
    import torch

    from workers.scoring import Scorer

    torch.set_num_threads(1)
    scorer = Scorer(workload)
    for assignment in assignments:
        for _ in scorer.perform(assignment):
            pass


def bare_seconds(workload: Workload, assignments: Sequence[Assignment]) -> float:
    """Of the bare loop, from the start of its processes to the end of the last."""
    context, began = multiprocessing.get_context("spawn"), time.monotonic()
    processes = [context.Process(target=bare, args=(workload, assignments[at::WORKERS])) for at in range(WORKERS)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        if process.exitcode:
            raise RuntimeError(f"a process of the bare loop ended with code {process.exitcode}")
    return time.monotonic() - began


def measure_long(client: Client, home: Path) -> None:
    finish(client, small_job(1, steps=1, seconds=0))  # leaves the teacher behind
    spec = small_job(LONG, steps=20, seconds=0.5)
    with ThreadPoolExecutor() as pool:
        loop = pool.submit(bare_seconds, *workload_of(spec, home))
        finished = finish(client, spec)
        alone = loop.result()
    ends = [path.stat().st_mtime for path in (home / "artifacts" / "bare").glob("*.safetensors")]
    rows = {
        "first trial's end to the last one's": (finished.scored[-1] - finished.scored[0], max(ends) - min(ends)),
        "search phase": (finished.search, alone),
        "the whole job": (finished.seconds, alone),
    }
    print(f"| {LONG} trials of 10 s, {WORKERS} workers | seconds | bare loop | longer by |\n|---|---:|---:|---:|")
    for name, (ours, bare_loop) in rows.items():
        print(f"| {name} | {ours:.1f} | {bare_loop:.1f} | {ours / bare_loop - 1:+.1%} |")
    print(flush=True)


def measure_short(client: Client, home: Path) -> None:
    finish(client, small_job(1, steps=1, seconds=0))
    finished = finish(client, small_job(SHORT, steps=1, seconds=0.001))
    quarter = len(finished.scored) // 4
    quarters = [
        quarter / (finished.scored[min(at + quarter, len(finished.scored) - 1)] - finished.scored[at])
        for at in range(0, 4 * quarter, quarter)
    ]
    print(f"| {SHORT} trials of 1 ms, {WORKERS} workers | seconds | trials a second |\n|---|---:|---:|")
    print(f"| the whole job | {finished.seconds:.1f} | {SHORT / finished.seconds:.1f} |")
    print(f"| search phase | {finished.search:.1f} | {SHORT / finished.search:.1f} |")
    paces = ", ".join(f"{pace:.1f}" for pace in quarters)
    print(f"| without the start of its workers | | {finished.pace:.1f} |")
    print(f"\nThe four quarters of the search, trials a second: {paces}.\n", flush=True)


def measure_workers(client: Client, home: Path) -> None:
    one, two = (finish(client, real_job(workers)) for workers in (1, WORKERS))
    print(f"| {REAL} real trials | search, s | trials a second | ratio |\n|---|---:|---:|---:|")
    print(f"| one worker | {one.search:.1f} | {one.pace:.3f} | |")
    print(f"| {WORKERS} workers | {two.search:.1f} | {two.pace:.3f} | {two.pace / one.pace:.2f} |\n", flush=True)


PARTS: Mapping[str, Callable[[Client, Path], None]] = {
    "long": measure_long,
    "short": measure_short,
    "workers": measure_workers,
}


def main() -> None:
    parts = [PARTS[name] for name in sys.argv[1:] or PARTS]
    with tempfile.TemporaryDirectory(prefix="sth-") as folder, serving(Path(folder)) as client:
        for measure in parts:
            measure(client, Path(folder) / "home")


if __name__ == "__main__":
    main()
