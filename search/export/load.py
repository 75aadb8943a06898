"""
The student that lies beside this file: `load(folder)` gives it in eval mode, ready to answer or to be trained on.

    student = load(".")
    answer = student((images / 255 - mean) / std)   # images [n, channels, height, width]

A classifier answers with logits `[n, classes]`. A detector answers with `[n, found, 6]`: x1, y1, x2, y2 in pixels,
score and class of what it finds, best first, and rows of zeros where it finds no more.

`architecture.json` tells shape, mean, std, classes and which of the two it is. It is data: beyond its own modules and
tensors it can name what `ALLOWED` lists and no more, and nothing in it is run as code. Needs torch, torchvision and
safetensors.
"""

import json
import operator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn
from torchvision import ops

ROOMS = {"operator": operator, "torch": torch, "torch.Tensor": torch.Tensor, "torch.nn": nn}
ROOMS |= {"torch.nn.functional": nn.functional, "torchvision.ops": ops}
ALLOWED = {
    "operator": "add and_ floordiv ge getitem gt iadd imul isub itruediv matmul mod mul neg pow sub truediv",
    "torch": "abs add cat channel_shuffle chunk clamp concat cumsum div exp flatten floor gather index_fill log2 "
    "matmul maximum mean minimum mul ones_like permute pow relu reshape rsqrt sigmoid softmax split sqrt squeeze stack "
    "sub sum tanh topk transpose unsqueeze zeros_like",
    "torch.Tensor": "abs add add_ chunk clamp clamp_ contiguous dim div div_ double exp expand expand_as flatten float "
    "matmul mean mul mul_ permute pow relu relu_ repeat reshape sigmoid size softmax split sqrt squeeze sub sub_ sum "
    "tanh transpose unflatten unsqueeze view view_as",
    "torch.nn": "AdaptiveAvgPool2d AdaptiveMaxPool2d AvgPool2d BatchNorm1d BatchNorm2d ChannelShuffle ConstantPad2d "
    "Conv2d ConvTranspose2d Dropout Dropout1d Dropout2d ELU Flatten GELU GroupNorm Hardsigmoid Hardswish Hardtanh "
    "Identity InstanceNorm2d LayerNorm LeakyReLU Linear LocalResponseNorm LogSoftmax MaxPool2d Mish PReLU "
    "PixelShuffle PixelUnshuffle RMSNorm ReLU ReLU6 ReflectionPad2d ReplicationPad2d SELU SiLU Sigmoid Softmax "
    "Softplus Tanh Unflatten Upsample ZeroPad2d",
    "torch.nn.functional": "adaptive_avg_pool2d adaptive_max_pool2d avg_pool2d conv2d elu gelu group_norm hardsigmoid "
    "hardswish hardtanh interpolate layer_norm leaky_relu linear log_softmax max_pool2d mish normalize pad "
    "pixel_shuffle prelu relu relu6 sigmoid silu softmax softplus tanh",
    "torchvision.ops": "StochasticDepth nms roi_align",
}


class Student(nn.Module):
    """Walks the steps listed in `architecture.json`; the value of a step is forgotten after its last use."""

    def __init__(self, architecture: dict[str, Any]) -> None:
        super().__init__()
        for path, module in architecture["modules"].items():
            options = {name: _value(option, {}) for name, option in module["options"].items()}
            _owner(self, path).add_module(path.rpartition(".")[2], _look_up(module["class"])(**options))
        for path, tensor in architecture["tensors"].items():
            owner, name, zeros = _owner(self, path), path.rpartition(".")[2], torch.zeros(tensor["shape"])
            setattr(owner, name, nn.Buffer(zeros) if tensor["kind"] == "buffer" else nn.Parameter(zeros))
        self._input, self._steps, self._output = (architecture[part] for part in ("input", "steps", "output"))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        values: dict[str, Any] = {self._input["step"]: images}
        for step in self._steps:
            args = [_value(arg, values) for arg in step["args"]]
            kwargs = {name: _value(arg, values) for name, arg in step["kwargs"].items()}
            values[step["name"]] = self._take(step["kind"], step["target"], args, kwargs)
            for name in step["forget"]:
                del values[name]
        answer: torch.Tensor = values[self._output["step"]]
        return answer

    def _take(self, kind: str, target: str, args: list[Any], kwargs: dict[str, Any]) -> Any:
        if kind == "tensor":
            return getattr(self.get_submodule(target.rpartition(".")[0]), target.rpartition(".")[2])
        if kind == "module":
            return self.get_submodule(target)(*args, **kwargs)
        function = _look_up(target)
        return (
            getattr(args[0], function.__name__)(*args[1:], **kwargs) if kind == "method" else function(*args, **kwargs)
        )


def load(folder: str | Path) -> Student:
    student = Student(json.loads((Path(folder) / "architecture.json").read_text(encoding="utf-8")))
    student.load_state_dict(load_file(Path(folder) / "weights.safetensors"), strict=True)
    return student.eval()


def _owner(root: nn.Module, path: str) -> nn.Module:
    for name in path.split(".")[:-1]:
        if name not in dict(root.named_children()):
            root.add_module(name, nn.Module())
        root = root.get_submodule(name)
    return root


def _look_up(name: str) -> Any:
    room, _, word = name.rpartition(".")
    if word not in ALLOWED.get(room, "").split():
        raise ValueError(f"architecture.json may not name {name}")
    return getattr(ROOMS[room], word)


def _value(data: Any, values: dict[str, Any]) -> Any:
    """
    An argument: arrays become tuples, `{"step": name}` that step's value, `{"slice": [from, to, by]}` a slice and
    `{"ellipsis": 3}` the three dots.
    """
    if isinstance(data, list):
        return tuple(_value(item, values) for item in data)
    if isinstance(data, dict):
        if "ellipsis" in data:
            return ...
        return values[data["step"]] if "step" in data else slice(*_value(data["slice"], values))
    return data
