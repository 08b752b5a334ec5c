"""Approximating given weights by the factors of a factorization, beside the truncated SVD."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from sinelr_lightning.layers.factorization import Factorization
    from sinelr_lightning.layers.sites import Matrix

__all__ = ["Fit", "best_low_rank", "best_scale", "descend", "descend_all", "fit_matrices", "spectrum"]

# Elements of the weights that are fitted at once. A descent holds some six arrays of this size, 400 MB in float32.
_BATCH = 2**24
_TINY = 1e-30

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Fit:
    """How near the factors of one layer came to its weight W, and how near a truncated SVD of the same rank comes.

    `weight_error` is ‖W − Ŵ‖_F/‖W‖_F. `output_error` is ‖(W − Ŵ)·C^½‖_F/‖W·C^½‖_F with the second moment C = E[xxᵀ]
    of the layer's input: the relative error of its output over the calibration batches, and what was minimised where
    there were some. `svd_weight_error` and `svd_output_error` are the least of any matrix of that rank, each in its
    own norm; None for a factorization without a rank.
    """

    family: str
    rank: int | None
    weight_error: float
    svd_weight_error: float | None
    output_error: float | None = None
    svd_output_error: float | None = None

    @property
    def improvement(self) -> float | None:
        """Share of the truncated SVD's error that the factors save, in the norm that was minimised."""
        pairs = (self.weight_error, self.svd_weight_error), (self.output_error, self.svd_output_error)
        ours, svd = pairs[0] if self.output_error is None else pairs[1]
        if ours is None or svd is None:
            return None
        return 1 - ours / svd if svd > 1e-6 else 0.0  # nothing is left to save


class _Spectrum(NamedTuple):
    """Squared singular values of W·C^½ [L, p], largest first, and its left singular vectors [L, m, p]."""

    energies: Tensor
    left: Tensor


def spectrum(targets: Tensor, moments: Tensor | None = None) -> _Spectrum:
    """Spectra of W·C^½ for weights [L, m, n] and second moments C [L, n, n], the identity without; float64.

    C^½ is never formed, nor inverted: with W = Q·T the energies are the eigenvalues of T·C·Tᵀ, of the smaller of both
    sizes, and C may be singular.
    """
    q, t = torch.linalg.qr(targets.double())
    gram = t @ t.mT if moments is None else t @ moments.double() @ t.mT
    energies, vectors = torch.linalg.eigh((gram + gram.mT) / 2)
    return _Spectrum(energies.flip(-1).clamp_min(0), q @ vectors.flip(-1))


def best_low_rank(targets: Tensor, rank: int, moments: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """U [L, m, rank] and V [L, n, rank] with U·Vᵀ the best of its rank in the norm ‖(W − U·Vᵀ)·C^½‖_F.

    It is W projected on the first left singular vectors of W·C^½: without moments, the truncated SVD. For L there may
    be any number of leading sizes, none among them.
    """
    left = spectrum(targets, moments).left[..., :rank]
    right = targets.double().mT @ left
    root = right.norm(dim=-2, keepdim=True).sqrt().clamp_min(_TINY)  # both factors of one size
    return (left * root).to(targets.dtype), (right / root).to(targets.dtype)


def best_scale(weight: Tensor, target: Tensor, moment: Tensor | None = None) -> float:
    """The number α with ‖(α·Ŵ − W)·C^½‖_F least, for Ŵ and W [m, n]: so scaled, Ŵ is no worse than zero."""
    seen = weight if moment is None else weight @ moment
    return ((seen * target).sum() / (seen * weight).sum().clamp_min(_TINY)).item()


def _squared(errors: Tensor, moments: Tensor | None) -> Tensor:
    """‖E·C^½‖²_F of each E [L, m, n]."""
    if moments is None:
        return torch.linalg.vector_norm(errors, dim=(-2, -1)).square()  # no array of squares
    return ((errors @ moments) * errors).sum((-2, -1)).clamp_min(0)


def descend_all(
    weight: Callable[..., Tensor], start: Sequence[Tensor], targets: Tensor, steps: int, moments: Tensor | None = None
) -> tuple[list[Tensor], Tensor]:
    """Minimise ‖(weight(*factors) − W)·C^½‖²_F of L layers at once by Adam from `start`.

    Each factor's step is a hundredth of its own root mean square in its layer, falling to zero on a cosine; of a
    factor that starts at zero, of that at which it changes the weight by as much as ‖W‖, against its gradient.

    Args:
        weight: the weights [L, m, n] from factors with L in front.
        start: the factors to begin with, [L, …].
        targets: W [L, m, n].
        steps: of Adam.
        moments: C [L, n, n].

    Returns:
        For each layer the best factors seen, so never worse than its start, and their relative squared errors [L].
    """
    total = _squared(targets, moments).clamp_min(_TINY)

    def errors_of(*factors: Tensor) -> Tensor:
        return _squared(weight(*factors) - targets, moments) / total

    # Adam's steps are as large for every parameter: in units of its scale each layer has a step of its own.
    scales = _scales(errors_of, start)
    units = [(f / scale).detach().requires_grad_() for f, scale in zip(start, scales, strict=True)]
    optimizer = torch.optim.Adam(units, lr=0.01, eps=1e-15)  # the gradients of a large layer are small
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(steps, 1))
    best, best_errors = [unit.detach().clone() for unit in units], torch.full_like(total, torch.inf)
    with torch.enable_grad():
        for step in range(steps + 1):
            factors = [unit * scale for unit, scale in zip(units, scales, strict=True)]
            errors = errors_of(*factors)
            better = errors.detach() < best_errors
            best_errors = torch.where(better, errors.detach(), best_errors)
            for kept, unit in zip(best, units, strict=True):
                kept.copy_(torch.where(better.reshape(-1, *[1] * (unit.ndim - 1)), unit.detach(), kept))
            if step < steps:
                optimizer.zero_grad()
                errors.sum().backward()
                optimizer.step()
                schedule.step()
    return [unit * scale for unit, scale in zip(best, scales, strict=True)], best_errors


def _scales(errors: Callable[..., Tensor], start: Sequence[Tensor]) -> list[Tensor]:
    """The size of each factor's entries in its layer, [L, 1, …]: their root mean square, of zeros one to reach."""
    scales = [_root_mean_square(factor) for factor in start]
    for i, scale in enumerate(scales):
        if (scale == 0).any():
            scales[i] = torch.where(scale == 0, _scale_to_reach(errors, start, i), scale)
    return [scale.clamp_min(1e-12) for scale in scales]


def _root_mean_square(factor: Tensor) -> Tensor:
    return factor.square().mean(tuple(range(1, factor.ndim)), keepdim=True).sqrt()


def _scale_to_reach(errors: Callable[..., Tensor], start: Sequence[Tensor], i: int) -> Tensor:
    """Root mean square of factor i, zero as yet, where it changes the weight by ‖W‖, against the errors' gradient G.

    At −t·G the error of a weight that is linear in it is e − t·‖G‖² + (t·‖ΔW‖/‖W‖)²: that at t = 1/‖G‖² tells ‖ΔW‖.
    """
    with torch.enable_grad():
        factor = start[i].detach().requires_grad_()
        before = errors(*start[:i], factor, *start[i + 1 :])
        (gradient,) = torch.autograd.grad(before.sum(), factor)
    moved = gradient / gradient.square().sum(tuple(range(1, factor.ndim)), keepdim=True).clamp_min(_TINY)
    with torch.no_grad():
        change = errors(*start[:i], factor - moved, *start[i + 1 :]) - before + 1
    # No error is below zero, hence ≥ ¼ where e ≤ 1.
    return _root_mean_square(moved) / change.clamp_min(0.25).sqrt().reshape(-1, *[1] * (factor.ndim - 1))


def descend(
    factorization: "Factorization",
    start: dict[str, Tensor],
    target: Tensor,
    steps: int,
    moment: Tensor | None = None,
) -> tuple[dict[str, Tensor], float]:
    """`descend_all` for one weight [m, n] of any factorization; integer factors stay as they are."""
    trained = [name for name, factor in start.items() if factor.is_floating_point()]

    def weight(*factors: Tensor) -> Tensor:
        values = start | {name: factor[0] for name, factor in zip(trained, factors, strict=True)}
        return factorization.weight(*values.values())[None]

    found, errors = descend_all(
        weight, [start[name][None] for name in trained], target[None], steps, None if moment is None else moment[None]
    )
    return start | {name: factor[0] for name, factor in zip(trained, found, strict=True)}, errors.item()


@torch.no_grad()
def fit_matrices(matrices: Sequence["Matrix"], progress: Progress | None = None) -> dict[str, Fit]:
    """Set `fitted` of each matrix, those of one shape and factory together, and say how near they came.

    Args:
        matrices: their factories are factorizations.
        progress: called after each batch of layers with what was fitted, the number of layers done, and that of all.
    """
    groups: dict[Any, list[Matrix]] = {}
    for matrix in matrices:
        weight = matrix.weight
        key = (matrix.factory, weight.shape, weight.dtype, weight.device, matrix.moment is None)
        groups.setdefault(key, []).append(matrix)
    fits: dict[str, Fit] = {}
    for group in groups.values():
        m, n = group[0].weight.shape
        size = max(1, _BATCH // (m * n))
        for begin in range(0, len(group), size):
            batch = group[begin : begin + size]
            fits.update(_fit_batch(batch))
            if progress is not None:
                progress(f"fit {m}×{n}", len(fits), len(matrices))
    return {matrix.name: fits[matrix.name] for matrix in matrices}


def _fit_batch(batch: Sequence["Matrix"]) -> dict[str, Fit]:
    """Fits of matrices of one shape, factory, type and device."""
    factory: Any = batch[0].factory
    targets = torch.stack([matrix.weight for matrix in batch])
    targets = targets if targets.dtype == torch.float64 else targets.float()
    known = [matrix.moment for matrix in batch if matrix.moment is not None]
    moments = torch.stack(known).to(targets) if known else None
    made = []
    for matrix, (fitted, factors) in zip(batch, factory.fit_all(targets, moments), strict=True):
        rounded = {k: f.to(matrix.weight.dtype) if f.is_floating_point() else f for k, f in factors.items()}
        matrix.fitted = fitted, rounded
        made.append(fitted.weight(*rounded.values()))
    errors = torch.stack(made) - targets
    columns: list[list[Any]] = []
    for norm in (None, moments) if moments is not None else (None,):
        total = _squared(targets, norm).clamp_min(_TINY)
        columns.append((_squared(errors, norm) / total).sqrt().tolist())
        columns.append(_lost(spectrum(targets, norm).energies, batch[0].rank))
    family, rank = type(factory).__name__, batch[0].rank
    return {
        matrix.name: Fit(family, rank, *row) for matrix, row in zip(batch, zip(*columns, strict=True), strict=True)
    }


def _lost(energies: Tensor, rank: int | None) -> list[float] | list[None]:
    """Relative error of the best approximation of a rank, from the squared singular values [L, p]."""
    if rank is None:
        return [None] * len(energies)
    return (energies[:, rank:].sum(-1) / energies.sum(-1).clamp_min(_TINY)).sqrt().tolist()
