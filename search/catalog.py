"""
Names -> plugins.

Built-in plugins are lines of the same shape as an outsider's entry point, `module:attribute`, in the group
`stillhouse.<kind>`; one loader loads both. A plugin is a class with a nested `Options` model, made as
`Plugin(options)`; what else it must have is said by the `Protocol` of its kind in `search.plugins`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from importlib.metadata import entry_points
from inspect import getdoc
from typing import Any

from search.errors import InvalidSpec, StillhouseError, UnknownName
from search.part import Part, read_part
from search.spec import Pick

KINDS = ("teachers", "datasets", "distillers", "strategies", "costs")

BUILT_IN: Mapping[str, Mapping[str, str]] = {
    "teachers": {
        "small_resnet": "search.teachers.small:SmallResNet",
        "small_mobilenet": "search.teachers.small:SmallMobileNet",
        "torchvision": "search.teachers.zoo:Torchvision",
        "detector": "search.teachers.detector:TorchvisionDetector",
    },
    "datasets": {
        "digits": "search.datasets.digits:Digits",
        "cluttered_digits": "search.datasets.cluttered:ClutteredDigits",
        "shapes": "search.datasets.shapes:Shapes",
        "long_tailed": "search.datasets.long_tailed:LongTailed",
        "torchvision": "search.datasets.zoo:Torchvision",
        "image_folder": "search.datasets.folder:ImageFolder",
        "coco": "search.datasets.coco:Coco",
        "scenes": "search.datasets.scenes:Scenes",
    },
    "distillers": {
        "attention": "search.distillers.attention:Attention",
        "bkd": "search.distillers.bkd:Bkd",
        "contrast": "search.distillers.contrast:Contrast",
        "dist": "search.distillers.dist:Dist",
        "dkd": "search.distillers.dkd:Dkd",
        "feature": "search.distillers.feature:Feature",
        "fitnet": "search.distillers.fitnet:FitNet",
        "hierarchical": "search.distillers.hierarchical:Hierarchical",
        "hinton": "search.distillers.hinton:Hinton",
        "pcl": "search.distillers.pcl:Pcl",
        "rkd": "search.distillers.rkd:Rkd",
        "sequence": "search.distillers.sequence:Sequence",
        "srm": "search.distillers.srm:Srm",
        "supervised": "search.distillers.supervised:Supervised",
    },
    "strategies": {
        "planned": "search.strategies.planned:Planned",
        "evolution": "search.strategies.evolution:Evolution",
        "gp": "search.strategies.gp:Gp",
        "nsga2": "search.strategies.nsga2:Nsga2",
        "random": "search.strategies.random:Random",
        "structure": "search.strategies.structure:Structure",
        "tpe": "search.strategies.tpe:Tpe",
        "uniform": "search.strategies.uniform:Uniform",
    },
    "costs": {
        "macs": "search.costs.counted:Macs",
        "flops": "search.costs.counted:Flops",
        "params": "search.costs.counted:Params",
        "weight_bytes": "search.costs.counted:WeightBytes",
        "activation_bytes": "search.costs.counted:ActivationBytes",
        "latency": "search.costs.timed:Latency",
        "throughput": "search.costs.timed:Throughput",
    },
}


@dataclass(frozen=True, slots=True)
class Entry:
    """What can be said of a plugin to someone who wants to choose one."""

    name: str
    summary: str
    options: Mapping[str, Any]
    """JSON schema of its options."""


class Catalog:
    """The plugins that exist here: the built-in ones and those of installed distributions."""

    @cached_property
    def _targets(self) -> Mapping[str, Mapping[str, str]]:
        targets: dict[str, dict[str, str]] = {kind: dict(BUILT_IN[kind]) for kind in KINDS}
        for kind in KINDS:
            for point in entry_points(group=f"stillhouse.{kind}"):
                if targets[kind].setdefault(point.name, point.value) != point.value:
                    raise StillhouseError(
                        f"two plugins of kind {kind} are called `{point.name}`: "
                        f"{targets[kind][point.name]} and {point.value}; uninstall or rename one"
                    )
        return targets

    def names(self, kind: str) -> list[str]:
        """Raises `UnknownName` when there is no such kind."""
        return sorted(self._of(kind))

    def load(self, kind: str, name: str) -> Any:
        """
        The plugin class.

        Raises:
            UnknownName: nobody has registered that kind or name.
        """
        targets = self._of(kind)
        if name not in targets:
            raise UnknownName(kind.removesuffix("s"), name, targets)
        module, _, attribute = targets[name].partition(":")
        return getattr(import_module(module), attribute)

    def make(self, kind: str, pick: Pick, **context: Any) -> Any:
        """
        The plugin that `pick` names, made from its checked options; `context` goes to its constructor.

        Raises:
            InvalidSpec: unknown name, or options the plugin does not take; pointers start at the pick.
        """
        plugin = self.load(kind, pick.name)
        options_model: type[Part] = plugin.Options
        try:
            options = read_part(options_model, pick.options)
        except InvalidSpec as error:
            raise InvalidSpec([found.under("/options") for found in error.errors]) from None
        return plugin(options, **context)

    def describe(self, kind: str) -> list[Entry]:
        return [self._entry(kind, name) for name in self.names(kind)]

    def _entry(self, kind: str, name: str) -> Entry:
        plugin = self.load(kind, name)
        summary = (getdoc(plugin) or "").split("\n\n")[0].replace("\n", " ")
        return Entry(name, summary, plugin.Options.model_json_schema())

    def _of(self, kind: str) -> Mapping[str, str]:
        if kind not in self._targets:
            raise UnknownName("kind of plugin", kind, KINDS, pointer="")
        return self._targets[kind]
