"""Costs that follow from the architecture alone. The survey of a teacher gives their exact values."""

from __future__ import annotations

from typing import ClassVar

from search.part import Part


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


class WeightBytes:
    """Bytes of all parameters and buffers as they are stored, in float32; a weights file has a header besides."""

    unit: ClassVar[str] = "bytes"

    class Options(Part):
        pass

    def __init__(self, options: Options) -> None:
        self._options = options


class ActivationBytes:
    """
    The most bytes that are alive at once while one image goes through the network in evaluation mode, in float32.

    Every operation writes memory of its own unless it works in place, and memory is given back after it is read last.
    Weights and an operation's own scratch space are not counted.
    """

    unit: ClassVar[str] = "bytes"

    class Options(Part):
        pass

    def __init__(self, options: Options) -> None:
        self._options = options
