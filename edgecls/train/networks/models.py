"""A model by name: its backbone, its new head, and the preprocessing that belongs to its weights."""

from __future__ import annotations

import copy
import socket
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, cast
from urllib.error import URLError
from urllib.parse import urlsplit
from urllib.request import getproxies

import torch
import torchvision
from safetensors.torch import load_file
from torch import Tensor, nn

from edgecls.errors import MissingExtra, OptionError, TrainingError
from edgecls.manifest import Interpolation, Preprocessing, Resize
from edgecls.train.networks.efficientnet_lite import LITE, EfficientNetLite, load_imagenet_weights
from edgecls.train.networks.scratch import DROPOUT, fully_connected, scratch_network
from edgecls.train.networks.sizes import run_at_size
from edgecls.train.preflight import unknown_model
from edgecls.train.recipe_options import IMAGENET, NONE, SCRATCH, TIMM_PREFIX, NetworkOptions

_INCEPTIONS: Final = ("googlenet", "inception_v3")
_HUB_SECONDS: Final = 3.0  # in which the host of timm's weights answers, or counts as unreachable
_BACKBONE: Final = "backbone."  # prefix of PixelClassifier's state dict

StateDict = Mapping[str, Tensor]


class PixelClassifier(nn.Module):
    """Pixels in, logits out; the one module that is trained, kept as checkpoint and exported.

    images: (n, h, w, 3) uint8, RGB -> logits (n, n_classes) float32. Scaling and mean/std are inside, so no
    one retypes them. The batch stays in NHWC order in memory, which PyTorch knows as channels-last.

    Attributes:
        head: features -> logits; one linear layer, or fully connected ones with ReLU before it.
        head_dropout: on the features before the head; its `p` may be set at any time.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        backbone: nn.Module,
        n_features: int,
        n_classes: int,
        preprocessing: Preprocessing,
        *,
        hidden: Sequence[int] = (),
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        # 0..255 rather than 0..1: one subtraction and one division of what the files hold
        self.register_buffer("mean", torch.tensor(preprocessing.mean).view(1, 3, 1, 1) * 255)
        self.register_buffer("std", torch.tensor(preprocessing.std).view(1, 3, 1, 1) * 255)
        self.n_classes = n_classes
        self.backbone = backbone
        self.head_dropout = nn.Dropout(dropout)
        self.head: nn.Linear | nn.Sequential = nn.Linear(hidden[-1] if hidden else n_features, n_classes)
        if hidden:
            self.head = fully_connected(n_features, hidden, dropout).append(self.head)

    @property
    def last_linear(self) -> nn.Linear:
        """The layer that makes the logits, whatever is before it in the head."""
        return cast(nn.Linear, self.head if isinstance(self.head, nn.Linear) else self.head[-1])

    def normalised(self, images: Tensor) -> Tensor:
        """(n, h, w, 3) uint8 -> what the backbone sees, (n, 3, h, w) float."""
        # Cast before Transpose: TensorRT refuses to transpose uint8
        return (images.to(self.mean.dtype).permute(0, 3, 1, 2) - self.mean) / self.std

    def features(self, images: Tensor) -> Tensor:
        """(n, h, w, 3) uint8 -> what the head sees, (n, n_features)."""
        return cast(Tensor, self.backbone(self.normalised(images)))

    def classify(self, features: Tensor) -> Tensor:
        """(n, n_features) -> logits (n, n_classes) float32."""
        return cast(Tensor, self.head(self.head_dropout(features))).float()

    def forward(self, images: Tensor) -> Tensor:
        return self.classify(self.features(images))

    def lengthen_head(self, n_classes: int) -> None:
        """Give the logits more classes: the old rows stay as they are, the new ones are drawn anew."""
        old = self.last_linear
        new = nn.Linear(old.in_features, n_classes)
        with torch.no_grad():
            new.weight[: self.n_classes] = old.weight
            new.bias[: self.n_classes] = old.bias
        if isinstance(self.head, nn.Sequential):
            self.head[-1] = new
        else:
            self.head = new
        self.n_classes = n_classes


def build(
    options: NetworkOptions, n_classes: int, size_hw: tuple[int, int] | None = None
) -> tuple[PixelClassifier, Preprocessing]:
    """A classifier with a fresh head, and the preprocessing of its weights.

    Args:
        size_hw: input size; None for that of the options, or else the size that the weights were made for, which
            scratch networks have not.

    Raises:
        OptionError: unknown model, one that cannot take the size, or a weights file that does not fit it.
        MissingExtra: timm or the EfficientNet-Lite0 weights are not installed.
        TrainingError: the weights cannot be downloaded.
    """
    size_hw = size_hw or options.size_hw
    hidden, dropout = options.hidden or (), options.dropout or 0.0
    if options.model in SCRATCH:
        backbone, n_features, preprocessing = _scratch(options, size_hw)
        if options.model == "mlp" or (options.model == "cnn" and hidden):
            hidden, dropout = (), 0.0  # they end in fully connected layers of their own, which drop out
        elif options.model == "cnn" and options.dropout is None:
            dropout = DROPOUT
    else:
        whole = _whole(options, size_hw)
        backbone, n_features, preprocessing = whole.network, _own_weights(whole, options), whole.preprocessing
    if size_hw:
        preprocessing = replace(preprocessing, size_hw=size_hw)
    classifier = PixelClassifier(backbone, n_features, n_classes, preprocessing, hidden=hidden, dropout=dropout)
    return classifier, preprocessing


def build_published(
    model: str, size_hw: tuple[int, int] | None = None
) -> tuple[PixelClassifier, Preprocessing, nn.Module]:
    """A classifier that keeps its published ImageNet head, and the network that it was taken from.

    Whether the two answer alike is for the caller to prove: a few networks do more behind their head than a linear
    layer on the features can.

    Args:
        model: `efficientnet_lite0` to `lite2`, a torchvision classifier, or `timm/NAME`.
        size_hw: input size; None for the size that the weights were made for.

    Returns:
        The classifier, its preprocessing, and the untouched network, (n, 3, h, w) float, normalised -> logits; both
        networks in evaluation mode.

    Raises:
        OptionError: unknown model, one without published classes, or whose head is not one linear layer.
        MissingExtra: timm or the EfficientNet-Lite0 weights are not installed.
        TrainingError: the weights cannot be downloaded.
    """
    if model in SCRATCH:
        raise OptionError(f"{model}: there are no published weights for it; train it with: edgecls train DATA")
    whole = _whole(NetworkOptions(model, IMAGENET), size_hw)
    original = copy.deepcopy(whole.network).eval()
    weight, bias = _published_head(whole, model)
    n_features = whole.remove_head()
    if weight.shape[1] != n_features:
        raise OptionError(
            f"{model}: its head takes {weight.shape[1]} values, and {n_features} are left without it, so it is not one "
            "linear layer on the features; export it to ONNX and use: edgecls adopt FILE.onnx"
        )
    preprocessing = replace(whole.preprocessing, size_hw=size_hw or whole.preprocessing.size_hw)
    classifier = PixelClassifier(whole.network, n_features, len(weight), preprocessing)
    with torch.no_grad():
        classifier.last_linear.weight.copy_(weight)
        classifier.last_linear.bias.copy_(bias)
    return classifier.eval(), preprocessing, original


def _published_head(whole: _Whole, model: str) -> tuple[Tensor, Tensor]:
    """Weight (n_classes, n_features) and bias (n_classes,) of the layer that makes the logits."""
    layer = whole.network.get_submodule(whole.head) if isinstance(whole.head, str) else None
    if not whole.head or isinstance(layer, nn.Identity):
        raise OptionError(f"{model}: its weights know no classes, only features; train them with: edgecls train DATA")
    is_pointwise = isinstance(layer, nn.Conv2d) and layer.kernel_size == (1, 1)
    if layer is None or not (isinstance(layer, nn.Linear) or is_pointwise):
        what = f"{whole.head} is a {type(layer).__name__}" if layer else f"{' and '.join(whole.head)} answer together"
        raise OptionError(
            f"{model}: {what}; expected one linear layer that makes the logits. Export it to ONNX and use: "
            "edgecls adopt FILE.onnx"
        )
    weight = cast(Tensor, layer.weight).detach().flatten(1)
    bias = cast("Tensor | None", layer.bias)
    return weight, torch.zeros(len(weight)) if bias is None else bias.detach()


_Backbone = tuple[nn.Module, int, Preprocessing]


@dataclass(frozen=True)
class _Whole:
    """A network of a family with its own head still on.

    Attributes:
        head: name of the layer that makes the logits; a tuple or None where timm knows several or none.
        preprocessing: of its published weights.
        remove_head: takes the head (and auxiliary ones) off the network and returns the number of features.
    """

    network: Any  # nn.Module; families carry attributes of their own
    head: str | tuple[str, ...] | None
    preprocessing: Preprocessing
    remove_head: Callable[[], int]


def _whole(options: NetworkOptions, size_hw: tuple[int, int] | None) -> _Whole:
    if options.model in LITE:
        return _efficientnet_lite(options)
    return _timm(options, size_hw) if options.model.startswith(TIMM_PREFIX) else _torchvision(options)


def _scratch(options: NetworkOptions, size_hw: tuple[int, int] | None) -> _Backbone:
    if size_hw is None:
        raise OptionError(f"{options.model} has no size of its own; give --image-size")
    network = scratch_network(options, size_hw)
    if options.resolved_weights != NONE:
        _load_strictly(network, _backbone_part(read_state_dict(options.resolved_weights)), options)
    return network, network.n_features, Preprocessing(size_hw=size_hw, crop_fraction=1.0)


def _efficientnet_lite(options: NetworkOptions) -> _Whole:
    scaling = LITE[options.model]
    network = EfficientNetLite(scaling)
    if options.resolved_weights == IMAGENET:
        load_imagenet_weights(network, options.model)
    size_hw = (scaling.size, scaling.size)
    preprocessing = Preprocessing(size_hw, mean=(127 / 255,) * 3, std=(128 / 255,) * 3)
    return _Whole(network, "_fc", preprocessing, lambda: _without_head(network, "_fc"))


def _torchvision(options: NetworkOptions) -> _Whole:
    models = torchvision.models
    known = models.list_models(module=models)
    if options.model not in known:
        raise unknown_model(options.model, frozenset(known))
    weights = models.get_model_weights(options.model).DEFAULT
    published = weights if options.resolved_weights == IMAGENET else None
    # the inception pair scales its input once more where ImageNet weights ask for it; a checkpoint is rebuilt
    # without them and must answer alike, so it always does
    settings = {"transform_input": True} if options.model in _INCEPTIONS else {}
    if settings and not published:
        settings["init_weights"] = True
    network = _downloaded(lambda: models.get_model(options.model, weights=published, **settings))
    head = _last_linear(network)

    def remove_head() -> int:
        if options.model in _INCEPTIONS:  # their auxiliary heads know other classes
            network.aux_logits = False
            for auxiliary in ("aux1", "aux2", "AuxLogits"):
                if hasattr(network, auxiliary):
                    setattr(network, auxiliary, None)
        return _without_head(network, head)

    preset: Any = weights.transforms()
    size, resized = preset.crop_size[0], preset.resize_size[0]
    interpolation: Interpolation = "bicubic" if preset.interpolation.value == "bicubic" else "bilinear"
    preprocessing = Preprocessing(
        (size, size), crop_fraction=size / resized, interpolation=interpolation, mean=preset.mean, std=preset.std
    )
    return _Whole(network, head, preprocessing, remove_head)


def _timm(options: NetworkOptions, size_hw: tuple[int, int] | None) -> _Whole:
    try:
        import timm  # noqa: PLC0415  slow to load, and only for its own models
    except ImportError as error:
        raise MissingExtra(f"--model {options.model}", "train") from error
    name = options.model.removeprefix(TIMM_PREFIX)
    if not timm.is_model(name):
        raise unknown_model(options.model, frozenset(timm.list_models()))
    is_pretrained = options.resolved_weights == IMAGENET
    with _without_waiting_for_the_hub() if is_pretrained else nullcontext():
        network = _downloaded(lambda: timm.create_model(name, pretrained=is_pretrained))
    config = timm.data.resolve_model_data_config(network)
    own_size = (config["input_size"][1], config["input_size"][2])
    interpolation: Interpolation = "bicubic" if config["interpolation"] == "bicubic" else "bilinear"
    resize: Resize = "squash" if config["crop_mode"] == "squash" else "shortest"
    preprocessing = Preprocessing(
        own_size, resize, config["crop_pct"], interpolation, mean=config["mean"], std=config["std"]
    )

    def remove_head() -> int:
        network.reset_classifier(0)
        return _n_features(network, options.model, size_hw or own_size)

    return _Whole(network, network.default_cfg["classifier"], preprocessing, remove_head)


def _n_features(network: nn.Module, model: str, size_hw: tuple[int, int]) -> int:
    # timm's own num_features is not what the head sees in every family; one blank image tells
    network.eval()
    features = run_at_size(network, torch.zeros(1, 3, *size_hw), model)
    network.train()
    return int(features.shape[1])


def _last_linear(network: nn.Module) -> str:
    """Name of the layer that makes the logits: the last Linear, or SqueezeNet's last convolution."""
    if isinstance(network, torchvision.models.SqueezeNet):
        return "classifier.1"
    linears = [name for name, module in network.named_modules() if isinstance(module, nn.Linear)]
    return str(linears[-1])


def _without_head(network: nn.Module, head: str) -> int:
    layer = network.get_submodule(head)
    if isinstance(layer, nn.Conv2d):  # SqueezeNet classifies every place, then pools: pool first, same mean
        pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        network.set_submodule("classifier", pool)
        return layer.in_channels
    network.set_submodule(head, nn.Identity())
    return cast(nn.Linear, layer).in_features


@contextmanager
def _without_waiting_for_the_hub() -> Iterator[None]:
    """Look for timm's weights in the cache alone where their host cannot be reached.

    Its client asks five times with growing pauses, 50 seconds in all, before it says so.
    """
    import huggingface_hub.constants as hub  # noqa: PLC0415  comes with timm

    host, proxies = urlsplit(hub.ENDPOINT), getproxies()
    at = urlsplit(proxies[host.scheme]) if host.scheme in proxies else host
    before = hub.HF_HUB_OFFLINE
    try:
        socket.create_connection((at.hostname or "", at.port or 443), timeout=_HUB_SECONDS).close()
    except OSError:
        hub.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        hub.HF_HUB_OFFLINE = before


def _downloaded(make: Callable[[], nn.Module]) -> Any:
    try:
        return make()
    except (URLError, OSError, RuntimeError) as error:
        raise TrainingError(
            f"the ImageNet weights could not be downloaded ({error}). Offline, use --model efficientnet_lite0, "
            "whose weights come in a package, --weights FILE with a state dict you have, or --weights none"
        ) from error


def read_state_dict(file: str | Path) -> StateDict:
    """Tensors by name from a PyTorch or safetensors file; pickled code is refused, never run.

    Raises:
        OptionError: no such file, not a state dict, or code in it.
    """
    path = Path(file)
    if not path.is_file():
        raise OptionError(f"--weights {file}: expected {IMAGENET}, {NONE}, or a file with a state dict")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a pickle in another protocol, which the error below says better
            values = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises pickle, zip, EOF and runtime errors for a file that is not its own
        # its own message would advise to load the file with code allowed
        raise OptionError(
            f"{file}: not a state dict of tensors only, as PyTorch or safetensors write it ({type(error).__name__})"
        ) from error
    if isinstance(values, dict) and isinstance(values.get("state_dict"), dict):
        values = values["state_dict"]
    if not isinstance(values, dict) or not all(isinstance(value, Tensor) for value in values.values()):
        raise OptionError(f"--weights {file}: expected a state dict (tensors by name), got {type(values).__name__}")
    return values


def _own_weights(whole: _Whole, options: NetworkOptions) -> int:
    """Load a weights file, if one is named, and take the head off; returns the number of features.

    The file is either an edgecls checkpoint, whose backbone fits once the head is off, or a state dict of the
    whole network, with as many classes as it has.
    """
    network, head = whole.network, whole.head
    state = {} if options.resolved_weights in (NONE, IMAGENET) else read_state_dict(options.resolved_weights)
    is_checkpoint = any(name.startswith(_BACKBONE) for name in state)
    if state and not is_checkpoint:
        rows, layer = state.get(f"{head}.weight"), network.get_submodule(head) if isinstance(head, str) else None
        if rows is not None and isinstance(layer, nn.Linear) and len(rows) != layer.out_features:
            network.set_submodule(head, nn.Linear(layer.in_features, len(rows), bias=layer.bias is not None))
        _load_strictly(network, state, options)
    n_features = whole.remove_head()
    if is_checkpoint:
        _load_strictly(network, _backbone_part(state), options)
    return n_features


def _backbone_part(state: StateDict) -> StateDict:
    return {name.removeprefix(_BACKBONE): value for name, value in state.items() if name.startswith(_BACKBONE)}


def _load_strictly(network: nn.Module, state: StateDict, options: NetworkOptions) -> None:
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise OptionError(f"--weights {options.weights}: not weights of {options.model}: {reason}") from error
