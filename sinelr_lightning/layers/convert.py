"""Replacing the linear layers, convolutions and attention projections of any model by factorized ones."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import nn

from sinelr_lightning.layers.budget import choose_ranks
from sinelr_lightning.layers.calibrate import measure_moments
from sinelr_lightning.layers.factorization import Factorization
from sinelr_lightning.layers.factory import LinearFactory
from sinelr_lightning.layers.fit import Fit, Progress, fit_matrices
from sinelr_lightning.layers.sites import (
    Pattern,
    Site,
    check_matches,
    find_sites,
    matches,
    ranked,
    set_ranks,
    shared_weights,
)

__all__ = ["Conversion", "Pattern", "convert"]


@dataclass
class Conversion:
    """What `convert` did.

    Attributes:
        converted: names of the layers replaced, as patterns take them.
        skipped: names of those left, with the reason.
        ranks: of each factorized layer by its name, `….in_proj.q` in a packed projection; they may serve as `ranks=`
            of another `convert`.
        fits: how near each layer came to its weight, with `init="fit"`.
    """

    converted: list[str] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    ranks: dict[str, int] = field(default_factory=dict)
    fits: dict[str, Fit] = field(default_factory=dict)

    def __str__(self) -> str:
        left = [f"  left {name}: {reason}" for name, reason in self.skipped.items()]
        return "\n".join([f"converted {len(self.converted)} layers", *left, *_fit_table(self.fits)])


def _fit_table(fits: Mapping[str, Fit]) -> list[str]:
    """Relative errors of each layer beside those of the truncated SVD, and what the factors saved over it."""
    if not fits:
        return []
    measured = any(fit.output_error is not None for fit in fits.values())
    head = f"{'relative errors (truncated SVD of equal rank)':<46} {'rank':>5} {'weight':>17}"
    lines = [head + (f" {'output':>17}" if measured else "")]
    for name, fit in fits.items():
        short = name if len(name) <= 46 else f"…{name[-45:]}"
        line = f"{short:<46} {fit.rank or '':>5} {_pair(fit.weight_error, fit.svd_weight_error):>17}"
        lines.append(line + (f" {_pair(fit.output_error, fit.svd_output_error):>17}" if measured else ""))
    # A layer of plain low rank is the truncated SVD, which needs no telling.
    rivals = {n: fit for n, fit in fits.items() if fit.improvement is not None and fit.family != "LowRank"}
    none = [name for name, fit in rivals.items() if (fit.improvement or 0) < 0.01]
    if none:
        family, few = rivals[none[0]].family, ", ".join(none[:3]) + (", …" if len(none) > 3 else "")
        lines.append(
            f"{family} came less than 1 % nearer than the truncated SVD in {len(none)} of {len(rivals)} layers "
            f"({few}): LowRank does as well there."
        )
    return lines


def _pair(ours: float | None, svd: float | None) -> str:
    if ours is None:
        return ""
    return f"{ours:.4f}" + ("" if svd is None else f" ({svd:.4f})")


def convert(
    model: nn.Module,
    factory: LinearFactory,
    include: Pattern | Iterable[Pattern] = "*",
    exclude: Pattern | Iterable[Pattern] = (),
    init: Literal["fresh", "fit"] = "fresh",
    ranks: Mapping[str, int] | None = None,
    budget: float | None = None,
    calibration: Iterable[Any] | None = None,
    progress: Progress | None = None,
) -> Conversion:
    """Change `model` in place: its linear layers, convolutions and attention projections get weights by `factory`.

    The packed projection of an `nn.MultiheadAttention` is addressed as `….in_proj_weight` and becomes three
    factorizations, `….in_proj.q`, `.k` and `.v` (see `layers.packed`); the attention itself stays the same object.

    A layer is left as it is, with the reason in the result, if its factors would not be smaller than its weight, if
    its weight is shared with another module (a tied embedding) or made of other parameters (`weight_norm`,
    `spectral_norm`, `prune`), if it is a grouped or depthwise convolution, if it is an attention with `kdim` or
    `vdim` or of a derived class, or if the factory makes no such layers; so are stacks of matrices, such as the
    experts of a mixture. A layer that stands in several places stays one layer. What was frozen stays frozen: factors
    are trained where the weight was, a bias where the bias was.

    Args:
        model: any module; the module itself is not replaced, its descendants are.
        factory: for example `SineLowRank(rank=8)`.
        include: a pattern over the dotted names (`"*.mlp.*"`) or a function of (name, module), or several of them.
        exclude: what wins over `include`, in the same form.
        init: "fresh" for newly drawn factors, "fit" for factors that approximate the present weights. A fit may
            change hyperparameters of single layers (the gain of a sine); these travel in `state_dict`.
        ranks: pattern → rank in place of the factory's for the layers whose name it takes, the first pattern that
            does; `….in_proj.v` for one part of a projection.
        budget: share of the dense model's parameters, all of them counted, that the converted model may have. Each
            layer's rank is then chosen (`layers.budget`), and the factory's own has no say. The ranks travel in
            `state_dict`: a model that was converted with another budget takes on those of the state it loads.
        calibration: a few batches of the model's inputs: a tensor each, or a tuple of arguments, or a mapping of
            named ones. A fit then minimises the error of each layer's output over these instead of that of its
            weight, and a budget goes by the same measure.
        progress: called after each batch of fitted layers with what was fitted, the layers done, and those to do.

    Raises:
        ValueError: a pattern matches no layer (with the nearest names), an unknown `init`, "fit" with a factory whose
            layers have no factors, `ranks` or `budget` with a factory that has no rank, both at once, a budget that
            is no share or cannot be reached (with the smallest that can), `calibration` with nothing to use it,
            without batches or with inputs that are not finite. The model is unchanged then.
    """
    if init not in ("fresh", "fit"):
        raise ValueError(f'init must be "fresh" or "fit", got {init!r}')
    if init == "fit" and not isinstance(factory, Factorization):
        raise ValueError(f'init="fit" needs a factorization, got {type(factory).__name__}')
    if budget is not None and not 0 < budget < 1:
        raise ValueError(f"budget must be a share of the parameters in (0, 1), got {budget}")
    if budget is not None and ranks:
        raise ValueError("budget chooses the ranks of all layers: give ranks or budget, not both")
    if calibration is not None and init != "fit" and budget is None:
        raise ValueError('calibration serves init="fit" or a budget, and neither was asked for')
    sites = _chosen(model, factory, _listed(include), _listed(exclude))
    # A layer stays dense under a budget if not even rank 1 is smaller.
    set_ranks(sites, dict(ranks or {}))
    if budget is not None:
        for site in sites.values():
            for matrix in site.matrices.values():
                matrix.made_with, matrix.factory = factory, ranked(factory, 1)
    result = Conversion()
    chosen = _willing(model, sites, result)
    matrices = [matrix for site in chosen for matrix in site.matrices.values()]
    if calibration is not None:
        measure_moments(model, chosen, calibration)
    if budget is not None:
        choose_ranks(matrices, budget, sum(p.numel() for p in model.parameters()))
    if init == "fit":
        result.fits = fit_matrices(matrices, progress)
    result.ranks = {matrix.name: matrix.rank for matrix in matrices if matrix.rank is not None}
    for site in chosen:
        site.install(model)
    return result


def _listed(patterns: Pattern | Iterable[Pattern]) -> list[Pattern]:
    several = isinstance(patterns, Iterable) and not isinstance(patterns, str)
    return list(patterns) if several else [patterns]


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
