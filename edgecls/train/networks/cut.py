"""A network in two: the front, whose weights stay, and the rest, so that the front runs once for every picture."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from edgecls.train.networks.models import PixelClassifier
from edgecls.train.networks.stages import stages


class Front(nn.Module):
    """Pixels to the activations in front of the first stage that is trained."""

    def __init__(self, classifier: PixelClassifier, front: nn.Module) -> None:
        super().__init__()
        self.classifier, self.front = classifier, front

    def features(self, images: Tensor) -> Tensor:
        """(n, h, w, 3) uint8 -> activations (n, ...)."""
        activations: Tensor = self.front(self.classifier.normalised(images))
        return activations


@dataclass(frozen=True)
class Cut:
    """Both parts; they hold the very modules of the classifier.

    Attributes:
        rest: activations -> what the head sees.
    """

    front: Front
    rest: Callable[[Tensor], Tensor]


class _Tracer(fx.Tracer):
    """Takes the stages' modules as they are: how they compute is their own affair."""

    def __init__(self, whole: set[nn.Module]) -> None:
        super().__init__()
        self.whole = whole

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return m in self.whole or super().is_leaf_module(m, module_qualified_name)


def cut_before_trained(classifier: PixelClassifier) -> Cut | None:
    """Cut a backbone where its frozen stages end; None where it has none, or cannot be cut.

    It can be where PyTorch's tracer follows it (torch.fx) and one tensor alone goes from the front to the rest: not in
    the middle of a residual block.
    """
    backbone = classifier.backbone
    row = stages(classifier)[:-1]
    first = next((index for index, stage in enumerate(row) if not stage.is_frozen), len(row))
    if not 0 < first < len(row):
        return None
    held = {module for stage in row for module in stage.modules}
    trained = {module for stage in row[first:] for module in stage.modules}
    loose = {id(parameter) for stage in row[first:] for parameter in stage.loose}
    try:
        graph = _Tracer(held).trace(backbone)
    except Exception:  # a tracer meets whatever a network does in Python, and all of it means: not this one
        return None
    nodes = list(graph.nodes)
    named = dict(backbone.named_modules())

    def is_trained(node: fx.Node) -> bool:
        if node.op == "call_module":
            return bool(trained & set(named[str(node.target)].modules())) or named[str(node.target)] in trained
        if node.op == "get_attr":
            return id(_attribute(backbone, str(node.target))) in loose
        return False

    at = next((index for index, node in enumerate(nodes) if is_trained(node)), None)
    if at is None:
        return None
    crossing = {source for node in nodes[at:] for source in node.all_input_nodes if source in set(nodes[:at])}
    if len(crossing) != 1:
        return None
    (boundary,) = crossing
    front, rest = fx.Graph(), fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for node in nodes[:at]:
        copies[node] = front.node_copy(node, lambda source: copies[source])
    front.output(copies[boundary])
    others: dict[fx.Node, fx.Node] = {boundary: rest.placeholder("activations")}
    for node in nodes[at:]:
        others[node] = rest.node_copy(node, lambda source: others[source])
    before = fx.GraphModule(backbone, front)
    before.graph.eliminate_dead_code()
    before.recompile()
    return Cut(Front(classifier, before), fx.GraphModule(backbone, rest))


def _attribute(module: nn.Module, name: str) -> Any:
    owner, _, last = name.rpartition(".")
    return getattr(module.get_submodule(owner), last)


def activation_bytes(cut: Cut, size_hw: tuple[int, int]) -> int:
    """Bytes of one picture's activations."""
    blank = torch.zeros(1, *size_hw, 3, dtype=torch.uint8)
    was_training = cut.front.training
    with torch.inference_mode():
        n_bytes = cut.front.eval().features(blank).nbytes
    cut.front.train(was_training)
    return n_bytes
