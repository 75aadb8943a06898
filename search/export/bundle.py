"""The student to take home: a folder that needs neither Stillhouse nor trust in whoever wrote it."""

from __future__ import annotations

import copy
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save
from torch import Tensor, nn

from search.detector import Detector
from search.errors import WeightsError
from search.export import load
from search.export.architecture import VERSION, describe
from search.export.detecting import Detecting, difference, finds, provoked, restless
from search.export.onnx import answers, write_onnx
from search.export.verify import batches, bundle_answers, deviation, student_answers

FILES: Mapping[str, str] = {
    "architecture.json": "application/json",
    "load.py": "text/x-python",
    "student.onnx": "application/octet-stream",
    "weights.safetensors": "application/octet-stream",
}
"""Every file a bundle can have, with its media type; `student.onnx` is there when it was asked for."""


@dataclass(frozen=True)
class Bundle:
    """
    A student read back, in eval mode, with what one must know to ask it.

    It takes images `[n, *shape]` on the 0..1 scale, less `mean`, divided by `std` (both by channel).
    """

    student: nn.Module
    shape: tuple[int, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    classes: tuple[str, ...]


def write_bundle(
    student: nn.Module,
    example: Tensor,
    folder: Path,
    *,
    onnx: bool,
    classes: Sequence[str],
    mean: Sequence[float],
    std: Sequence[float],
) -> dict[str, float]:
    """
    Writes the student into `folder`, reads every form back and compares its answers with the student's.

    `example` is a batch `[n, channels, height, width]` as the student takes it. The files appear only after all of
    them were verified. The student itself is left as it is. A detector is written as what answers with boxes; where it
    finds none, a copy that leaves out no box is written and verified before it.

    Returns:
        The largest absolute difference of logits, or of the scores of boxes, by form: `bundle`, and `onnx` when it was
        asked for.

    Raises:
        Unsupported: the student cannot be written down; says what stands in the way.
        VerificationFailed: a form does not answer as the student does (see `search.export.verify.TOLERANCE`, and
            `search.export.detecting` for boxes).
    """
    student = copy.deepcopy(student).cpu().eval()
    example = example.detach().cpu()
    questions, answer, before = batches(example), "logits", dict[str, float]()
    if isinstance(student, Detector):
        answer = "detections"
        random = {name: provoked(student, images) for name, images in questions.items() if name != "example"}
        questions |= random
        if student.least_score >= 0 and not any(finds(student, images).any() for images in questions.values()):
            frank = copy.deepcopy(student)
            frank.least_score = -1.0
            with tempfile.TemporaryDirectory(prefix="sth-verify-") as name:
                before = write_bundle(frank, example, Path(name), onnx=onnx, classes=classes, mean=mean, std=std)
        student = Detecting(student)
    document, weights = describe(student)
    document["input"] |= {"shape": list(example.shape[1:]), "mean": list(mean), "std": list(std)}
    document["output"] |= {"classes": list(classes), "answer": answer}
    expected = student_answers(student, questions)
    compare: Callable[..., float] = deviation
    if isinstance(student, Detecting):
        compare = partial(difference, alone=restless(student, questions, expected))
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".unverified-", dir=folder) as name:
        draft = Path(name)
        text = json.dumps(document, indent=1, sort_keys=True, allow_nan=False, ensure_ascii=False)
        (draft / "architecture.json").write_text(text + "\n", encoding="utf-8")
        (draft / "weights.safetensors").write_bytes(
            save({path: tensor.detach().contiguous().clone() for path, tensor in weights.items()})
        )
        (draft / "load.py").write_bytes(Path(load.__file__).read_bytes())
        found = {"bundle": compare("bundle", expected, bundle_answers(draft, questions))}
        if onnx:
            write_onnx(student, example, draft / "student.onnx")
            found["onnx"] = compare("onnx", expected, answers(draft / "student.onnx", questions))
        for path in sorted(draft.iterdir()):
            path.replace(folder / path.name)
    return {form: max(largest, before.get(form, 0.0)) for form, largest in found.items()}


def read_bundle(folder: Path) -> Bundle:
    """
    A bundle written by `write_bundle`. Nothing that lies in the folder is run, its `load.py` included.

    Raises:
        WeightsError: a file is missing or malformed, or the weights do not fit the architecture.
    """
    try:
        document = json.loads((folder / "architecture.json").read_text(encoding="utf-8"))
        if document["version"] != VERSION:
            raise WeightsError(f"{folder}: format {document['version']} is not known here, only {VERSION}")
        entry, exit_ = document["input"], document["output"]
        return Bundle(
            load.load(folder),
            tuple(entry["shape"]),
            tuple(entry["mean"]),
            tuple(entry["std"]),
            tuple(exit_["classes"]),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, SafetensorError) as error:
        raise WeightsError(f"{folder} does not hold a student: {error}") from error
