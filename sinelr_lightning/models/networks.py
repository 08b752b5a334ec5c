"""Image networks by name: ours, torchvision's, timm's."""

import difflib
import importlib.util
from collections.abc import Mapping
from typing import Any

from torch import nn

from sinelr_lightning.models.vit import VisionTransformer

__all__ = ["image_network"]


def image_network(
    name: str,
    classes: int,
    pretrained: bool = False,
    arguments: Mapping[str, Any] | None = None,
    of_trained: bool = False,
) -> nn.Module:
    """Make the network `name`: images [B, C, H, W] → logits [B, classes].

    Args:
        name: `vit` for our compact `VisionTransformer`, `timm/NAME` for a model of timm, else a classification model
            of torchvision (`vit_b_16`, `resnet18`, `convnext_tiny` …).
        classes: number of classes. A pretrained head of another size is drawn anew.
        pretrained: take the library's trained weights; they are downloaded once.
        arguments: of the network's constructor.
        of_trained: give a network without weights the form that the trained ones have, such as their image size.

    Raises:
        ValueError: unknown name (with near ones), unknown or wrong arguments, no trained weights of this network, one
            that gives out more than logits, a trained one whose last layer is not linear.
        ModuleNotFoundError: timm is not installed.
        OSError: the weights cannot be had.
    """
    arguments = dict(arguments or {})
    if name == "vit":
        if pretrained:
            raise ValueError("there are no trained weights of our compact vit; torchvision and timm have some")
        make = VisionTransformer
    elif name.startswith("timm/"):
        make = _timm(name.removeprefix("timm/"))
        arguments["pretrained"] = pretrained
    else:
        make = _torchvision(name, pretrained)
        if of_trained and name.startswith("vit_"):
            arguments.setdefault("image_size", _weights(name).meta["min_size"][0])
    try:
        if pretrained and not name.startswith("timm/"):
            return _with_head(name, make(**arguments), classes)
        key = "classes" if name == "vit" else "num_classes"
        return make(**arguments, **{key: classes})
    except TypeError as error:
        raise ValueError(f"network {name}: {error}") from error


AUXILIARY = ("googlenet", "inception_v3")


def _weights(name: str) -> Any:
    from torchvision import models

    return models.get_model_weights(name)["DEFAULT"]


def _torchvision(name: str, pretrained: bool) -> Any:
    from torchvision import models

    if name in AUXILIARY:
        raise ValueError(f"network {name} has auxiliary heads in training, which are not supported")

    known = models.list_models(module=models)
    if name not in known:
        near = difflib.get_close_matches(name, [*known, "vit"], n=3)
        raise ValueError(
            f"unknown network {name!r}: take vit, timm/NAME or a classification model of torchvision, such as "
            f"{', '.join(near or ['vit_b_16', 'resnet18', 'convnext_tiny'])}"
        )
    weights = _weights(name) if pretrained else None
    return lambda **arguments: models.get_model(name, weights=weights, **arguments)


def _timm(name: str) -> Any:
    if importlib.util.find_spec("timm") is None:
        raise ModuleNotFoundError('networks of timm need timm: pip install -e ".[vision]"')
    import timm  # ty: ignore[import-not-found]

    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=3)
        raise ValueError(f"timm has no model {name!r}" + (f"; near ones: {', '.join(near)}" if near else ""))
    return lambda **arguments: timm.create_model(name, **arguments)


def _with_head(name: str, network: nn.Module, classes: int) -> nn.Module:
    """Draw the last linear layer anew where it has another number of classes."""
    heads = [(place, module) for place, module in network.named_modules() if isinstance(module, nn.Linear)]
    if not heads:
        raise ValueError(f"network {name} has no linear head that could be drawn anew for {classes} classes")
    place, head = heads[-1]
    if head.out_features != classes:
        network.set_submodule(place, nn.Linear(head.in_features, classes))
    return network
