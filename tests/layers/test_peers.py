"""The sine's rivals and kin, each against the formula of its source, written out entry by entry."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sinelr_lightning.layers import (
    ActivatedLowRank,
    BlockTensorTrain,
    Factorization,
    FedPara,
    FourierLowRank,
    Kronecker,
    LowRank,
    ResidualSine,
    SineLowRank,
    SparseLowRank,
    SparseSine,
)
from sinelr_lightning.layers.kronecker import balanced

from .test_sine_ops import ways

M, N = 12, 20


def drawn(family: Factorization, m: int = M, n: int = N) -> dict[str, Tensor]:
    """Factors with no zeros in them, in float64."""
    return {
        name: torch.randn(f.shape).double() / 3 if f.is_floating_point() else f
        for name, f in family.factors(m, n).items()
    }


def check(family: Factorization, entry, m: int = M, n: int = N) -> None:
    """`weight` against `entry(factors, i, j)`, and `linear` against the weight."""
    f = drawn(family, m, n)
    weight = family.weight(*f.values())
    expected = torch.tensor([[float(entry(f, i, j)) for j in range(n)] for i in range(m)], dtype=torch.float64)
    torch.testing.assert_close(weight, expected)
    x, bias = torch.randn(2, 3, n).double(), torch.randn(m).double()
    torch.testing.assert_close(family.linear(x, bias, *f.values()), F.linear(x, weight, bias))
    torch.testing.assert_close(family.linear(x[0, 0], None, *f.values()), F.linear(x[0, 0], weight))


def phase(f: dict[str, Tensor], i: int, j: int, omega: float = 5.0) -> Tensor:
    return omega * (f["U"][i] * f["V"][j]).sum()


SINE = {"frequency": 5.0, "gain": 2.0}


def test_fedpara():
    check(FedPara(3), lambda f, i, j: (f["U1"][i] @ f["V1"][j]) * (f["U2"][i] @ f["V2"][j]))


def test_rank_of_fedpara_is_the_square():
    weight = FedPara(3).weight(*drawn(FedPara(3), 40, 40).values())
    assert torch.linalg.matrix_rank(weight) == 9


@pytest.mark.parametrize("rank", [1, 2])
def test_kronecker(rank: int):
    (m1, m2), (n1, n2) = balanced(M), balanced(N)
    assert (m1, m2, n1, n2) == (3, 4, 4, 5)
    check(
        Kronecker(rank),
        lambda f, i, j: (f["A"][:, i // m2, j // n2] * f["B"][:, i % m2, j % n2]).sum(),
    )
    f = drawn(Kronecker(1))
    torch.testing.assert_close(Kronecker(1).weight(*f.values()), torch.kron(f["A"][0], f["B"][0]))


@pytest.mark.parametrize("rank", [1, 2])
def test_block_tensor_train(rank: int):
    (m1, m2), (n1, n2) = balanced(24), balanced(40)
    assert (m1, m2, n1, n2) == (4, 6, 5, 8)

    def entry(f: dict[str, Tensor], row: int, column: int) -> float:
        (i, j), (k, l) = divmod(row, m2), divmod(column, n2)  # noqa: E741
        return sum(f["L"][i, l, r, j] * f["R"][l, i, r, k] for r in range(rank))

    check(BlockTensorTrain(rank), entry, 24, 40)


def test_a_block_tensor_train_has_full_rank():
    weight = BlockTensorTrain(1).weight(*drawn(BlockTensorTrain(1), 36, 36).values())
    assert torch.linalg.matrix_rank(weight) == 36


@pytest.mark.parametrize(
    ("family", "low_rank"),
    [
        (SparseLowRank(2, density=0.2, scale=0.5), lambda f, i, j: 0.5 * f["U"][i] @ f["V"][j]),
        (SparseSine(2, density=0.2, **SINE), lambda f, i, j: torch.sin(phase(f, i, j)) / 2),
    ],
    ids=["low rank", "sine"],
)
def test_sparse(family, low_rank):
    def entry(f: dict[str, Tensor], i: int, j: int) -> Tensor:
        return low_rank(f, i, j) + f["values"][f["index"] == i * N + j].sum()

    check(family, entry)
    factors = family.factors(M, N)
    assert len(factors["index"].unique()) == len(factors["values"]) == round(0.2 * M * N)
    assert sum(f.numel() for f in factors.values() if f.is_floating_point()) == family.count(M, N) == 2 * (M + N) + 48
    assert not torch.equal(factors["index"], family.factors(M, N)["index"])  # drawn anew


@pytest.mark.parametrize(
    ("activation", "phi"),
    [
        ("tanh", math.tanh),
        ("relu", lambda t: max(t, 0)),
        ("sigmoid", lambda t: 1 / (1 + math.exp(-t)) - 0.5),
        ("gaussian", lambda t: math.exp(-t * t / 2) - 1),
        ("sinc", lambda t: math.sin(math.pi * t) / (math.pi * t) - 1),
    ],
)
def test_other_activations(activation: str, phi):
    check(ActivatedLowRank(2, activation=activation, **SINE), lambda f, i, j: phi(float(phase(f, i, j))) / 2)


def test_residual_sine():
    def entry(f: dict[str, Tensor], i: int, j: int) -> Tensor:
        a, b = f["mix"]
        return a * (f["U"][i] @ f["V"][j]) + b * torch.sin(phase(f, i, j)) / 2

    check(ResidualSine(2, **SINE), entry)


def test_residual_sine_contains_both():
    u, v = LowRank(2).factors(M, N).values()
    family = ResidualSine(2, **SINE)
    assert torch.equal(family.weight(u, v, torch.tensor([1.0, 0.0])), LowRank(2).weight(u, v))
    assert torch.equal(family.weight(u, v, torch.tensor([0.0, 1.0])), SineLowRank(2, **SINE).weight(u, v))


def test_residual_sine_is_thin_at_rank_one():
    layer, x = ResidualSine(1)(256, 128), torch.randn(3, 256)
    assert ways(layer(x)) == {"_ThinBackward"}
    assert layer.factorization.multiply_adds(*layer.factors()) < 128 * 256 / 2


def test_fourier():
    def entry(f: dict[str, Tensor], i: int, j: int) -> Tensor:
        terms = [
            c * torch.sin((1 + t) * phase(f, i, j) + s)
            for t, (c, s) in enumerate(zip(f["mix"], f["shift"], strict=True))
        ]
        return sum(terms) / 2

    check(FourierLowRank(2, terms=3, **SINE), entry)


def test_fourier_starts_as_the_sine():
    torch.manual_seed(0)
    u, v, mix, shift = FourierLowRank(2, terms=4).factors(M, N).values()
    assert torch.equal(FourierLowRank(2, terms=4).weight(u, v, mix, shift), SineLowRank(2).weight(u, v))


# Those that promise the variance of nn.Linear; SLTrain starts with its sparse part alone.
@pytest.mark.parametrize("family", [FedPara(4), Kronecker(4), BlockTensorTrain(2)], ids=lambda f: type(f).__name__)
def test_starts_with_the_variance_of_a_dense_layer(family: Factorization):
    m, n = 240, 360
    squares = [family.weight(*family.factors(m, n).values()).square().mean() for _ in range(20)]
    assert float(torch.stack(squares).mean()) == pytest.approx(1 / (3 * n), rel=0.1)


def test_sparse_low_rank_starts_with_its_values_alone():
    weight = SparseLowRank(2, density=0.1).weight(*SparseLowRank(2, density=0.1).factors(M, N).values())
    assert torch.count_nonzero(weight) == round(0.1 * M * N)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        *[(lambda family=family: family(0), "rank must be at least 1") for family in (FedPara, Kronecker)],
        (lambda: BlockTensorTrain(0), "rank must be at least 1"),
        (lambda: SparseLowRank(0), "rank must be at least 1"),
        (lambda: SparseSine(2, density=1.0), "density must be above 0 and below 1, got 1.0"),
        (lambda: SparseLowRank(2, density=0.0), "density must be above 0 and below 1"),
        (lambda: SparseLowRank(2, scale=-1.0), "scale must be a positive number"),
        (lambda: ResidualSine(1, frequency=-1.0), "frequency must be a positive number"),
        (lambda: FourierLowRank(1, terms=0), "terms must be at least 1"),
        (lambda: ActivatedLowRank(1, activation="cosine"), "'cosine' is none of tanh, relu, sigmoid"),
        (lambda: ActivatedLowRank(1, activation="relu").factors(8, 8, zero=True), "relu has no slope at 0"),
        (
            lambda: Kronecker(9).factors(6, 6),
            r"9 Kronecker products of 2×2 and 3×3 have 117 parameters, the dense 6×6",
        ),
        (lambda: BlockTensorTrain(9).factors(6, 6), "blocks of 3×2 at rank 9 have"),
        (lambda: FedPara(9).factors(9, 20), "rank 9 is not below"),
    ],
)
def test_refuses(make, message: str):
    with pytest.raises(ValueError, match=message):
        make()


def test_balanced():
    for size in (1, 2, 7, 12, 768, 997):
        a, b = balanced(size)
        assert a * b == size and a <= b
        assert not any(size % d == 0 for d in range(a + 1, math.isqrt(size) + 1))
