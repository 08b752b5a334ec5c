"""Ranks for single layers under a budget of parameters for the whole model."""

import heapq
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from sinelr_lightning.layers.factorization import Factorization
from sinelr_lightning.layers.fit import spectrum
from sinelr_lightning.layers.sites import Matrix, ranked

__all__ = ["Costs", "allocate", "choose_ranks"]


class Costs:
    """Parameters of an m×n weight by rank: `first` at rank 1, `more` for each further one; no rank above `most`."""

    def __init__(self, factory: Factorization, m: int, n: int) -> None:
        self.dense = m * n
        self.first = self.more = ranked(factory, 1).count(m, n)
        self.most = 1
        try:
            self.more = ranked(factory, 2).count(m, n) - self.first
        except ValueError:  # a layer so small has no rank 2
            return
        # A layer is converted while its factors are smaller than its weight, and its rank below both sizes.
        self.most = min(min(m, n) - 1, 1 + (self.dense - 1 - self.first) // self.more)

    def __call__(self, rank: int) -> int:
        return self.first + (rank - 1) * self.more


def allocate(energies: Sequence[Tensor], costs: Sequence[Costs], parameters: int) -> list[int]:
    """Ranks ≥ 1 that keep as much energy as they can for a number of parameters, by the greedy choice.

    Each further column of a layer is worth its share of that layer's energy over its parameters; the most worth is
    taken first, and one that no longer fits is passed over. Within a layer the energies fall, so the choice is the
    best there is when all columns cost the same, and else short of it by less than one column's worth.

    Args:
        energies: squared singular values of each layer, largest first, with `costs[i].most` ≥ 1.
        costs: parameters of each layer by rank.
        parameters: those of all layers together; at least that of rank 1 everywhere.
    """
    shares = [(e / e.sum().clamp_min(1e-30)).tolist() for e in energies]
    ranks = [1] * len(costs)
    left = parameters - sum(cost.first for cost in costs)
    heap = [(-shares[i][1] / cost.more, i) for i, cost in enumerate(costs) if cost.most > 1]
    heapq.heapify(heap)
    while heap:
        _, i = heapq.heappop(heap)
        if costs[i].more > left:
            continue  # nor will it fit later
        left -= costs[i].more
        ranks[i] += 1
        if ranks[i] < costs[i].most:
            heapq.heappush(heap, (-shares[i][ranks[i]] / costs[i].more, i))
    return ranks


def choose_ranks(matrices: Sequence[Matrix], share: float, dense: int) -> None:
    """Set each matrix's rank so that the model has at most `share` of its dense parameters.

    Each layer's energies are those of W·C^½ where its input was measured, else of W; the sine of low rank, which
    keeps more than its rank, is judged by them too.

    Args:
        matrices: those to be factorized; their factories have a rank.
        share: of the parameters, 0 < share < 1.
        dense: parameters of the whole dense model.

    Raises:
        ValueError: not even rank 1 everywhere is within the share.
    """
    costs = []
    for matrix in matrices:
        assert isinstance(matrix.factory, Factorization)
        costs.append(Costs(matrix.factory, *matrix.weight.shape))
    rest = dense - sum(cost.dense for cost in costs)
    least = rest + sum(cost.first for cost in costs)
    allowed = math.floor(share * dense)
    if least > allowed:
        raise ValueError(
            f"budget {share:g} is below what the chosen layers can reach: rank 1 everywhere leaves "
            f"{math.ceil(1e4 * least / dense) / 1e4:.4f} of the {dense:,} parameters"
        )
    ranks = allocate([_energies(matrix) for matrix in matrices], costs, allowed - rest)
    for matrix, rank in zip(matrices, ranks, strict=True):
        matrix.factory = ranked(matrix.factory, rank)


@torch.no_grad()
def _energies(matrix: Matrix) -> Tensor:
    return spectrum(matrix.weight.detach(), matrix.moment).energies.cpu()
