"""
Milliseconds a training step by how threads wait, beside another torch process with threads of its own.

    python -m benchmarks.threads

Each setting is read when torch is imported, so each is timed in a process of its own; all share one rival process.
"""

from __future__ import annotations

import os
import subprocess
import sys

SETTINGS = {
    "two threads, default waiting": {"OMP_NUM_THREADS": "2"},
    "two threads, passive waiting": {"OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "PASSIVE"},
    "one thread": {"OMP_NUM_THREADS": "1"},
}
RIVAL = """
import torch
left, right = torch.randn(2, 1500, 1500)
while True:
    left @ right
"""
STEP = """
import statistics, time, torch
from search.catalog import Catalog
from search.spec import Pick
model = Catalog().make("teachers", Pick(name="small_resnet")).build((3, 32, 32), 10)
model = model.to(memory_format=torch.channels_last)
images = torch.randn(64, 3, 32, 32).contiguous(memory_format=torch.channels_last)
labels = torch.randint(0, 10, (64,))
def step():
    began = time.perf_counter()
    torch.nn.functional.cross_entropy(model(images), labels).backward()
    return 1000 * (time.perf_counter() - began)
step()
print(statistics.median(step() for _ in range(7)))
"""


def main() -> None:
    rival = subprocess.Popen([sys.executable, "-c", RIVAL], env=os.environ | {"OMP_NUM_THREADS": "2"})
    try:
        for name, setting in SETTINGS.items():
            answer = subprocess.run(
                [sys.executable, "-c", STEP], env=os.environ | setting, capture_output=True, text=True, check=True
            )
            print(f"{name:30} {float(answer.stdout):8.0f} ms a step")
    finally:
        rival.kill()
        rival.wait()


if __name__ == "__main__":
    main()
