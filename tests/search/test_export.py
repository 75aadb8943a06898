"""A student that goes home: what may be written down, what comes back, and what is refused."""

from __future__ import annotations

import ast
import copy
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
import torchvision
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from search.errors import Unsupported, VerificationFailed, WeightsError
from search.export import bundle, load, verify
from search.export.architecture import describe
from search.export.bundle import FILES, read_bundle, write_bundle
from search.export.onnx import OPSET, answers, write_onnx
from tests.bundles import read_back_here


class SqueezeExcite(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(channels, 4, 1)
        self.expand = nn.Conv2d(4, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        gate = functional.relu(self.reduce(x.mean((2, 3), keepdim=True)))
        return x * torch.sigmoid(self.expand(gate))


class Varied(nn.Module):
    """Residual, depthwise, concatenation, squeeze and excite, a loose parameter, a loose buffer, shapes and slices."""

    def __init__(self, dropout: float = 0.1) -> None:
        super().__init__()
        self.dropout = dropout
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.norm = nn.BatchNorm2d(8, eps=1e-3, momentum=0.01)
        self.gate = SqueezeExcite(8)
        self.scale = nn.Parameter(torch.full((8, 1, 1), 0.7))
        self.register_buffer("shift", torch.full((1,), 0.1), persistent=False)
        self.drop = nn.Dropout(dropout)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.gate(self.norm(self.depthwise(x))) * self.scale + self.shift
        y += x
        both = torch.cat([y, functional.max_pool2d(x, 3, 1, 1)[:, :]], dim=1)
        pooled = functional.adaptive_avg_pool2d(both, 1).view(both.shape[0], -1)
        return self.head(functional.dropout(self.drop(pooled), self.dropout, self.training))


def seasoned(model: nn.Module, shape: tuple[int, int, int] = (3, 32, 32)) -> nn.Module:
    """With batch-norm statistics of its own, so that train and eval mode answer differently."""
    with torch.no_grad():
        model.train()(torch.rand(4, *shape))
    return model.eval()


def rebuilt(student: nn.Module) -> nn.Module:
    """By way of JSON, as a reader does it."""
    document, weights = describe(student)
    twin = load.Student(json.loads(json.dumps(document, allow_nan=False)))
    twin.load_state_dict(weights, strict=True)
    return twin.eval()


def write(student: nn.Module, folder: Path, *, onnx: bool = False) -> dict[str, float]:
    example = torch.rand(3, 3, 32, 32)
    return write_bundle(
        student, example, folder, onnx=onnx, classes=list("abcde"), mean=(0.5, 0.4, 0.3), std=(0.2, 0.2, 0.1)
    )


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reads the bundle back in this process; tests of the fresh one do not ask for this."""
    read_back_here(monkeypatch)


def zoo(name: str, **options: Any) -> Callable[[], nn.Module]:
    return lambda: getattr(torchvision.models, name)(weights=None, num_classes=5, **options)


STUDENTS: dict[str, Callable[[], nn.Module]] = {
    "varied": Varied,
    "resnet18": zoo("resnet18"),
    "mobilenet_v2": zoo("mobilenet_v2"),
    "mobilenet_v3_small": zoo("mobilenet_v3_small"),
    "efficientnet_b0": zoo("efficientnet_b0"),
    "densenet121": zoo("densenet121", drop_rate=0.1),
    "googlenet": zoo("googlenet", aux_logits=False, init_weights=False),
    "shufflenet": zoo("shufflenet_v2_x0_5"),
    "regnet": zoo("regnet_y_400mf"),
    "squeezenet": zoo("squeezenet1_1"),
    "mnasnet": zoo("mnasnet0_5"),
}


@pytest.mark.timeout(30)
@pytest.mark.parametrize("name", STUDENTS)
def test_a_student_comes_back_with_the_same_answers_for_every_batch_size(name: str) -> None:
    torch.manual_seed(0)
    student = seasoned(STUDENTS[name]())
    twin = rebuilt(student)
    with torch.no_grad():
        for n in (1, 3):
            images = torch.rand(n, 3, 32, 32)
            assert torch.equal(twin(images), student(images))
    assert {path: tensor.shape for path, tensor in twin.named_parameters()} == {
        path: tensor.shape for path, tensor in student.named_parameters()
    }


@pytest.mark.parametrize("name", ["vgg11_bn", "convnext_tiny"])
def test_networks_with_large_layers_come_back_too(name: str) -> None:
    """Without memory for their weights, of which there are too many for a quick test."""
    with torch.device("meta"):
        student = zoo(name)().eval()
        document, weights = describe(student)
        twin = load.Student(document)
    shapes = {path: tensor.shape for path, tensor in student.state_dict().items()}
    assert {path: tensor.shape for path, tensor in twin.state_dict().items()} == shapes
    assert {path: tensor.shape for path, tensor in weights.items()} == shapes


def test_a_student_that_came_back_learns_as_the_first_one_would() -> None:
    torch.manual_seed(0)
    student = seasoned(Varied(dropout=0.0))
    twin = rebuilt(student)
    images, labels = torch.rand(4, 3, 32, 32), torch.tensor([0, 1, 2, 3])
    for network in (student, twin):
        network.train()
        optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
        functional.cross_entropy(network(images), labels).backward()
        optimizer.step()
    theirs = dict(twin.named_parameters())
    for path, tensor in student.named_parameters():
        torch.testing.assert_close(theirs[path], tensor)
    assert torch.equal(twin.get_buffer("norm.running_mean"), student.get_buffer("norm.running_mean"))


def test_dropout_comes_back_as_a_module_even_when_it_was_called_as_a_function() -> None:
    twin = rebuilt(seasoned(Varied()))
    dropouts = {path: module.p for path, module in twin.named_modules() if isinstance(module, nn.Dropout)}
    assert dropouts == {"drop": 0.1, "traced_dropout": 0.1}
    images = torch.rand(2, 3, 32, 32)
    assert not torch.equal(twin.train()(images), twin(images))


def test_values_are_forgotten_after_their_last_use() -> None:
    """Else a deep student would hold every activation at once."""
    document, _ = describe(Varied())
    alive = {document["input"]["step"]}
    most = 0
    for step in document["steps"]:
        alive.add(step["name"])
        most = max(most, len(alive))
        alive -= set(step["forget"])
    assert alive == {document["output"]["step"]}
    assert most <= 4


def test_a_student_that_came_back_can_be_copied_and_followed_again() -> None:
    student = seasoned(Varied())
    twin = rebuilt(student)
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(copy.deepcopy(twin)(images), student(images))
        assert torch.equal(rebuilt(twin)(images), student(images))


class Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) if x.sum() > 0 else -x.flatten(1)


class TwoInputs(nn.Module):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return x + y


class TwoOutputs(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, -x


class Exotic(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.fft.fft2(x).real


class AlwaysDropping(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return functional.dropout(x, 0.5, True)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x))


class Foreign(nn.Conv2d):
    """Not what its class says: a subclass in torch.nn's own clothes."""


Foreign.__module__ = "torch.nn.modules.conv"


def tampered() -> nn.Module:
    layer = nn.Conv2d(3, 4, 1)
    layer.weight = nn.Parameter(torch.zeros(7, 3, 1, 1))
    return nn.Sequential(layer)


@pytest.mark.parametrize(
    ("student", "says"),
    [
        (Branching(), "forward cannot be followed"),
        (TwoInputs(), "takes 2 inputs"),
        (TwoOutputs(), "returns a tuple"),
        (Exotic(), "uses `fft_fft2`"),
        (AlwaysDropping(), "drops out at inference"),
        (Tied(), "`second.weight` and `first.weight` are one tensor"),
        (nn.Sequential(Foreign(3, 3, 1)), r"`0` is a `torch.nn.modules.conv.Foreign`"),
        (nn.Sequential(nn.Conv2d(3, 3, 1).double()), "float64"),
        (nn.Sequential(nn.MultiheadAttention(4, 1)), "MultiheadAttention"),
        (tampered(), "`0` does not follow"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_what_cannot_be_written_down_is_refused_with_the_reason(student: nn.Module, says: str) -> None:
    student.train()
    with pytest.raises(Unsupported, match=says):
        describe(student)
    assert student.training


@pytest.mark.parametrize(
    "name",
    ["torch.load", "torch.hub.load", "operator.methodcaller", "torch.Tensor.numpy", "os.system", "builtins.eval", ""],
)
@pytest.mark.parametrize("kind", ["function", "method"])
def test_the_loader_looks_up_allowed_names_only(name: str, kind: str) -> None:
    document, _ = describe(nn.Sequential(nn.ReLU()))
    document["steps"][0] |= {"kind": kind, "target": name}
    with pytest.raises(ValueError, match="may not name"):
        load.Student(document)(torch.rand(1, 3, 4, 4))
    document["modules"]["0"]["class"] = name
    with pytest.raises(ValueError, match="may not name"):
        load.Student(document)


def test_every_allowed_name_exists() -> None:
    for room, words in load.ALLOWED.items():
        for word in words.split():
            assert callable(getattr(load.ROOMS[room], word)), f"{room}.{word}"


def test_the_loader_needs_torch_torchvision_and_safetensors_only() -> None:
    tree = ast.parse(Path(load.__file__).read_text(encoding="utf-8"))
    roots = {
        name.split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in ([node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names])
    }
    assert roots - sys.stdlib_module_names == {"torch", "torchvision", "safetensors"}
    called = {node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}
    assert not called & {"eval", "exec", "compile", "__import__"}


@pytest.mark.timeout(120)
def test_a_bundle_with_all_its_files_answers_in_a_fresh_process_and_in_onnxruntime(tmp_path: Path) -> None:
    torch.manual_seed(0)
    student = seasoned(Varied()).train()
    before = {path: tensor.clone() for path, tensor in student.state_dict().items()}
    folder = tmp_path / "made" / "student"
    found = write(student, folder, onnx=True)
    assert found["bundle"] == 0.0
    assert 0.0 <= found["onnx"] < 1e-4
    assert {path.name for path in folder.iterdir()} == set(FILES)

    assert student.training
    assert all(torch.equal(tensor, before[path]) for path, tensor in student.state_dict().items())

    read = read_bundle(folder)
    assert (read.shape, read.mean, read.std) == ((3, 32, 32), (0.5, 0.4, 0.3), (0.2, 0.2, 0.1))
    assert read.classes == tuple("abcde")
    assert not read.student.training

    model = onnx.load(folder / "student.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", OPSET)]
    assert not any(tensor.external_data for tensor in model.graph.initializer)
    images = torch.rand(7, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(
            answers(folder / "student.onnx", {"seven": images})["seven"], student.eval()(images), rtol=1e-4, atol=1e-5
        )


@pytest.mark.timeout(60)
def test_the_files_are_the_same_to_the_byte_and_name_no_machine(
    tmp_path: Path, here: None, capfd: pytest.CaptureFixture[str]
) -> None:
    student = seasoned(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten()))
    for name in ("first", "second"):
        write(student, tmp_path / name, onnx=True)
    for name in FILES:
        data = (tmp_path / "first" / name).read_bytes()
        assert data == (tmp_path / "second" / name).read_bytes(), name
        assert str(Path(__file__).parents[2]).encode() not in data, name
        assert str(Path(torch.__file__).parent).encode() not in data, name
    assert capfd.readouterr() == ("", "")


@pytest.mark.timeout(60)
def test_a_bundle_that_a_stranger_cannot_load_is_not_handed_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loader = tmp_path / "load.py"
    loader.write_text(Path(load.__file__).read_text(encoding="utf-8") + "\nimport search.errors\n", encoding="utf-8")
    monkeypatch.setattr(bundle.load, "__file__", str(loader))
    with pytest.raises(VerificationFailed, match=r"fresh process: .*search"):
        write(nn.Sequential(nn.Flatten()), tmp_path / "student")
    assert list((tmp_path / "student").iterdir()) == []


@pytest.mark.timeout(30)
def test_a_bundle_that_hangs_is_given_up(tmp_path: Path) -> None:
    (tmp_path / "load.py").write_text("import time\ntime.sleep(60)\n", encoding="utf-8")
    with pytest.raises(VerificationFailed, match="within 2 seconds"):
        verify.bundle_answers(tmp_path, {"one": torch.zeros(1)}, time_limit=2)


@pytest.mark.timeout(30)
def test_a_form_that_answers_differently_is_not_handed_out(
    tmp_path: Path, here: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def careless(student: nn.Module, example: Tensor, path: Path) -> None:
        other = copy.deepcopy(student)
        with torch.no_grad():
            next(other.parameters()).mul_(1.01)
        write_onnx(other, example, path)

    monkeypatch.setattr(bundle, "write_onnx", careless)
    with pytest.raises(VerificationFailed, match=r"onnx: logits differ .* more than 0.0001 of their largest"):
        write(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten()).eval(), tmp_path, onnx=True)
    assert list(tmp_path.iterdir()) == []


def test_deviation_is_judged_against_the_largest_logit_of_each_batch() -> None:
    expected = {"large": torch.tensor([[100.0, 0.0]]), "small": torch.tensor([[0.01, 0.0]])}
    near = {"large": torch.tensor([[100.0, 0.005]]), "small": torch.tensor([[0.01, 0.0]])}
    assert verify.deviation("form", expected, near) == pytest.approx(0.005)
    with pytest.raises(VerificationFailed, match="small"):
        verify.deviation("form", expected, near | {"small": torch.tensor([[0.01, 0.005]])})
    with pytest.raises(VerificationFailed, match="differ"):
        verify.deviation("form", expected, near | {"large": torch.tensor([[float("nan"), 0.0]])})
    with pytest.raises(VerificationFailed, match=r"\[1, 1\], the student's \[1, 2\]"):
        verify.deviation("form", expected, near | {"large": torch.tensor([[100.0]])})


def test_a_student_whose_own_logits_are_not_finite_is_not_handed_out(tmp_path: Path) -> None:
    student = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 2))
    nn.init.constant_(student[1].bias, float("inf"))  # type: ignore[arg-type]
    with pytest.raises(VerificationFailed, match="not finite"):
        write(student, tmp_path)


class FixedBatch(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(2, 3 * 32 * 32)


def test_a_student_for_one_batch_size_is_not_handed_out(tmp_path: Path) -> None:
    with pytest.raises(VerificationFailed, match="itself cannot answer the example batch"):
        write(FixedBatch(), tmp_path)


@pytest.mark.timeout(30)
def test_an_onnx_file_for_one_batch_size_is_not_handed_out(
    tmp_path: Path, here: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bundle, "write_onnx", lambda _, example, path: write_onnx(FixedBatch().eval(), example, path))
    with pytest.raises(VerificationFailed, match="onnxruntime cannot use the file"):
        write(nn.Sequential(nn.Flatten()), tmp_path, onnx=True)


@pytest.mark.timeout(30)
def test_a_student_that_onnx_cannot_express_is_refused_with_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match=r"`export\.onnx: false` does without") as caught:
        write_onnx(Branching().eval(), torch.rand(2, 3, 4, 4), tmp_path / "student.onnx")
    assert caught.value.errors[0].pointer == "/export/onnx"


def _without(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def _garbled(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(b"{\xff")


def _later_format(folder: Path) -> None:
    path = folder / "architecture.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | {"version": 2}), encoding="utf-8")


def _missing_weight(folder: Path) -> None:
    weights = load_file(folder / "weights.safetensors")
    weights.popitem()
    save_file(weights, folder / "weights.safetensors")


@pytest.mark.parametrize(
    "spoil",
    [
        _without("architecture.json"),
        _without("weights.safetensors"),
        _garbled("architecture.json"),
        _garbled("weights.safetensors"),
        _later_format,
        _missing_weight,
    ],
)
def test_a_spoilt_bundle_is_refused_when_it_is_read(tmp_path: Path, here: None, spoil: Callable[[Path], None]) -> None:
    write(seasoned(Varied()), tmp_path)
    (tmp_path / "load.py").write_text("raise SystemExit('never run by read_bundle')", encoding="utf-8")
    assert read_bundle(tmp_path).shape == (3, 32, 32)
    spoil(tmp_path)
    with pytest.raises(WeightsError):
        read_bundle(tmp_path)
