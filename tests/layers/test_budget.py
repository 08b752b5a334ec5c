import copy
import itertools

import pytest
import torch
import torchvision
from torch import Tensor, nn

from sinelr_lightning.layers import (
    BlockTensorTrain,
    Dense,
    FactorizedLinear,
    Kronecker,
    LowRank,
    SineLowRank,
    cached_weights,
    convert,
    summarize,
)
from sinelr_lightning.layers.budget import Costs, allocate

from .families import ShuffledLowRank


def energies(*sizes: int) -> list[Tensor]:
    return [torch.rand(size).double().sort(descending=True).values for size in sizes]


def kept(spectra: list[Tensor], ranks) -> float:
    return sum((e[:r].sum() / e.sum()).item() for e, r in zip(spectra, ranks, strict=True))


def spent(costs: list[Costs], ranks) -> int:
    return sum(cost(rank) for cost, rank in zip(costs, ranks, strict=True))


# ------------------------------------------------------------------------------------------------ the greedy choice


@pytest.mark.parametrize("parameters", range(3 * 20, 12 * 20 + 1, 10))
def test_greedy_is_the_best_choice_when_columns_cost_the_same(parameters: int):
    shapes = [(12, 8), (10, 10), (8, 12)]  # 20 parameters a column each
    costs, spectra = [Costs(LowRank(1), *shape) for shape in shapes], energies(8, 10, 8)
    assert [cost.most for cost in costs] == [4, 4, 4]
    ranks = allocate(spectra, costs, parameters)
    possible = [r for r in itertools.product(range(1, 5), repeat=3) if spent(costs, r) <= parameters]
    assert tuple(ranks) in possible
    assert kept(spectra, ranks) == pytest.approx(max(kept(spectra, r) for r in possible))


@pytest.mark.parametrize("seed", range(5))
def test_greedy_is_short_of_the_best_by_less_than_a_column(seed: int):
    torch.manual_seed(seed)
    costs, spectra = [Costs(LowRank(1), *shape) for shape in ((30, 8), (10, 12), (20, 20))], energies(8, 10, 20)
    for parameters in range(100, 700, 37):
        ranks = allocate(spectra, costs, parameters)
        possible = [
            r for r in itertools.product(*(range(1, c.most + 1) for c in costs)) if spent(costs, r) <= parameters
        ]
        best = max(kept(spectra, r) for r in possible)
        column = max((e[1] / e.sum()).item() for e in spectra)
        assert tuple(ranks) in possible and best - column < kept(spectra, ranks) <= best + 1e-9


def test_the_choice_by_hand():
    # Shares of a second column: 0.26 and 0.4, for 20 and 40 parameters: the cheap one first, and its third too.
    spectra = [torch.tensor([0.5, 0.26, 0.24, 0, 0]), torch.tensor([0.6, 0.4] + [0] * 18)]
    costs = [Costs(LowRank(1), 10, 10), Costs(LowRank(1), 20, 20)]
    assert allocate(spectra, costs, 60 + 19) == [1, 1]
    assert allocate(spectra, costs, 60 + 20) == [2, 1]
    assert allocate(spectra, costs, 60 + 40) == [3, 1]
    assert allocate(spectra, costs, 60 + 79) == [4, 1]  # a column of no worth, where that of worth does not fit
    assert allocate(spectra, costs, 60 + 80) == [3, 2]


def test_a_layer_takes_no_rank_at_which_it_is_not_smaller():
    for m, n in ((64, 64), (10, 12), (2, 30), (3, 3), (40, 3)):
        cost = Costs(LowRank(1), m, n)
        assert cost.most == max((r for r in range(1, min(m, n)) if r * (m + n) < m * n), default=0)
        assert all(cost(r) == r * (m + n) for r in (1, 2, 5))
    costs = [Costs(LowRank(1), 12, 12)]
    assert allocate(energies(12), costs, 10**6) == [5]  # 6·24 = 144 is the dense one


# --------------------------------------------------------------------------------------------------- whole models


def model() -> nn.Module:
    made = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 1))
    with torch.no_grad():  # one layer with a steep spectrum
        u, _, vh = torch.linalg.svd(made[0].weight, full_matrices=False)
        made[0].weight.copy_((u * torch.exp(-torch.arange(32.0))) @ vh)
    return made


@pytest.mark.parametrize("factory", [LowRank(7), SineLowRank(7), ShuffledLowRank(7)], ids=str)
@pytest.mark.parametrize("budget", [0.1, 0.25, 0.5, 0.77, 0.999])
def test_the_budget_is_kept_and_used(factory, budget: float):
    net = model()
    dense = sum(p.numel() for p in net.parameters())
    result = convert(net, factory, budget=budget)
    total = sum(p.numel() for p in net.parameters())
    assert total <= budget * dense
    assert summarize(net).dense_parameters == dense
    first, second = net[0].factorization.rank, net[2].factorization.rank
    assert result.ranks == {"0": first, "2": second}
    assert result.converted == ["0", "2"] and type(net[4]) is nn.Linear
    assert list(result.skipped) == ["4"] and "49" in result.skipped["4"]  # more than its 48 even at rank 1
    if budget < 0.77:
        assert second > first or budget == 0.1  # where the energy is
        assert budget * dense - total < 64 + 48  # not another column fits
    if budget > 0.9:
        assert (first, second) == (21, 27)  # 22·96 > 32·64 and 28·112 > 64·48


def test_a_budget_out_of_reach_says_what_can_be_reached():
    net = model()
    dense = sum(p.numel() for p in net.parameters())
    least = (dense - 32 * 64 - 64 * 48 + 96 + 112) / dense
    with pytest.raises(ValueError, match=r"budget 0\.06 is below .* rank 1 everywhere leaves 0\.0\d{3}") as error:
        convert(net, LowRank(1), budget=0.06)
    named = float(str(error.value).split(" leaves ")[1].split()[0])
    assert least <= named < least + 1.1e-4
    assert type(net[0]) is nn.Linear
    convert(net, LowRank(1), budget=named)  # and that can be had
    with pytest.raises(ValueError, match=r"leaves 1\.0000"):
        convert(nn.Sequential(nn.Linear(2, 2)), LowRank(1), budget=0.5)


@pytest.mark.parametrize("budget", [0, 1, 1.5, -0.1])
def test_a_budget_is_a_share(budget: float):
    with pytest.raises(ValueError, match=rf"share of the parameters in \(0, 1\), got {budget}"):
        convert(model(), LowRank(1), budget=budget)


def test_what_a_budget_does_not_go_with():
    with pytest.raises(ValueError, match="give ranks or budget, not both"):
        convert(model(), LowRank(1), budget=0.5, ranks={"0": 3})
    with pytest.raises(ValueError, match="ranks and budget need a factorization with a rank, got Dense"):
        convert(model(), Dense(), budget=0.5)


def test_calibration_decides_which_layer_gets_the_columns():
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.wide, self.narrow = nn.Linear(32, 32), nn.Linear(32, 32)

        def forward(self, x: Tensor) -> Tensor:
            # The inputs of `narrow` lie in three dimensions, in which three columns are all that it needs.
            return self.wide(x) + self.narrow(torch.cat([x[..., :3], 0 * x[..., 3:]], -1))

    torch.manual_seed(0)
    net, x = Two(), torch.randn(200, 32)
    blind = convert(copy.deepcopy(net), LowRank(1), budget=0.5).ranks
    seeing = convert(copy.deepcopy(net), LowRank(1), budget=0.5, calibration=[x]).ranks
    assert abs(blind["wide"] - blind["narrow"]) <= 3
    assert seeing == {"wide": 12, "narrow": 3} and sum(blind.values()) == 15


def test_attention_and_convolutions_have_a_share_and_shared_layers_count_once():
    net = torchvision.models.VisionTransformer(
        image_size=32, patch_size=8, num_layers=2, num_heads=2, hidden_dim=32, mlp_dim=64
    )
    dense = sum(p.numel() for p in net.parameters())
    images = torch.randn(4, 3, 32, 32)
    result = convert(net, SineLowRank(1), budget=0.8, init="fit", calibration=[images], exclude=["heads.*"])
    assert 0.79 * dense < sum(p.numel() for p in net.parameters()) <= 0.8 * dense
    assert len(result.ranks) == 1 + 2 * (3 + 1 + 2) == len(result.fits)
    assert all(fit.output_error <= fit.svd_output_error + 2e-4 for fit in result.fits.values())
    assert net.eval()(images).isfinite().all()

    layer = nn.Linear(32, 32)
    tied = nn.ModuleList([layer, nn.Linear(32, 32), layer])
    convert(tied, LowRank(1), budget=0.5)
    assert tied[0] is tied[2] and isinstance(tied[0], FactorizedLinear)
    assert 1056 - 64 < sum(p.numel() for p in tied.parameters()) <= 1056


def test_the_chosen_ranks_make_the_same_model_again():
    net, x = model(), torch.randn(3, 32)
    result = convert(net, SineLowRank(1), budget=0.4, init="fit")
    other = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 1))
    convert(other, SineLowRank(1), ranks=result.ranks, include=result.converted)
    other.load_state_dict(net.state_dict())
    assert torch.equal(other(x), net(x))


def test_the_chosen_ranks_travel_in_the_state():
    net, x = model(), torch.randn(3, 32)
    convert(net, SineLowRank(4), budget=0.4, init="fit")
    state = net.state_dict()
    assert int(state["0.hyper.rank"]) == net[0].factorization.rank
    other = plain()
    other[0].U.requires_grad_(False)
    other.load_state_dict(state)
    assert torch.equal(other(x), net(x))
    assert isinstance(other[0].U, nn.Parameter) and not other[0].U.requires_grad and other[0].V.requires_grad
    assert other.state_dict().keys() == state.keys()
    other.load_state_dict(plain().state_dict())  # and back to the rank of the factory
    assert other[0].factorization == SineLowRank(4) and other[0].U.shape == (64, 4)

    attention = nn.MultiheadAttention(32, 2)
    convert(attention, LowRank(3), budget=0.5)
    fresh = nn.MultiheadAttention(32, 2)
    convert(fresh, LowRank(3))
    fresh.load_state_dict(attention.state_dict())
    assert torch.equal(fresh.in_proj_weight, attention.in_proj_weight)
    with pytest.raises(RuntimeError, match=r"0\.hyper: rank 60 is not below min"):
        other.load_state_dict(state | {"0.hyper.rank": torch.tensor(60)})


def plain() -> nn.Module:
    made = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 1))
    convert(made, SineLowRank(4))
    return made


def test_layers_too_small_for_a_second_rank_keep_the_first():
    net = nn.Sequential(nn.Linear(64, 64), nn.Linear(16, 16))
    result = convert(net, BlockTensorTrain(1), budget=0.6)
    assert result.ranks == {"0": 2, "1": 1}


def test_a_kronecker_budget_multiplies_no_more_than_dense():
    net, x = nn.Sequential(nn.Linear(64, 48)), torch.randn(3, 64)
    convert(net, Kronecker(1), budget=0.9)
    (layer,) = summarize(net).layers
    rank = net[0].factorization.rank
    assert rank * 8 * 8 * (8 + 6) > layer.dense_multiply_adds == layer.multiply_adds
    expected = torch.nn.functional.linear(x, net[0].weight, net[0].bias)
    torch.testing.assert_close(net(x), expected)
    with torch.no_grad(), cached_weights(net):
        assert [matrix.shape for matrix in net[0]._served] == [(48, 64)]
        torch.testing.assert_close(net(x), expected)
