"""The student as one ONNX file, without external data and without a word about the machine that wrote it."""

from __future__ import annotations

import ast
import warnings
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import NamedTuple

import onnx_ir
import onnxruntime
import torch
from onnx_ir.passes.common import ClearMetadataAndDocStringPass
from torch import Tensor, nn
from torch.export import Dim

from search.errors import Unsupported, VerificationFailed
from search.export.detecting import Detecting

OPSET = 20
"""Read by onnxruntime 1.17 and later."""


class Origin(NamedTuple):
    """
    Where a node of the file comes from: the innermost `module` of the student that was running, and the owner of the
    `weights` that the node has or, if it has none, those of the node that it goes on from. Empty when there is none.
    """

    module: str
    weights: str


def write_onnx(student: nn.Module, example: Tensor, path: Path) -> dict[str, Origin]:
    """
    Input `images [n, channels, height, width]`, output `logits [n, classes]`, or `detections [n, found, 6]` of a
    `Detecting`, any n. The student is in eval mode.

    Returns:
        The origin of every node and of every value that one computes, by name.

    Raises:
        Unsupported: the student cannot be written as ONNX, or not for every batch size.
    """
    two = example[:1].expand(2, -1, -1, -1).contiguous()  # a batch of one would be taken for a constant
    try:
        with warnings.catch_warnings():
            # torchvision asks torch for the shape of what suppression leaves by a name that is going out of use
            warnings.filterwarnings("ignore", "`create_unbacked_symint` is deprecated", FutureWarning)
            program = torch.onnx.export(
                student,
                (two,),
                dynamo=True,
                dynamic_shapes=({0: Dim("n")},),
                input_names=["images"],
                output_names=["detections" if isinstance(student, Detecting) else "logits"],
                opset_version=OPSET,
                verbose=False,
            )
    except Exception as error:  # whatever goes wrong below comes out in one of the exporter's own kinds
        reason = str(error).strip().partition("\n")[0]
        raise Unsupported(
            f"the student cannot be written as ONNX ({reason}); `export.onnx: false` does without",
            pointer="/export/onnx",
        ) from error
    assert program is not None  # noqa: S101 - None is for the exporter of old
    modules = {name for name, _ in student.named_modules()}
    origins: dict[str, Origin] = {}
    for node in program.model.graph:
        origin = _origin(node, modules, origins)
        origins |= dict.fromkeys(_names(node), origin)
    ClearMetadataAndDocStringPass()(program.model)  # stack traces, with the paths of this machine
    program.save(path, external_data=False)
    return origins


def _names(node: onnx_ir.Node) -> list[str]:
    return [name for name in (node.name, *(output.name for output in node.outputs)) if name]


def _origin(node: onnx_ir.Node, modules: Collection[str], before: Mapping[str, Origin]) -> Origin:
    scopes = ast.literal_eval(node.metadata_props.get("pkg.torch.onnx.name_scopes", "[]"))
    module = next((scope for scope in reversed(scopes) if scope in modules), "")
    names = [value.name for value in node.inputs if value is not None and value.name]
    owners = (name.rpartition(".")[0] for name in names if name not in before)
    owner = next((owner for owner in owners if owner in modules and owner), "")
    if owner:
        return Origin(owner, owner)  # a batch norm that became part of a convolution has left its own name on the node
    return Origin(module, before[names[0]].weights if names and names[0] in before else "")


def answers(path: Path, batches: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """
    What onnxruntime answers on the CPU to every batch of images.

    Raises:
        VerificationFailed: it cannot open the file, or cannot answer a batch.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = torch.get_num_threads()
    try:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        return {
            name: torch.from_numpy(session.run(None, {"images": images.numpy()})[0]) for name, images in batches.items()
        }
    except Exception as error:  # its errors have no root of their own
        raise VerificationFailed(f"onnx: onnxruntime cannot use the file: {error}") from error
