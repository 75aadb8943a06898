from __future__ import annotations

import io
import json
import os
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from search.errors import InvalidSpec, Unsupported, WeightsError
from search.part import Part, read_part
from search.teachers.small import SmallMobileNet, SmallResNet
from search.teachers.weights import load_weights, save_weights
from search.teachers.zoo import Torchvision, builders

pytestmark = pytest.mark.timeout(30)  # the first use of torch's counter and of its autograd imports much

RGB = (3, 32, 32)


def made(plugin: Any, **options: Any) -> Any:
    model: type[Part] = plugin.Options
    return plugin(read_part(model, options))


def params(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def macs(model: nn.Module, shape: tuple[int, int, int]) -> int:
    """torch's own count, by dispatched operation: nothing of it is ours."""
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        model.eval()(torch.zeros(1, *shape))
    return counter.get_total_flops() // 2


# -- small networks ----------------------------------------------------------------------------------------------------


def test_the_default_resnet_is_the_one_of_the_docstring() -> None:
    model = made(SmallResNet).build(RGB, 10)
    conv = 648 + 9 * (6 * 24 * 24 + 24 * 48 + 5 * 48 * 48 + 48 * 96 + 5 * 96 * 96) + 24 * 48 + 48 * 96
    norm = 2 * (7 * 24 + 7 * 48 + 7 * 96)
    assert params(model) == conv + norm + 96 * 10 + 10 == 611_074
    in_stages = 648 * 256 + 9 * (6 * 24 * 24 * 256 + (24 * 48 + 5 * 48 * 48) * 64 + (48 * 96 + 5 * 96 * 96) * 16)
    assert macs(model, RGB) == in_stages + 24 * 48 * 64 + 48 * 96 * 16 + 960 == 22_875_072


def test_the_default_mobilenet_is_the_one_of_the_docstring() -> None:
    model = made(SmallMobileNet).build(RGB, 10)
    assert params(model) == 180_290
    assert macs(model, RGB) == 5_201_024


def test_one_depth_stands_for_all_stages() -> None:
    one, three = made(SmallResNet, depth=2), made(SmallResNet, depth=[2, 2, 2])
    assert params(one.build(RGB, 10)) == params(three.build(RGB, 10))
    uneven = made(SmallResNet, depth=[1, 2, 4]).build(RGB, 10)
    assert [len(uneven.get_submodule(f"layer{stage}")) for stage in (1, 2, 3)] == [1, 2, 4]  # type: ignore[arg-type]


@pytest.mark.parametrize("plugin", [SmallResNet, SmallMobileNet])
def test_the_stem_stride_quarters_the_cost(plugin: Any) -> None:
    fine, coarse = (made(plugin, stem_stride=stride).build(RGB, 10) for stride in (1, 2))
    assert params(fine) == params(coarse)
    classifier = fine.fc.weight.numel()
    assert macs(fine, RGB) - classifier == 4 * (macs(coarse, RGB) - classifier)


@pytest.mark.parametrize(
    ("plugin", "options", "pointer"),
    [
        (SmallResNet, {"depth": 0}, "/depth/0"),
        (SmallResNet, {"depth": [1, 2]}, "/depth/2"),
        (SmallResNet, {"depth": True}, "/depth"),
        (SmallResNet, {"width": 0}, "/width"),
        (SmallResNet, {"stem_stride": 3}, "/stem_stride"),
        (SmallMobileNet, {"width": 0}, "/width"),
        (SmallMobileNet, {"expantion": 3}, "/expantion"),
    ],
)
def test_wrong_options_are_pointed_at(plugin: Any, options: dict[str, Any], pointer: str) -> None:
    with pytest.raises(InvalidSpec) as caught:
        made(plugin, **options)
    assert caught.value.errors[0].pointer == pointer


# -- every teacher -----------------------------------------------------------------------------------------------------

TEACHERS = [
    pytest.param(SmallResNet, {"depth": 1, "width": 8}, id="small_resnet"),
    pytest.param(SmallMobileNet, {"width": 0.5}, id="small_mobilenet"),
    pytest.param(SmallMobileNet, {"expansion": 1, "depth": 0.25}, id="small_mobilenet without expansion"),
    pytest.param(Torchvision, {"builder": "squeezenet1_1"}, id="torchvision"),
]


@pytest.mark.parametrize(("plugin", "options"), TEACHERS)
@pytest.mark.parametrize("channels", [1, 3])
def test_images_become_logits(plugin: Any, options: dict[str, Any], channels: int) -> None:
    model = made(plugin, **options).build((channels, 32, 32), 7)
    assert model.training
    logits = model(torch.randn(4, channels, 32, 32))
    assert logits.shape == (4, 7)
    logits.sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize(("plugin", "options"), TEACHERS)
def test_the_seed_alone_decides_the_weights(plugin: Any, options: dict[str, Any]) -> None:
    torch.manual_seed(1)
    first = made(plugin, **options).build(RGB, 5, seed=3)
    drawn = torch.rand(1)
    torch.manual_seed(1)
    assert torch.equal(drawn, torch.rand(1)), "building a teacher must not disturb the generator of its caller"
    second, other = (made(plugin, **options).build(RGB, 5, seed=seed) for seed in (3, 4))
    assert save_weights(first) == save_weights(second)
    assert save_weights(first) != save_weights(other)


@pytest.mark.parametrize(("plugin", "options"), TEACHERS)
def test_fx_traces_it(plugin: Any, options: dict[str, Any]) -> None:
    model = made(plugin, **options).build(RGB, 5).eval()
    images = torch.randn(2, *RGB)
    with torch.no_grad():
        assert torch.equal(torch.fx.symbolic_trace(model)(images), model(images))


# -- torchvision -------------------------------------------------------------------------------------------------------

FAMILIES = ["googlenet", "mnasnet0_5", "mobilenet_v3_small", "regnet_x_400mf", "shufflenet_v2_x0_5", "squeezenet1_1"]


@pytest.mark.parametrize("builder", FAMILIES)
def test_networks_of_torchvision_answer(builder: str) -> None:
    model = made(Torchvision, builder=builder).build((1, 32, 32), 4).eval()
    with torch.no_grad():
        logits = model(torch.randn(2, 1, 32, 32))
    assert logits.shape == (2, 4)
    assert logits.isfinite().all()


# of shapes only, which is quick however large the network; regnet cannot be built so and is above
LARGE = [
    *(("alexnet", 64), ("convnext_tiny", 32), ("densenet121", 32), ("efficientnet_b0", 32), ("efficientnet_v2_s", 32)),
    *(("inception_v3", 96), ("maxvit_t", 224), ("mobilenet_v2", 32), ("resnet50", 32), ("resnext50_32x4d", 32)),
    *(("swin_t", 32), ("swin_v2_t", 32), ("vgg16_bn", 32), ("vit_b_16", 32), ("wide_resnet50_2", 32)),
]


@pytest.mark.parametrize(("builder", "size"), LARGE)
def test_large_networks_of_torchvision_answer(builder: str, size: int) -> None:
    with torch.device("meta"):
        model = made(Torchvision, builder=builder).build((1, size, size), 3)
        assert model(torch.empty(2, 1, size, size)).shape == (2, 3)


def test_only_classifiers_are_offered() -> None:
    assert {"resnet18", "mobilenet_v3_small", "vgg11"} <= set(builders())
    assert not [
        name for name in builders() if "quantized" in name or "rcnn" in name or name in ("r3d_18", "raft_large")
    ]
    assert Torchvision.Options.model_json_schema()["properties"]["builder"]["enum"] == list(builders())


def test_an_unknown_builder_gets_a_suggestion() -> None:
    with pytest.raises(InvalidSpec) as caught:
        made(Torchvision, builder="resnet81")
    assert caught.value.errors[0].pointer == "/builder"
    assert 'did you mean "resnet18"?' in caught.value.errors[0].message


@pytest.mark.parametrize(
    ("builder", "size", "next_size"), [("alexnet", 32, 63), ("vit_b_16", 40, 48), ("squeezenet1_1", 8, 17)]
)
def test_images_too_small_are_refused_with_a_size_that_works(builder: str, size: int, next_size: int) -> None:
    teacher = made(Torchvision, builder=builder)
    with pytest.raises(Unsupported, match=f"the next size it takes is {next_size}:"):
        teacher.build((3, size, size), 3)
    model = teacher.build((3, next_size, next_size), 3).eval()
    with torch.no_grad():
        assert model(torch.zeros(1, 3, next_size, next_size)).shape == (1, 3)


# -- weights -----------------------------------------------------------------------------------------------------------


def small(seed: int = 0, classes: int = 5) -> nn.Module:
    model: nn.Module = made(SmallResNet, depth=1, width=4).build(RGB, classes, seed)
    return model


def state_of(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def refused(source: Path | bytes) -> str:
    """The message, once it is certain that no weight was touched."""
    model = small()
    before = save_weights(model)
    with pytest.raises(WeightsError) as caught:
        load_weights(model, source)
    assert save_weights(model) == before
    assert caught.value.errors[0].pointer == "/teacher/weights"
    return caught.value.message


@pytest.mark.parametrize("as_file", [True, False])
def test_weights_come_back(tmp_path: Path, as_file: bool) -> None:
    source, target = small(1), small(2)
    content = save_weights(source)
    if as_file:
        (tmp_path / "teacher.safetensors").write_bytes(content)
    load_weights(target, tmp_path / "teacher.safetensors" if as_file else content)
    assert save_weights(target) == content
    images = torch.randn(2, *RGB)
    assert torch.equal(source.eval()(images), target.eval()(images))


def test_half_precision_is_converted_and_counters_may_be_missing() -> None:
    state = {name: tensor for name, tensor in state_of(small(1)).items() if not name.endswith("num_batches_tracked")}
    target = small(2)
    load_weights(target, save({name: tensor.half() for name, tensor in state.items()}))
    assert target.state_dict()["fc.weight"].dtype == torch.float32
    assert torch.equal(target.state_dict()["fc.weight"], state["fc.weight"].half().float())


def test_weights_that_share_memory_are_saved() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[1].weight = model[0].weight
    assert len(save_weights(model)) > 0


class Bomb:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return (exec, ("raise SystemExit('a pickle was run')",))


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_is_not_run(protocol: int) -> None:
    message = refused(pickle.dumps(Bomb(), protocol=protocol))
    assert "pickle" in message
    assert "safetensors.torch.save_file" in message


def test_the_files_of_torch_save_are_refused_with_the_way_to_convert_them(tmp_path: Path) -> None:
    file = tmp_path / "teacher.pt"
    torch.save(small().state_dict(), file)
    assert zipfile.is_zipfile(file)
    message = refused(file)
    assert "zip" in message
    assert "safetensors.torch.save_file" in message


def header(entries: Any, payload: bytes = b"") -> bytes:
    text = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    return len(text).to_bytes(8, "little") + text + payload


F32 = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "not a safetensors file"),
        (b"\x00" * 7, "not a safetensors file"),
        (b"GIF89a" + b"\x00" * 100, "not a safetensors file"),
        (b"\xff" * 8 + b"{}" * 9, "announces a header of 18,446,744,073,709,551,615 bytes"),
        ((5 * 2**20).to_bytes(8, "little") + b"{" + b" " * (5 * 2**20), "announces a header of 5,242,880 bytes"),
        ((1000).to_bytes(8, "little") + b"{}", "announces a header of 1,000 bytes"),
        (header(b"{'fc': 1}"), "its header is not JSON"),
        (header(b'{"a":' * 3000), "nested deeper"),
        (header({f"w{index}": F32 for index in range(20_001)}), "holds 20,001 tensors"),
        (header({"fc.weight": {"dtype": "F32"}}), "no dtype, shape and offsets for `fc.weight`"),
        (header({"fc.weight": 5}), "no dtype, shape and offsets for `fc.weight`"),
        (header({"fc.weight": {**F32, "shape": [-1]}}), "no valid shape for `fc.weight`"),
        (header({"fc.weight": {**F32, "shape": [2**60, 2**60]}}), "no valid shape for `fc.weight`"),
        (header({"fc.weight": {**F32, "dtype": "PICKLE"}}), "has the dtype PICKLE"),
        (header({"fc.weight": F32}, b"\x00" * 3), "cut off or damaged"),
        (header({"fc.weight": {**F32, "shape": [2**39]}}, b"\x00" * 4), "cut off or damaged"),
    ],
)
def test_hostile_headers_are_refused(tmp_path: Path, content: bytes, says: str) -> None:
    assert says in refused(content)
    (tmp_path / "hostile.safetensors").write_bytes(content)
    assert says in refused(tmp_path / "hostile.safetensors")


def test_tensors_that_overlap_are_refused() -> None:
    content = save_weights(small())
    length = int.from_bytes(content[:8], "little")
    entries = json.loads(content[8 : 8 + length])
    entries["fc.bias"]["data_offsets"] = [0, 20]
    assert "damaged" in refused(header(entries, content[8 + length :]))


def test_a_truncated_file_is_refused() -> None:
    assert "cut off" in refused(save_weights(small())[:-1])


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200), st.integers(0, 2**64 - 1))
def test_no_bytes_crash_the_reader(content: bytes, length: int) -> None:
    model = nn.Linear(2, 2)
    for hostile in (content, length.to_bytes(8, "little") + content, len(content).to_bytes(8, "little") + content):
        with pytest.raises(WeightsError):
            load_weights(model, hostile)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_no_damage_to_a_header_crashes_the_reader(data: st.DataObject) -> None:
    content = bytearray(save_weights(nn.BatchNorm2d(3)))
    length = int.from_bytes(content[:8], "little")
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, 7 + length))] = data.draw(st.integers(0, 255))
    model = nn.BatchNorm2d(3)
    try:
        load_weights(model, bytes(content))
    except WeightsError:
        return
    assert all(tensor.isfinite().all() for tensor in model.state_dict().values())


def test_wrong_names_and_shapes_are_listed_with_a_remedy() -> None:
    state = state_of(small())
    state["extra"] = torch.zeros(1)
    del state["conv1.weight"]
    message = refused(save(state))
    assert "1 missing: conv1.weight" in message
    assert "1 unexpected: extra" in message
    message = refused(save_weights(small(classes=6)))
    assert "2 of another shape" in message
    assert "fc.weight is [6, 16] in the file and [5, 16] in the network" in message
    assert "Set the teacher's options" in message
    message = refused(save({f"module.{name}": tensor for name, tensor in state_of(small()).items()}))
    assert "begins with `module.`" in message
    assert len(message) < 2000, "only the first few names are listed"


def test_whole_numbers_are_no_weights() -> None:
    state = state_of(small())
    state["fc.bias"] = state["fc.bias"].long()
    assert "fc.bias is I64" in refused(save(state))


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("fc.bias", float("nan"), "NaN"),
        ("fc.bias", float("-inf"), "infinite"),
        ("bn1.running_var", -1.0, "negative variance"),
    ],
)
def test_weights_of_a_diverged_training_are_refused(name: str, value: float, says: str) -> None:
    state = state_of(small())
    state[name][0] = value
    message = refused(save(state))
    assert says in message
    assert name in message


def test_numbers_too_large_for_the_network_are_refused() -> None:
    state = state_of(small())
    state["fc.bias"] = torch.full((5,), 1e300, dtype=torch.float64)
    assert "infinite" in refused(save(state))


def test_what_is_no_file_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.safetensors")
    assert "is not a file" in refused(tmp_path / "pipe.safetensors")
    assert "cannot be read: Is a directory" in refused(tmp_path)
    assert "cannot be read" in refused(tmp_path / "missing.safetensors")


def test_a_file_that_asks_for_memory_is_refused_before_it_is_read(tmp_path: Path) -> None:
    """A sparse file of 64 GiB whose header fits its size: reading it would end the process."""
    size = 2**36
    start = header({"fc.weight": {"dtype": "F32", "shape": [size // 4], "data_offsets": [0, size]}})
    file = tmp_path / "huge.safetensors"
    with file.open("wb") as handle:
        handle.write(start)
        handle.truncate(len(start) + size)
    program = (
        "import resource, pathlib; resource.setrlimit(resource.RLIMIT_AS, (2**35, 2**35))\n"
        "from torch import nn; from search.errors import WeightsError\n"
        "from search.teachers.weights import load_weights\n"
        f"try: load_weights(nn.ModuleDict({{'fc': nn.Linear(2, 2)}}), pathlib.Path({str(file)!r}))\n"
        "except WeightsError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "1 of another shape" in done.stdout


def test_nothing_here_can_unpickle() -> None:
    folder = Path(__file__).parents[2] / "search" / "teachers"
    text = io.StringIO()
    for file in folder.glob("*.py"):
        text.write(file.read_text().replace("`state = torch.load(FILE, weights_only=True)`", ""))
    assert "torch.load(" not in text.getvalue()
    assert "pickle." not in text.getvalue()
