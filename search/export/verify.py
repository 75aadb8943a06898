"""What was exported answers as the student does, or it is not handed out."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from search.errors import VerificationFailed

TOLERANCE = 1e-4
"""Largest difference of a logit, as a share of the student's largest absolute logit on the same batch."""

TIME_LIMIT = 180.0
"""Seconds for a fresh process to import torch, load the bundle and answer every batch."""

# Runs where a stranger would: isolated from the environment, and our own packages cannot be imported.
_STRANGER = """
import sys
from pathlib import Path
sys.modules.update(dict.fromkeys(("search", "workers", "service")))
folder, questions, replies, threads = sys.argv[1:]
sys.path.insert(0, folder)
import torch
from load import load
from safetensors.torch import load_file, save_file
torch.set_num_threads(int(threads))
student = load(folder)
with torch.inference_mode():
    save_file({name: student(images).contiguous() for name, images in load_file(questions).items()}, replies)
"""


def batches(example: Tensor) -> dict[str, Tensor]:
    """The example batch and random ones of other sizes, by name; each `[n, channels, height, width]`."""
    generator = torch.Generator().manual_seed(0)
    random = {f"random {n}": torch.randn(n, *example.shape[1:], generator=generator) for n in (1, 2, 5)}
    return {"example": example.detach().cpu().contiguous(), **random}


def student_answers(student: nn.Module, questions: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """
    What a student in eval mode answers on the CPU: logits, or boxes.

    Raises:
        VerificationFailed: it cannot answer a batch, or its answers are not finite, so that nothing could be compared.
    """
    replies: dict[str, Tensor] = {}
    for name, images in questions.items():
        try:
            with torch.inference_mode():
                replies[name] = student(images).clone()
        except Exception as error:  # a forward can fail in any way
            raise VerificationFailed(f"the student itself cannot answer the {name} batch: {error}") from error
    for name, reply in replies.items():
        if not reply.isfinite().all():
            raise VerificationFailed(f"the student's own answers are not finite ({name} batch)")
    return replies


def bundle_answers(
    folder: Path, questions: Mapping[str, Tensor], *, time_limit: float = TIME_LIMIT
) -> dict[str, Tensor]:
    """
    What the bundle answers through its own `load.py` in a fresh process that cannot import Stillhouse.

    Raises:
        VerificationFailed: the bundle could not be loaded there, or took longer than `time_limit` seconds.
    """
    with tempfile.TemporaryDirectory(prefix="stillhouse-verify-") as name:
        asked, told = Path(name) / "questions.safetensors", Path(name) / "replies.safetensors"
        save_file(dict(questions), asked)
        arguments = [str(folder.resolve()), str(asked), str(told), str(torch.get_num_threads())]
        try:
            subprocess.run(  # noqa: S603 - our own words
                [sys.executable, "-I", "-B", "-c", _STRANGER, *arguments],
                cwd=name,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=time_limit,
                check=True,
            )
        except subprocess.TimeoutExpired:
            raise VerificationFailed(f"the bundle did not answer within {time_limit:g} seconds") from None
        except subprocess.CalledProcessError as error:
            why = error.stderr.decode(errors="replace").strip().rpartition("\n")[2]
            raise VerificationFailed(f"the bundle cannot be loaded in a fresh process: {why}") from None
        return load_file(told)


def deviation(form: str, expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> float:
    """
    The largest absolute difference between logits, over all batches.

    Raises:
        VerificationFailed: it is above `TOLERANCE`, a logit is not a number, or the shapes differ.
    """
    largest = 0.0
    for name, logits in expected.items():
        if found[name].shape != logits.shape:
            raise VerificationFailed(
                f"{form}: logits are {list(found[name].shape)}, the student's {list(logits.shape)} ({name} batch)"
            )
        difference, scale = (found[name] - logits).abs().max().item(), logits.abs().max().item()
        if not difference <= TOLERANCE * scale:
            raise VerificationFailed(
                f"{form}: logits differ from the student's by {difference:.3g}, more than {TOLERANCE:g} of their "
                f"largest, {scale:.3g} ({name} batch)"
            )
        largest = max(largest, difference)
    return largest
