"""Costs that follow from the architecture alone. The survey of a teacher gives their exact values."""

from __future__ import annotations

from typing import ClassVar

from search.spec import Part


class Macs:
    """
    Multiply-accumulates of one image in evaluation mode, at the dataset's image size. 1 MAC = 2 FLOPs.

    Convolutions and matrix products are counted; batch norm, activations, pooling and additions are not.
    """

    unit: ClassVar[str] = "MACs"

    class Options(Part):
        pass

    def __init__(self, options: Options) -> None:
        self._options = options


class Flops:
    """
    Floating-point operations of one image in evaluation mode, at the dataset's image size: twice its macs.

    Convolutions and matrix products are counted; batch norm, activations, pooling and additions are not.
    """

    unit: ClassVar[str] = "FLOPs"

    class Options(Part):
        pass

    def __init__(self, options: Options) -> None:
        self._options = options


class Params:
    """
    Elements of all parameters: weights, biases, batch-norm scales and shifts, layer scales.

    Buffers, such as the running statistics of batch norm, are not parameters and not counted.
    """

    unit: ClassVar[str] = "parameters"

    class Options(Part):
        pass

    def __init__(self, options: Options) -> None:
        self._options = options
