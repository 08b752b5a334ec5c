"""What a model asks for its linear layers: a factory, never `nn.Linear` itself."""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

__all__ = ["Dense", "LinearFactory", "families", "subclasses"]


class LinearFactory(ABC):
    """Makes the linear layers of a model: `factory(in_features, out_features, bias=True) -> nn.Module`.

    Any class whose call takes `in_features` and `out_features` counts as one, without inheriting from this class.
    It is an abstract class and not a Protocol because configuration files read a callable Protocol as "a class
    whose call returns a Module" and refuse our factories.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Let checkpoints hold factories as hyperparameters: `torch.load` with `weights_only=True` takes them."""
        super().__init_subclass__(**kwargs)
        torch.serialization.add_safe_globals([cls])

    @abstractmethod
    def __call__(self, in_features: int, out_features: int, bias: bool = True) -> nn.Module:
        """Make a module that maps `[..., in_features]` to `[..., out_features]`."""

    @classmethod
    def __subclasshook__(cls, other: type) -> Any:
        if cls is not LinearFactory:
            return NotImplemented
        call = next((c.__dict__["__call__"] for c in other.__mro__ if "__call__" in c.__dict__), None)
        if call is None or not inspect.isfunction(call):
            return NotImplemented
        return {"in_features", "out_features"} <= set(inspect.signature(call).parameters) or NotImplemented


@dataclass(frozen=True)
class Dense(LinearFactory):
    """The ordinary layer, `nn.Linear`: W with m·n parameters. The reference of every comparison."""

    def __call__(self, in_features: int, out_features: int, bias: bool = True) -> nn.Linear:
        return nn.Linear(in_features, out_features, bias)


def subclasses(cls: type) -> Iterator[type]:
    """All classes below this one, however deep, as far as their modules are imported."""
    for child in cls.__subclasses__():
        yield child
        yield from subclasses(child)


def families(cls: type) -> dict[str, type]:
    """Those below this one of which there can be instances, by name."""
    return {child.__name__: child for child in subclasses(cls) if not inspect.isabstract(child)}
