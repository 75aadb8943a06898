"""Times that are measured, the table they make, and the closed form that is learned from it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import nn

from search.costs.polynomial import Polynomials, Term, Terms, Variable
from search.errors import UserError
from search.export.onnx import Origin, write_onnx
from search.latency.fit import Timing, timing
from search.latency.measure import compare, measure, warm
from search.latency.model import Timed
from search.latency.parts import home
from search.latency.quick import LENIENCE, quickly
from search.latency.reading import Reading, Samples, bursts, comparison, reading, value_of
from search.latency.table import NETWORKS, Measured, Row, Table, spread, tabulate, uniform
from search.limits import Measurement
from search.space import Candidate, Site, Space

HERE = ("onnxruntime-cpu", "torch-cpu")
"""The runtimes that need no GPU."""
SHAPE = (3, 24, 24)


class Clock:
    """Nanoseconds that pass only when something is called."""

    def __init__(self) -> None:
        self.now = 0

    def __call__(self) -> int:
        return self.now

    def taking(self, *nanoseconds: int) -> Callable[[], None]:
        turns = itertools.cycle(nanoseconds)

        def call() -> None:
            self.now += next(turns)

        return call


def test_a_reading_has_enough_samples_and_enough_time() -> None:
    clock = Clock()
    slow, quick = bursts([clock.taking(50_000_000), clock.taking(10_000)], clock=clock)
    for turns, nanoseconds in ((slow, 50_000_000), (quick, 10_000)):
        samples = np.concatenate(turns)
        assert len(samples) >= 20
        assert samples.sum() >= 0.3e9
        assert (samples == nanoseconds).all()
    assert len(slow) == len(quick), "they take turns"


def test_a_network_that_takes_for_ever_is_content_with_few_samples() -> None:
    clock = Clock()
    (turns,) = bursts([clock.taking(9_000_000_000)], clock=clock)
    assert 3 <= len(np.concatenate(turns)) < 20


def test_a_machine_that_slows_down_for_a_while_changes_times_and_not_their_ratio() -> None:
    clock = Clock()

    def called(nanoseconds: int) -> Callable[[], None]:
        def call() -> None:
            clock.now += nanoseconds * (5 if (clock.now // 400_000_000) % 2 else 1)

        return call

    first, second = bursts([called(2_000_000), called(1_000_000)], seconds=1.0, clock=clock)
    assert value_of(np.concatenate(first), "mean") > 1.5 * 2_000_000, "the machine was slow for a while"
    assert comparison(first, second, "median", {}).ratio == pytest.approx(2, rel=0.01)


def test_the_ratio_of_least_times_is_that_of_calls_that_nothing_disturbed() -> None:
    """For two of three turns another program held the core, and the smaller network suffered more."""
    first: list[Samples] = [np.array([50, 51]), np.array([80, 90]), np.array([82, 85])]
    second: list[Samples] = [np.array([100, 101]), np.array([120, 130]), np.array([121, 140])]
    assert comparison(first, second, "min", {}).ratio == 0.5
    assert comparison(first, second, "median", {}).ratio > 0.6


@pytest.mark.parametrize(
    ("statistic", "value"), [("median", 50), ("mean", 50), ("min", 0), ("p90", 90), ("p95", 95), ("p99", 99)]
)
def test_a_statistic_is_what_its_name_says(statistic: str, value: int) -> None:
    turns: list[Samples] = [np.arange(0, 51), np.arange(51, 101)]
    found = reading(turns, statistic, {"cores": 2})  # type: ignore[arg-type]
    assert found == Reading(nanoseconds=max(1, value), spread=50, samples=101, environment={"cores": 2})


def chain(depth: int, width: int = 24) -> nn.Module:
    """Convolutions one after the other, called `0`, `1`, ... ; each is as much work."""
    stem = nn.Conv2d(SHAPE[0], width, 3, padding=1)
    rest = [nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.ReLU()) for _ in range(depth)]
    return nn.Sequential(stem, *rest, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10))


@pytest.mark.timeout(120)
@pytest.mark.parametrize("runtime", HERE)
class TestRuntime:
    """What every runtime must do; those for GPUs need a machine that has one."""

    def test_a_network_three_times_as_deep_takes_longer(self, runtime: str) -> None:
        found = compare(chain(12), chain(4), SHAPE, _measurement(runtime, statistic="min"))
        assert 1.3 < found.ratio < 6
        assert found.low <= found.ratio <= found.high

    def test_a_reading_says_where_it_was_made(self, runtime: str) -> None:
        network = chain(1).train()
        found = measure(network, SHAPE, _measurement(runtime, statistic="min"))
        assert found.nanoseconds > 1000
        assert found.samples >= 20
        assert found.environment["runtime"] == runtime
        assert found.environment["threads"] == 1
        assert found.environment["processor"]
        assert found.environment[runtime.partition("-")[0]]
        assert network.training, "the network is left as it was"

    def test_the_time_of_a_network_is_told_by_its_blocks(self, runtime: str) -> None:
        network = chain(6)
        with warm(network.eval(), SHAPE, _measurement(runtime)) as ready:
            found = ready.profile(["1", "2", "3.0", "3", "9"])
        assert set(found) == {"1", "2", "3.0", "3", "9", ""}
        assert 0 < found["9"] < found["1"], "the classifier is small"
        assert 0.4 < found["1"] / found["2"] < 2.5, "equal blocks"
        assert found["3.0"] > 2 * found["3"], "a block's time is without that of the one inside it"
        assert found[""] > found["1"], "the stem and three blocks were not asked for"

    def test_a_batch_is_answered_whole(self, runtime: str) -> None:
        with (
            warm(chain(2), SHAPE, _measurement(runtime, batch=8)) as many,
            warm(chain(2), SHAPE, _measurement(runtime)) as one,
        ):
            turns = bursts([many.run, one.run])
        assert comparison(turns[0], turns[1], "median", {}).ratio > 2

    def test_threads_are_put_back(self, runtime: str) -> None:
        threads = torch.get_num_threads()
        with warm(chain(1), SHAPE, _measurement(runtime, threads=threads + 1)) as ready:
            ready.run()
        assert torch.get_num_threads() == threads


def _measurement(runtime: str, **settings: object) -> Measurement:
    return Measurement.model_validate({"runtime": runtime, **settings})


@pytest.mark.timeout(60)
def test_an_exported_file_is_measured_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "student.onnx"
    write_onnx(chain(3).eval(), torch.randn(1, *SHAPE), path)
    assert measure(path, SHAPE, Measurement()).nanoseconds > 1000


@pytest.mark.timeout(60)
def test_the_exporter_says_which_module_every_node_comes_from(tmp_path: Path) -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(3, 8, 3, bias=False)
            self.norm = nn.BatchNorm2d(8)
            self.body = nn.Sequential(nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
            self.head = nn.Linear(8, 10)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = self.head(self.body(self.norm(self.stem(images))))
            return logits

    origins = write_onnx(Named().eval(), torch.randn(1, *SHAPE), tmp_path / "named.onnx")
    assert {origin.module for origin in origins.values()} >= {"stem", "body.0", "body.1", "head"}
    assert Origin("norm", "norm") not in origins.values(), "it became part of the convolution, which keeps its own name"
    assert Origin("body.0", "stem") in origins.values(), "the activation follows the stem's convolution"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("runtime", ["torch-cuda", "onnxruntime-cuda"])
def test_a_machine_without_a_gpu_says_so(runtime: str) -> None:
    with pytest.raises(UserError) as caught:
        measure(chain(1), SHAPE, _measurement(runtime, device="cuda"))
    (error,) = caught.value.under("/budget/latency").errors
    assert error.pointer == "/budget/latency/runtime"
    assert "finds no GPU" in error.message
    assert error.allowed == HERE


@pytest.mark.parametrize(("runtime", "device"), [("torch-cpu", "cuda"), ("onnxruntime-cuda", "cpu")])
def test_a_runtime_and_a_device_that_do_not_fit_are_refused(runtime: str, device: str) -> None:
    with pytest.raises(UserError) as caught:
        measure(chain(1), SHAPE, _measurement(runtime, device=device))
    assert caught.value.errors[0].pointer == "/device"


def test_a_module_is_at_home_in_the_innermost_block() -> None:
    blocks = ["layer1", "layer1.1", "layer1.10"]
    assert home("layer1.1.conv", blocks) == "layer1.1"
    assert home("layer1.10", blocks) == "layer1.10"
    assert home("layer1.2.conv", blocks) == "layer1"
    assert home("stem", blocks) == ""
    assert home("", blocks) == ""


WIDTHS = tuple(range(8, 65, 8))
SPACE = Space(
    (
        Site("a", "width", "one", WIDTHS),
        Site("two.keep", "removal", "two", (0, 1)),
        Site("b", "width", "two", WIDTHS, within="two.keep"),
    )
)
VARIABLES = (Variable((0,), WIDTHS), Variable((1,), (0, 1)), Variable((2,), WIDTHS))
BLOCK_COSTS: dict[str, tuple[Terms, Terms]] = {
    "one": ((Term(900, (0,)),), (Term(100, (0,)),)),
    "two": ((Term(450, (0, 1, 2)),), (Term(50, (1, 2)),)),
    "": ((Term(10, (0,)),), ()),
}
COUNTED = Polynomials(
    [site.choices for site in SPACE.sites], VARIABLES, {"macs": (Term(10, (0,)), Term(450, (0, 1, 2)), Term(900, (0,)))}
)


@dataclass(frozen=True)
class Counting:
    space: Space = SPACE
    polynomials: Polynomials = COUNTED
    block_costs: Mapping[str, tuple[Terms, Terms]] = field(default_factory=lambda: BLOCK_COSTS)

    def costs_of(self, choices: NDArray[np.int64]) -> dict[str, NDArray[np.int64]]:
        return self.polynomials(choices)

    @property
    def cost(self) -> dict[str, int]:
        whole = self.costs_of(self.space.array([self.space.full()]))
        return {metric: int(values[0]) for metric, values in whole.items()}

    def bounds(self) -> dict[str, tuple[int, int]]:
        return {}


def law(a: int, keep: int, b: int) -> dict[str, float]:
    """Nanoseconds by block of a made-up machine."""
    return {"one": 900 * a * 0.5 + 100 * a * 2, "two": keep * (450 * a * b * 0.25 + 5000), "": 10 * a + 700}


def table_of(times: Callable[[int, int, int], dict[str, float]], measurement: Measurement | None = None) -> Table:
    chosen = spread(SPACE, NETWORKS)
    blocks = [times(*(choice for _, choice in candidate)) for candidate in chosen]
    return Table(
        space=SPACE.key,
        measurement=measurement or Measurement(),
        networks=tuple(
            Measured(
                choices=candidate.as_dict(),
                latency=Reading(nanoseconds=round(sum(spent.values())), spread=0, samples=20, environment={}),
            )
            for candidate, spent in zip(chosen, blocks, strict=True)
        ),
        rows=tuple(
            Row(block=block, network=number, nanoseconds=nanoseconds)
            for number, spent in enumerate(blocks)
            for block, nanoseconds in spent.items()
        ),
    )


def learned(table: Table) -> Timing:
    return timing(table, SPACE, COUNTED, BLOCK_COSTS)


EVERY = np.array(list(itertools.product(*(site.choices for site in SPACE.sites))), dtype=np.int64)


def test_what_follows_from_work_is_predicted_exactly() -> None:
    table = table_of(law)
    found = learned(table)
    assert found.error == pytest.approx(0, abs=1e-5)
    assert len(found.held_out) == 4
    predicted = Timed(Counting(), {"latency": table}).costs_of(EVERY)["latency"]
    true = np.array([sum(law(*row).values()) for row in EVERY.tolist()])
    np.testing.assert_allclose(predicted, true, rtol=1e-4)


def test_lanes_are_found_in_the_times() -> None:
    def padded(a: int, keep: int, b: int) -> dict[str, float]:
        return law(-(-a // 32) * 32, keep, -(-b // 32) * 32)

    table = table_of(padded)
    found = learned(table)
    assert found.lane == 32
    predicted = Timed(Counting(), {"latency": table}).costs_of(EVERY)["latency"]
    true = np.array([sum(padded(*row).values()) for row in EVERY.tolist()])
    assert np.median(np.abs(predicted / true - 1)) < 1e-3


def test_layers_that_outgrow_a_cache_are_predicted_better_than_by_their_work() -> None:
    def outgrown(a: int, keep: int, b: int) -> dict[str, float]:
        spent = law(a, keep, b)
        return {**spent, "two": spent["two"] + keep * max(0, 450 * a * b - 450 * 64 * 64 // 2)}

    table = table_of(outgrown)
    predicted = Timed(Counting(), {"latency": table}).costs_of(EVERY)["latency"]
    true = np.array([sum(outgrown(*row).values()) for row in EVERY.tolist()])
    assert np.median(np.abs(predicted / true - 1)) < 0.03


@given(st.integers(0, 2**32 - 1))
def test_a_prediction_rises_with_every_choice_whatever_was_measured(seed: int) -> None:
    rng = np.random.default_rng(seed)

    def noisy(a: int, keep: int, b: int) -> dict[str, float]:
        return {block: spent * rng.uniform(0.5, 2) for block, spent in law(a, keep, b).items()}

    model = Timed(Counting(), {"latency": table_of(noisy)})
    grid = model.costs_of(EVERY)["latency"].reshape(8, 2, 8)
    for axis in range(3):
        assert (np.diff(grid, axis=axis) >= 0).all()


def test_times_stand_beside_counted_costs() -> None:
    model = Timed(Counting(), {"latency": table_of(law), "throughput": table_of(law, Measurement(batch=8))})
    costs = model.costs_of(EVERY)
    assert set(costs) == {"macs", "latency", "throughput"}
    assert (costs["macs"] == COUNTED(EVERY)["macs"]).all()
    np.testing.assert_allclose(costs["throughput"], 8e9 / costs["latency"], rtol=1e-3)
    planned = model.polynomials(EVERY)
    assert all((planned[metric] == costs[metric]).all() for metric in costs), "what is planned is what is predicted"


def test_a_space_of_two_networks_is_learned_from_both() -> None:
    space = Space((Site("keep", "removal", "one", (0, 1)),))
    counted = Polynomials([(0, 1)], [Variable((0,), (0, 1))], {"macs": (Term(7, (0,)),)})
    times = {0: 100.0, 1: 700.0}
    chosen = spread(space, NETWORKS)
    assert len(chosen) == 2
    table = Table(
        space=space.key,
        measurement=Measurement(),
        networks=tuple(
            Measured(
                choices=one.as_dict(),
                latency=Reading(nanoseconds=round(times[one["keep"]]), spread=0, samples=20, environment={}),
            )
            for one in chosen
        ),
        rows=tuple(
            Row(block=block, network=number, nanoseconds=100 if block == "" else times[one["keep"]] - 100)
            for number, one in enumerate(chosen)
            for block in ("", "one")
        ),
    )
    found = timing(table, space, counted, {"one": ((Term(7, (0,)),), ())})
    assert found.error is None
    model = Timed(Counting(space, counted, {"one": ((Term(7, (0,)),), ())}), {"latency": table})
    np.testing.assert_allclose(model.costs_of(np.array([[0], [1]]))["latency"], [100, 700], atol=1)


def test_the_networks_of_a_table_are_the_same_everywhere_and_all_different() -> None:
    chosen = spread(SPACE, NETWORKS)
    assert [one.key for one in chosen] == [one.key for one in spread(SPACE, NETWORKS)]
    assert len({one.key for one in chosen}) == NETWORKS
    assert chosen[:2] == [SPACE.full(), SPACE.least()]
    assert uniform(SPACE, 0.5).as_dict() == {"a": 32, "two.keep": 1, "b": 32}


@dataclass(frozen=True)
class Chains:
    """A survey of chains: one site says how wide they are, another whether their second half is there."""

    @property
    def space(self) -> Space:
        return Space((Site("width", "width", "1", (8, 16, 24)), Site("2.keep", "removal", "2", (0, 1))))

    def graft(self, candidate: Candidate) -> nn.Module:
        network = chain(2, candidate["width"])
        if not candidate["2.keep"]:
            network[2] = nn.Identity()  # type: ignore[index]
        return network.eval()


@pytest.mark.timeout(120)
@pytest.mark.parametrize("runtime", HERE)
def test_a_table_has_a_row_for_every_block_of_every_network(runtime: str) -> None:
    done: list[int] = []
    tables: list[Table] = []
    words: Iterator[int | Table] = tabulate(Chains(), ["1", "2"], SHAPE, _measurement(runtime), networks=5)
    for word in words:
        if isinstance(word, Table):
            tables.append(word)
        else:
            done.append(word)
    (table,) = tables
    assert done == [1, 2, 3, 4, 5]
    assert Table.model_validate_json(table.model_dump_json()) == table
    assert {(row.network, row.block) for row in table.rows} == {(n, b) for n in range(5) for b in ("1", "2", "")}
    for number, network in enumerate(table.networks):
        rows = {row.block: row.nanoseconds for row in table.rows if row.network == number}
        assert sum(rows.values()) == pytest.approx(network.latency.nanoseconds, abs=1)
        assert (rows["2"] > 0.05 * rows["1"]) == bool(network.choices["2.keep"])
    assert table.teacher.nanoseconds > 1.2 * table.networks[1].latency.nanoseconds, "the least is less"


def test_what_is_said_before_a_job_is_measured_at_the_ends_and_lenient_with_the_least(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = {tuple(row): sum(law(*row).values()) for row in EVERY.tolist()}

    def measured(networks: list[Candidate], shape: object, measurement: object) -> list[Reading]:
        times = (whole[tuple(choice for _, choice in network)] for network in networks)
        return [Reading(nanoseconds=round(time), spread=0, samples=20, environment={}) for time in times]

    class Ungrafted(Counting):
        """A survey whose students are the candidates themselves."""

        def graft(self, candidate: Candidate) -> Candidate:
            return candidate

    monkeypatch.setattr("search.latency.quick.measured", measured)
    found = quickly(Ungrafted(), SHAPE, {"latency": Measurement()})  # type: ignore[arg-type]
    least, full = (candidate(SPACE) for candidate in (Space.least, Space.full))
    times = found.costs([least, full])["latency"]
    np.testing.assert_allclose(times[1], whole[(64, 1, 64)], rtol=1e-3)
    np.testing.assert_allclose(times[0], whole[(8, 0, 64)] / LENIENCE, rtol=0.01)
    assert found.bounds()["latency"] == (times[0], times[1])
    every = found.costs_of(EVERY)["latency"].reshape(8, 2, 8)
    assert all((np.diff(every, axis=axis) >= 0).all() for axis in range(3))
