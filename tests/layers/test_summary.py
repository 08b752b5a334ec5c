import pytest
import torch
from torch import nn

from sinelr_lightning.layers import FactorizedConv2d, LowRank, SineLowRank, convert, summarize
from sinelr_lightning.layers.summary import _short

from .families import M, N, every_family


def test_by_hand():
    net = nn.Sequential(nn.Linear(64, 32), SineLowRank(2)(32, 48), nn.ReLU(), LowRank(3)(48, 16, bias=False))
    summary = summarize(net)
    sine, low = summary.layers
    assert (sine.name, sine.shape, sine.parameters, sine.dense_parameters) == ("1", (48, 32), 160, 1536)
    assert (low.name, low.shape, low.parameters, low.dense_parameters) == ("3", (16, 48), 192, 768)
    assert summary.parameters == 64 * 32 + 32 + 160 + 48 + 192
    assert summary.dense_parameters == 64 * 32 + 32 + 1536 + 48 + 768
    assert summary.compression == pytest.approx(2480 / 4432)
    assert (low.multiply_adds, low.dense_multiply_adds) == (3 * (16 + 48), 16 * 48)  # two thin products
    assert sine.multiply_adds == sine.dense_multiply_adds == 48 * 32  # so small that it is formed
    text = str(summary)
    assert text.endswith("2,480 of 4,432 parameters, 55.96% of dense")
    assert "\n1 " in text and "48×32" in text and "160 of 1,536" in text


def test_counts_what_the_dense_model_had():
    net = nn.Sequential(nn.Linear(32, 32), nn.Sequential(nn.Conv2d(8, 16, 3), nn.Linear(16, 40)))
    dense = sum(p.numel() for p in net.parameters())
    convert(net, SineLowRank(1))
    summary = summarize(net)
    assert summary.dense_parameters == dense
    assert summary.parameters == sum(p.numel() for p in net.parameters()) < dense / 5
    assert [layer.name for layer in summary.layers] == ["0", "1.0", "1.1"]


def test_shared_layers_count_once_and_an_empty_model_is_whole():
    layer = LowRank(1)(8, 8)
    assert len(summarize(nn.ModuleList([layer, layer])).layers) == 1
    assert summarize(nn.ReLU()).compression == 1.0


@every_family
def test_multiply_adds_are_those_of_the_constants_that_serve(family):
    layer = family(N, M)
    served = family.served(*layer.factors())
    assert layer.multiply_adds() <= M * N
    assert layer.multiply_adds() == sum(matrix.numel() for matrix in served) or served == ()


def test_multiply_adds_of_a_thin_sine_grow_with_its_phases():
    layer = SineLowRank(1)(256, 512)
    assert layer.multiply_adds() == 8 * (256 + 512)  # eight columns up to 6 rad
    with torch.no_grad():
        layer.U.mul_(2.5)
    assert layer.multiply_adds() == 16 * (256 + 512)  # up to 16 rad
    with torch.no_grad():
        layer.U.mul_(1e6)
    assert layer.multiply_adds() == 256 * 512  # formed


def test_a_convolution_multiplies_its_formed_weight_for_every_pixel():
    (layer,) = summarize(nn.Sequential(FactorizedConv2d(LowRank(2), 8, 16, 3))).layers
    assert (layer.parameters, layer.multiply_adds, layer.dense_multiply_adds) == (2 * (16 + 72), 16 * 72, 16 * 72)


def test_groups_of_blocks():
    block = lambda: nn.ModuleDict({"mlp": nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 32))})  # noqa: E731
    net = nn.ModuleDict({"layer1": nn.ModuleList([block(), block()]), "layer2": nn.ModuleList([block()])})
    net["head"] = nn.Linear(32, 16)
    net["mixed3"] = nn.ModuleDict({"in": nn.Linear(32, 24)})
    convert(net, LowRank(2))
    summary = summarize(net)
    assert [(g.name, g.count, g.shape) for g in summary.groups] == [
        ("layer*.*.mlp.0", 3, (64, 32)),
        ("layer*.*.mlp.2", 3, (32, 64)),
        ("head", 1, (16, 32)),
        ("mixed3.in", 1, (24, 32)),  # alone, it keeps its number
    ]
    first = summary.groups[0]
    assert (first.parameters, first.dense_parameters) == (3 * 2 * 96, 3 * 64 * 32)
    assert (first.multiply_adds, first.dense_multiply_adds) == (3 * 2 * 96, 3 * 64 * 32)
    for total in ("parameters", "dense_parameters", "multiply_adds", "dense_multiply_adds"):
        assert sum(getattr(g, total) for g in summary.groups) == sum(getattr(s, total) for s in summary.layers)
    lines = str(summary).splitlines()
    assert len(lines) == 1 + 4 + 1 and max(map(len, lines)) <= 118
    assert lines[1].split() == ["layer*.*.mlp.0", "3", "64×32", "576", "of", "6,144", "576", "of", "6,144"]


def test_rows_stay_aligned_with_long_names():
    net = nn.Sequential()
    net.add_module("n" * 90, nn.Linear(4096, 4096))
    convert(net, LowRank(40))
    head, row, _ = str(summarize(net)).splitlines()
    assert row.startswith("…nnn") and len(row) <= 118
    assert row.index("4096×4096") + len("4096×4096") == head.index("m×n") + len("m×n")
    assert [_short(n) for n in (0, 9_999, 10_000, 98_304, 999_900, 7_077_888, 28_311_552, 2 * 10**9)] == [
        "0", "9,999", "10k", "98.3k", "1M", "7.08M", "28.3M", "2G",
    ]  # fmt: skip
