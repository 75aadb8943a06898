"""The student as one ONNX file, without external data and without a word about the machine that wrote it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import onnxruntime
import torch
from onnx_ir.passes.common import ClearMetadataAndDocStringPass
from torch import Tensor, nn
from torch.export import Dim

from search.errors import Unsupported, VerificationFailed

OPSET = 20
"""Read by onnxruntime 1.17 and later."""


def write_onnx(student: nn.Module, example: Tensor, path: Path) -> None:
    """
    Input `images [n, channels, height, width]`, output `logits [n, classes]`, any n. The student is in eval mode.

    Raises:
        Unsupported: the student cannot be written as ONNX, or not for every batch size.
    """
    two = example[:1].expand(2, -1, -1, -1).contiguous()  # a batch of one would be taken for a constant
    try:
        program = torch.onnx.export(
            student,
            (two,),
            dynamo=True,
            dynamic_shapes=({0: Dim("n")},),
            input_names=["images"],
            output_names=["logits"],
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
    ClearMetadataAndDocStringPass()(program.model)  # stack traces, with the paths of this machine
    program.save(path, external_data=False)


def answers(path: Path, batches: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """
    What onnxruntime answers on the CPU: logits `[n, classes]` to every batch of images.

    Raises:
        VerificationFailed: it cannot open the file, or cannot answer a batch.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = torch.get_num_threads()
    try:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        return {
            name: torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])
            for name, images in batches.items()
        }
    except Exception as error:  # its errors have no root of their own
        raise VerificationFailed(f"onnx: onnxruntime cannot use the file: {error}") from error
