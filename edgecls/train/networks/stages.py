"""A network as a row of stages from the pixels to the logits: which of them learn, and how fast."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from edgecls.errors import OptionError
from edgecls.train.networks.models import PixelClassifier
from edgecls.train.networks.scratch import Airbench

HEAD: Final = "head"
_ALL: Final = "all"
_LAST: Final = "last:"
_ENOUGH: Final = 5  # stages of a backbone; with fewer, its largest parts are taken apart
_NEARLY_ALL: Final = 0.9  # share of the parameters from which a module that is no container is a wrapper all the same


@dataclass(frozen=True)
class Stage:
    """A part of the network; every parameter belongs to exactly one.

    Attributes:
        name: of its first module in the backbone, such as `layer4` or `features.17`; `head` for the last stage.
        modules: in the order of the network.
        loose: parameters next to the modules, such as a transformer's class token.
    """

    name: str
    modules: tuple[nn.Module, ...]
    loose: tuple[nn.Parameter, ...] = ()

    def parameters(self) -> Iterator[nn.Parameter]:
        yield from self.loose
        for module in self.modules:
            yield from module.parameters()

    @property
    def is_frozen(self) -> bool:
        return not any(parameter.requires_grad for parameter in self.parameters())


def stages(classifier: PixelClassifier) -> list[Stage]:
    """The stages of the backbone from the pixels on, then the head.

    A backbone is taken apart into its children, and containers among them into theirs, until there are five stages or
    more: ResNet-50 falls into its stem and `layer1` to `layer4`, VGG-16 into its convolutions, MobileNetV2 into its
    blocks. A norm belongs to the stage before it. The order is that in which the network registers its modules.
    """
    found = _split(Stage("", (classifier.backbone,)))
    n_parameters = sum(parameter.numel() for parameter in classifier.backbone.parameters())
    while len(found) < _ENOUGH:
        finer = [part for stage in found for part in (_split(stage) if _is_wrapper(stage, n_parameters) else [stage])]
        if finer == found:
            break
        found = finer
    return [*found, Stage(HEAD, (classifier.head,))]


def _is_wrapper(stage: Stage, n_parameters: int) -> bool:
    n_own = sum(parameter.numel() for parameter in stage.modules[0].parameters())
    return _is_container(stage.modules[0]) or n_own > _NEARLY_ALL * n_parameters


def _split(stage: Stage) -> list[Stage]:
    """The children of a stage's first module that have parameters, or the stage itself where that is only one."""
    first, *others = stage.modules
    parts: list[Stage] = []
    for name, child in first.named_children():
        parameters = list(child.parameters())
        if not parameters:
            continue
        if parts and all(parameter.ndim <= 1 for parameter in parameters):  # a norm, or a scale of each channel
            parts[-1] = Stage(parts[-1].name, (*parts[-1].modules, child))
        else:
            parts.append(Stage(f"{stage.name}.{name}" if stage.name else name, (child,)))
    if not parts or (stage.name and len(parts) == 1 and not _is_container(parts[0].modules[0])):
        return [stage] if any(True for _ in stage.parameters()) else []
    loose = (*stage.loose, *first.parameters(recurse=False))
    parts[0] = Stage(parts[0].name, parts[0].modules, loose)
    parts[-1] = Stage(parts[-1].name, (*parts[-1].modules, *others), parts[-1].loose)
    return parts


def _is_container(module: nn.Module) -> bool:
    return isinstance(module, nn.Sequential | nn.ModuleList | nn.ModuleDict)


def unfreeze(classifier: PixelClassifier, which: str) -> None:
    """Train the named stages and the head, and freeze the rest.

    Args:
        which: `all`, `last:N` stages of the backbone, or a stage's name for it and all after it; a name that several
            stages begin with (`features` of `features.0`, `features.1`, ...) is the first of them.

    Raises:
        OptionError: no such stage, or not so many; the message lists what there is.
    """
    row = stages(classifier)
    first = _first_trained([stage.name for stage in row], which)
    fixed = set(classifier.backbone.fixed_parameters()) if isinstance(classifier.backbone, Airbench) else set()
    for index, stage in enumerate(row):
        for parameter in stage.parameters():
            parameter.requires_grad_(index >= first and parameter not in fixed)


def _first_trained(names: list[str], which: str) -> int:
    if which == _ALL:
        return 0
    n_backbone = len(names) - 1
    count = which.removeprefix(_LAST)
    if which.startswith(_LAST) and count.isdecimal() and 1 <= int(count) <= n_backbone:
        return n_backbone - int(count)
    matching = [index for index, name in enumerate(names) if name == which or name.startswith(f"{which}.")]
    if not matching:
        expected = f"{_ALL}, {_LAST}1 to {_LAST}{n_backbone}, or a stage" if n_backbone else _ALL
        raise OptionError(f"--unfreeze {which}: expected {expected}; the stages are {', '.join(names)}")
    return matching[0]


def set_training_mode(classifier: PixelClassifier, *, keeps_statistics: bool = False) -> None:
    """Training mode for all, but for the batch norms whose statistics new photos shall not move.

    To be called at the start of every training epoch: whoever trains a network may leave it in any mode. A batch norm
    does not learn where its own parameters, or those of its whole stage, are frozen.

    Args:
        keeps_statistics: no batch norm of the backbone learns statistics, whether its parameters do or not.
    """
    classifier.train()
    if keeps_statistics:
        for module in classifier.backbone.modules():
            if isinstance(module, _BatchNorm):
                module.eval()
    for stage in stages(classifier):
        for module in (each for top in stage.modules for each in top.modules()):
            if isinstance(module, _BatchNorm):
                own = list(module.parameters())
                if stage.is_frozen or (own and not any(parameter.requires_grad for parameter in own)):
                    module.eval()


def learning_rate_scales(classifier: PixelClassifier, layer_decay: float) -> dict[nn.Parameter, float]:
    """The learning rate of each parameter as a share of the head's: `layer_decay` to the power of stages behind it."""
    from_head = enumerate(reversed(stages(classifier)))
    return {parameter: layer_decay**depth for depth, stage in from_head for parameter in stage.parameters()}
