import dataclasses
import functools

import pytest
from torch import nn

from sinelr_lightning.layers import Dense, LinearFactory, LowRank, SineLowRank


class UsersOwn:
    def __call__(self, in_features: int, out_features: int, bias: bool = True) -> nn.Module:
        return nn.Linear(in_features, out_features, bias)


class Inherits(UsersOwn):
    pass


class OtherNames:
    def __call__(self, n: int, m: int) -> nn.Module:
        return nn.Linear(n, m)


class NotCallable:
    in_features, out_features = 2, 3


@pytest.mark.parametrize("factory", [Dense(), LowRank(1), SineLowRank(1), UsersOwn(), Inherits()])
def test_factories(factory):
    assert isinstance(factory, LinearFactory)
    assert issubclass(type(factory), LinearFactory)
    layer = factory(8, 6, bias=False)
    assert (layer.in_features, layer.out_features, layer.bias) == (8, 6, None)


@pytest.mark.parametrize(
    "other",
    [
        nn.Linear(2, 3),
        nn.Linear,
        OtherNames(),
        NotCallable(),
        functools.partial(nn.Linear),
        lambda x: x,
        "SineLowRank",
    ],
    ids=["layer", "class", "other names", "not callable", "partial", "lambda", "string"],
)
def test_not_factories(other):
    assert not isinstance(other, LinearFactory)


def test_a_users_class_is_no_factorization():
    from sinelr_lightning.layers import Factorization

    assert not isinstance(UsersOwn(), Factorization)
    with pytest.raises(TypeError, match="abstract"):
        Factorization()
    with pytest.raises(TypeError, match="abstract"):
        LinearFactory()


def test_factories_are_values():
    assert SineLowRank(3) == SineLowRank(3) != SineLowRank(4)
    assert len({LowRank(3), LowRank(3), Dense(), Dense()}) == 2
    with pytest.raises(dataclasses.FrozenInstanceError):
        SineLowRank(3).rank = 4
    assert type(Dense()(3, 4)) is nn.Linear
