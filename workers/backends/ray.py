"""
The backend on Ray: one Tune trial is one assignment, placed by Tune on a reused actor.

Tune places work and notices dead workers, and nothing else: no Tune scheduler stops or pauses a trial, and there is no
Tune checkpoint or restore.
Promotion, retries and resume are the session's. A reused actor imports torch and builds the teacher once; arrays come
from the node's object store without a copy.
"""

from __future__ import annotations

import fcntl
import logging
import os
import secrets
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

# Whoever reaches Ray's ports, which are open to all machines, can run programs: so they ask for a token, unless the
# operator has said otherwise. Read when Ray is imported; where it has been, its own rules hold, which are weaker.
if "ray" not in sys.modules:
    os.environ.setdefault("RAY_AUTH_MODE", "token")
# Read by Ray: no tables on stdout, no CSV or TensorBoard files, no usage reports, no chdir, no snapshots of all trials.
os.environ.update(
    RAY_AIR_NEW_OUTPUT="0",
    RAY_CHDIR_TO_TRIAL_DIR="0",
    RAY_ENABLE_UV_RUN_RUNTIME_ENV="0",
    RAY_USAGE_STATS_ENABLED="0",
    TUNE_DISABLE_AUTO_CALLBACK_LOGGERS="1",
    TUNE_GLOBAL_CHECKPOINT_S="inf",
    TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S="0",
)

import ray
import torch
from ray import tune
from ray._private import ray_constants
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler
from ray.tune.search import Searcher

from search.errors import UserError
from workers.assignment import Assignment, Lost, Progress, heard
from workers.backends.base import Item, Session, Wait
from workers.scoring import Scorer
from workers.workload import Workload

_OBJECT_STORE_BYTES = 2 * 2**30
_PREFIX = "sth-ray-"
_LONGEST_PARENT = 25
_FRESH_SECONDS = 60
_LISTEN_SECONDS = 0.5
_LOOK_SECONDS = 5.0
_STARTING_SECONDS = 60
"""An actor that takes longer than this to start has no room on the cluster yet."""
_FINISHED: str = Searcher.FINISHED


class RayBackend:
    """
    Works on the cluster at `address`, whose token is in `token_file`; "local" starts one in this process's care, with
    `cpus` CPUs and a token of its own.

    Raises:
        ConnectionError: the cluster cannot be reached, has another token, or this machine is none of its nodes.
    """

    def __init__(self, address: str = "local", *, cpus: int | None = None, token_file: Path | None = None) -> None:
        for name in ("ray", "ray.tune"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
        if token_file is not None:
            os.environ["RAY_AUTH_TOKEN_PATH"] = str(token_file)
        elif address == "local":
            os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
        self._folder: _Folder | None = _Folder()
        self._local = address == "local"
        self._shared: tuple[Any, Any] | None = None
        options: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": False}
        if self._local:
            options |= {
                "num_cpus": cpus or max(os.cpu_count() or 1, 1),
                "include_dashboard": False,
                "object_store_memory": _OBJECT_STORE_BYTES,
                "_temp_dir": str(self._folder.path),
            }
            # As Ray has it on desktops: its node is at 127.0.0.1 and listens nowhere else. There is no option for it.
            ray_constants.ENABLE_RAY_CLUSTER = False
        try:
            ray.init(address=address, **options)
        except ConnectionError as error:
            raise ConnectionError(
                f"this machine cannot work on the Ray cluster at {address}: see that the cluster runs, that it has the "
                "token of STILLHOUSE_RAY_TOKEN_FILE, and that this machine is one of its nodes "
                f"(`ray start --address={address} --num-cpus=0`)"
            ) from error
        self._footing = _Footing()

    def run(self, session: Session, workload: Workload) -> None:
        if self._folder is None:
            raise RuntimeError("this backend is closed")
        resources = workload_resources(workload)
        reference = ray.put(dict(workload.arrays))
        trainable = tune.with_parameters(_RayTrial, arrays=reference, workload=replace(workload, arrays={}))
        tuner = tune.Tuner(
            tune.with_resources(trainable, resources),
            tune_config=tune.TuneConfig(
                search_alg=_Bridge(session),
                scheduler=_Placement(),
                max_concurrent_trials=session.slots,  # without it actors would start one after another
                num_samples=-1,
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(
                name="stillhouse",
                storage_path=str(self._folder.path),
                verbose=0,
                stop=_Stop(session, self._footing),
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
                failure_config=tune.FailureConfig(max_failures=0),
            ),
        )
        tuner.fit()

    def map(
        self,
        function: Callable[..., Iterator[Any]],
        items: Iterable[Item],
        *,
        cpus: int,
        gpus: float,
        stopping: Callable[[], bool],
        shared: Any = None,
    ) -> Iterator[tuple[int, Any]]:
        # What no machine can hold would wait for ever.
        threads = max(1, min(cpus, int(_largest("CPU"))))
        remote = _stream.options(num_cpus=threads, num_gpus=gpus, num_returns="streaming", max_retries=0)
        given = () if shared is None else (self._stored(shared),)
        streams = {remote.remote(threads, function, item, *given): index for index, item in enumerate(items)}
        while streams:
            if stopping():
                for stream in streams:
                    ray.cancel(stream, force=True)
                return
            self._footing.check()
            ready, _ = ray.wait(list(streams), num_returns=1, timeout=_LISTEN_SECONDS)
            for stream in ready:
                try:
                    value = ray.get(next(stream))
                except StopIteration:
                    del streams[stream]
                except ray.exceptions.RayTaskError as error:
                    raise error.cause from None
                else:
                    yield streams[stream], value

    def _stored(self, shared: Any) -> Any:
        """Its place in the object store, where the latest one stays: rounds share the same again and again."""
        if self._shared is None or self._shared[0] is not shared:
            self._shared = (shared, ray.put(shared))
        return self._shared[1]

    def check(self, *, cpus: int, gpus: float) -> None:
        if not self._local:
            return  # the cluster may grow
        for name, wanted, pointer in (("CPU", cpus, "cpus_per_trial"), ("GPU", gpus, "gpus_per_trial")):
            if wanted > _largest(name):
                raise UserError(
                    f"a trial asks for {wanted:g} {name}s and this machine has {_largest(name):g}; ask for fewer, or "
                    "connect a cluster that has them (STILLHOUSE_RAY_ADDRESS)",
                    pointer=f"/resources/{pointer}",
                )

    def close(self) -> None:
        if self._folder is not None:
            self._shared = None
            ray.shutdown()
            self._folder.remove()
            self._folder = None


class _Footing:
    """
    The node of the cluster that this process works through. When Ray gives it up, as it does with machines that were
    cut off for a while, it says so to nobody, and what is asked for through that node never comes.
    """

    def __init__(self) -> None:
        self._node = ray.get_runtime_context().get_node_id()
        self._looked = time.monotonic()

    def check(self) -> None:
        """Raises `ConnectionError` when the node is gone."""
        now = time.monotonic()
        if now - self._looked < _LOOK_SECONDS:
            return
        self._looked = now
        if not any(node["NodeID"] == self._node and node["Alive"] for node in ray.nodes()):
            raise ConnectionError("Ray has given up the node of this machine; whoever claims the job next goes on")


class _Folder:
    """
    A fresh folder for a local cluster, locked while its owner lives; those of killed owners are removed on the way.

    Its name is short, because the paths of Ray's sockets below it must stay under 107 bytes.
    """

    def __init__(self) -> None:
        usual = Path(tempfile.gettempdir())
        parent = usual if len(str(usual)) <= _LONGEST_PARENT else Path("/tmp")  # noqa: S108
        for left in parent.glob(f"{_PREFIX}*"):
            # A fresh one may be about to be locked.
            with suppress(OSError):
                if time.time() - left.stat().st_mtime > _FRESH_SECONDS:
                    with _lock(left):
                        shutil.rmtree(left)
        self.path = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
        self._lock = _lock(self.path)

    def remove(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)
        self._lock.close()


def _lock(folder: Path) -> IO[bytes]:
    """Raises `OSError` when someone else has it, or it is no folder. The lock ends with the process at the latest."""
    file = (folder / "owner").open("ab")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        raise
    return file


def _largest(resource: str) -> float:
    """How many of a resource the machine has that has most of it."""
    return max((node["Resources"].get(resource, 0.0) for node in ray.nodes() if node["Alive"]), default=0.0)


def workload_resources(workload: Workload) -> dict[str, float]:
    wanted = workload.spec.get("resources", {})
    return {"cpu": wanted.get("cpus_per_trial", 1), "gpu": wanted.get("gpus_per_trial", 0)}


@ray.remote  # type: ignore[untyped-decorator]
def _stream(threads: int, function: Callable[..., Iterator[Any]], *given: Any) -> Iterator[Any]:
    torch.set_num_threads(threads)
    yield from function(*given)


class _RayTrial(tune.Trainable):  # type: ignore[misc]
    """An actor that carries out one assignment after another."""

    def setup(self, config: dict[str, Any], arrays: Any = None, workload: Workload | None = None) -> None:
        assert workload is not None  # noqa: S101 - given by with_parameters
        torch.set_num_threads(max(1, int(os.environ.get("OMP_NUM_THREADS", "1"))))
        device = "cuda" if ray.get_gpu_ids() else "cpu"
        self._scorer = Scorer(replace(workload, arrays=arrays), device=device)
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._heard = self._scorer.perform(Assignment.model_validate_json(new_config["assignment"]))
        return True

    def step(self) -> dict[str, Any]:
        word = next(self._heard)
        return {"heard": word.model_dump_json(), "done": not isinstance(word, Progress)}

    def cleanup(self) -> None:
        self._heard.close()


class _Bridge(Searcher):  # type: ignore[misc]
    """Asks the session for assignments in Tune's name, and tells it what Tune saw."""

    def __init__(self, session: Session) -> None:
        super().__init__()
        self._session: Session = session
        self._live: dict[str, Assignment] = {}

    def suggest(self, trial_id: str) -> dict[str, str] | str | None:
        if self._session.stopping():
            return _FINISHED
        assignment = self._session.next()
        if assignment is None:
            # Told "finished" with trials under way, Tune would not ask again when one of them is lost.
            return None if self._live else _FINISHED
        if isinstance(assignment, Wait):
            return None
        self._live[trial_id] = assignment
        return {"assignment": assignment.model_dump_json()}

    def on_trial_result(self, trial_id: str, result: Mapping[str, Any]) -> None:
        word = heard.validate_json(result["heard"])
        if isinstance(word, Progress):
            self._session.progress(self._live[trial_id], word)

    def on_trial_complete(self, trial_id: str, result: Mapping[str, Any] | None = None, error: bool = False) -> None:
        assignment = self._live.pop(trial_id, None)
        if assignment is None or self._session.stopping():
            return
        word = heard.validate_json(result["heard"]) if result and not error else None
        if word is None or isinstance(word, Progress):
            word = Lost(message="the worker died")
        self._session.ended(assignment, word)

    def save(self, checkpoint_path: str) -> None:
        """Nothing of ours is kept by Tune: the ledger is the only record."""

    def restore(self, checkpoint_path: str) -> None:
        """See `save`."""

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles its searcher into the folder of the run; a session holds a database."""
        return {}


class _Placement(FIFOScheduler):  # type: ignore[misc]
    """
    Gives an actor that is free to the newest trial, and lets older ones wait for the actors that start for them.

    Tune gives it to the oldest, and kills the actor that was starting for that one. Starting takes seconds, so where
    trials end as often the others would be killed and started for ever, and one worker would do all the work.
    """

    def __init__(self) -> None:
        super().__init__()
        self._added: dict[str, float] = {}

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        self._added[trial.trial_id] = time.monotonic()

    def choose_trial_to_run(self, tune_controller: Any) -> Trial | None:
        waiting = [trial for trial in tune_controller.get_live_trials() if trial.status == Trial.PENDING]
        waiting.sort(key=lambda trial: self._added[trial.trial_id])
        if not waiting:
            return None
        oldest, newest = waiting[0], waiting[-1]
        return oldest if time.monotonic() - self._added[oldest.trial_id] > _STARTING_SECONDS else newest


class _Stop(tune.Stopper):  # type: ignore[misc]
    """Ends everything under way once the session is stopping, or there is nothing to work through any more."""

    def __init__(self, session: Session, footing: _Footing) -> None:
        self._session: Session | None = session
        self._footing: _Footing | None = footing

    def __call__(self, trial_id: str, result: Mapping[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        if self._footing is not None:
            self._footing.check()
        return self._session is not None and self._session.stopping()

    def __getstate__(self) -> dict[str, Any]:
        return {"_session": None, "_footing": None}
