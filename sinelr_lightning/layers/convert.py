"""Replacing the linear layers, convolutions and attention projections of any model by factorized ones."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from torch import nn

from sinelr_lightning.layers.factorization import Factorization
from sinelr_lightning.layers.factory import LinearFactory
from sinelr_lightning.layers.sites import (
    Pattern,
    Site,
    check_matches,
    find_sites,
    matches,
    set_ranks,
    shared_weights,
)

__all__ = ["Conversion", "Pattern", "convert"]


@dataclass
class Conversion:
    """What `convert` did: names of the layers replaced, and of those left with the reason."""

    converted: list[str] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        left = "".join(f"\n  left {name}: {reason}" for name, reason in self.skipped.items())
        return f"converted {len(self.converted)} layers{left}"


def convert(
    model: nn.Module,
    factory: LinearFactory,
    include: Iterable[Pattern] = ("*",),
    exclude: Iterable[Pattern] = (),
    init: Literal["fresh", "fit"] = "fresh",
    ranks: Mapping[str, int] | None = None,
) -> Conversion:
    """Change `model` in place: its linear layers, convolutions and attention projections get weights by `factory`.

    The packed projection of an `nn.MultiheadAttention` is addressed as `….in_proj_weight` and becomes three
    factorizations, `….in_proj.q`, `.k` and `.v` (see `layers.packed`); the attention itself stays the same object.

    A layer is left as it is, with the reason in the result, if its factors would not be smaller than its weight, if
    its weight is shared with another module (a tied embedding), if it is a grouped or depthwise convolution, if it is
    an attention with `kdim` or `vdim` or of a derived class, or if the factory makes no such layers. A layer that
    stands in several places stays one layer.

    Args:
        model: any module; the module itself is not replaced, its descendants are.
        factory: for example `SineLowRank(rank=8)`.
        include: patterns over the dotted names (`"*.mlp.*"`), or functions of (name, module).
        exclude: patterns that win over `include`.
        init: "fresh" for newly drawn factors, "fit" for factors that approximate the present weights. A fit may
            change hyperparameters of single layers (the gain of a sine); these travel in `state_dict`.
        ranks: pattern → rank in place of the factory's for the layers whose name it takes, the first pattern that
            does; `….in_proj.v` for one part of a projection.

    Raises:
        ValueError: a pattern matches no layer (with the nearest names), `ranks` with a factory that has none, an
            unknown `init`, "fit" with a factory whose layers have no factors. The model is unchanged then.
    """
    if init not in ("fresh", "fit"):
        raise ValueError(f'init must be "fresh" or "fit", got {init!r}')
    if init == "fit" and not isinstance(factory, Factorization):
        raise ValueError(f'init="fit" needs a factorization, got {type(factory).__name__}')
    sites = _chosen(model, factory, list(include), list(exclude))
    set_ranks(sites, dict(ranks or {}))
    result = Conversion()
    chosen = _willing(model, sites, result)
    for site in chosen:
        if init == "fit":
            for matrix in site.matrices.values():
                matrix.fitted = matrix.factory.fit(matrix.weight)
    for site in chosen:
        site.install(model)
    return result


def _chosen(
    model: nn.Module, factory: LinearFactory, include: list[Pattern], exclude: list[Pattern]
) -> dict[str, Site]:
    """The sites that the patterns choose, by name; one site by several names if it stands in several places."""
    sites = find_sites(model, factory)
    for pattern in (*include, *exclude):
        check_matches(pattern, sites)
    chosen = {
        name: site
        for name, site in sites.items()
        if matches(include, name, site.module) and not matches(exclude, name, site.module)
    }
    for site in chosen.values():
        site.names = [name for name in site.names if name in chosen]
    return chosen


def _willing(model: nn.Module, sites: dict[str, Site], result: Conversion) -> list[Site]:
    """The sites that can be replaced, each once; result names them, and the others with the reason."""
    shared = shared_weights(model)
    willing: dict[Site, None] = {}
    for name, site in sites.items():
        reason = "its weight is shared with another module" if site.module in shared else site.refusal()
        if reason:
            result.skipped[name] = reason
        else:
            result.converted.append(name)
            willing[site] = None
    return list(willing)
