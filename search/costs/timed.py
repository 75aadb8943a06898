"""Costs that are measured: predicted during the search from a table of measured networks, verified on the student."""

from __future__ import annotations

from typing import ClassVar

from search.part import Part


class Latency:
    """
    Nanoseconds from a batch of images to its logits, in the runtime and with the settings that the budget names.

    Students are searched by a prediction, learned from networks of the same space; the exported file is measured.
    """

    unit: ClassVar[str] = "nanoseconds a batch"

    class Options(Part):
        pass

    def __init__(self, options: Options) -> None:
        self._options = options


class Throughput:
    """
    Images a second, in the runtime and with the settings that the budget names; batches go one after the other.

    Its limits are least values. It is the size of the batch divided by the latency, predicted and measured as that is.
    """

    unit: ClassVar[str] = "images a second"

    class Options(Part):
        pass

    def __init__(self, options: Options) -> None:
        self._options = options
