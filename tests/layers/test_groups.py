import pytest
import torch
from torch import nn

from sinelr_lightning.layers import BlockTensorTrain, Dense, LinearFactory, LowRank, SineLowRank, parameter_groups


def model() -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(24, 32), nn.LayerNorm(32), SineLowRank(2, lr_multiplier=3.0)(32, 16), LowRank(2)(16, 8)
    )


def test_groups_by_hand():
    net = model()
    groups = {g["name"]: g for g in parameter_groups(net, weight_decay=0.1)}
    assert set(groups) == {"lr×1", "lr×1, no decay", "lr×3, no decay"}
    ids = {name: {id(p) for p in g["params"]} for name, g in groups.items()}
    assert ids["lr×1"] == {id(net[0].weight), id(net[3].U), id(net[3].V)}
    assert ids["lr×3, no decay"] == {id(net[2].U), id(net[2].V)}
    vectors = [net[0].bias, net[1].weight, net[1].bias, net[2].bias, net[3].bias]
    assert ids["lr×1, no decay"] == {id(p) for p in vectors}
    assert {name: g["weight_decay"] for name, g in groups.items()} == {
        "lr×1": 0.1,
        "lr×1, no decay": 0.0,
        "lr×3, no decay": 0.0,
    }
    assert groups["lr×3, no decay"]["lr_multiplier"] == 3.0


def test_every_trainable_parameter_once():
    net = model()
    net[0].requires_grad_(False)
    shared = nn.ModuleList([net, net[2], nn.Sequential(net[3])])
    shared.scale = nn.Parameter(torch.ones(()))
    grouped = [id(p) for g in parameter_groups(shared) for p in g["params"]]
    assert sorted(grouped) == sorted(id(p) for p in shared.parameters() if p.requires_grad)


def test_an_optimizer_takes_them():
    optimizer = torch.optim.AdamW(parameter_groups(model(), weight_decay=0.01), lr=1e-3)
    assert [g["lr_multiplier"] for g in optimizer.param_groups] == [1.0, 1.0, 3.0]


def test_each_group_trains_at_its_own_rate():
    groups = parameter_groups(model(), weight_decay=0.01, lr=1e-3)
    rates = {group["lr_multiplier"]: group["lr"] for group in torch.optim.AdamW(groups).param_groups}
    assert rates == {1.0: 1e-3, 3.0: pytest.approx(3e-3)}
    assert all("lr" not in group for group in parameter_groups(model()))


def moved(family: LinearFactory, m: int, n: int) -> float:
    """How far a first step of Adam moves the output of an m×n layer, over the rate."""
    torch.manual_seed(0)
    layer, x, loss = family(n, m, bias=False), torch.randn(1, n), torch.randn(1, m)
    optimizer = torch.optim.Adam(parameter_groups(layer, lr=1e-5))
    before = layer(x).detach()
    (layer(x) * loss).sum().backward()
    optimizer.step()
    return (layer(x) - before).square().mean().sqrt().item() / 1e-5


@pytest.mark.parametrize(("m", "n"), [(64, 64), (1024, 1024), (3072, 768), (192, 2048)])
@pytest.mark.parametrize("rank", [1, 3])
def test_block_tensor_trains_move_as_dense_layers_do(rank: int, m: int, n: int):
    dense = moved(Dense(), m, n)
    assert 0.5 < moved(BlockTensorTrain(rank), m, n) / dense < 1.5
    assert moved(BlockTensorTrain(rank, own_rates=False), m, n) / dense < 0.5
