import pytest
from torch import nn

from sinelr_lightning.layers import LowRank, SineLowRank, convert, summarize


def test_by_hand():
    net = nn.Sequential(nn.Linear(64, 32), SineLowRank(2)(32, 48), nn.ReLU(), LowRank(3)(48, 16, bias=False))
    summary = summarize(net)
    sine, low = summary.layers
    assert (sine.name, sine.shape, sine.parameters, sine.dense_parameters) == ("1", (48, 32), 160, 1536)
    assert (low.name, low.shape, low.parameters, low.dense_parameters) == ("3", (16, 48), 192, 768)
    assert summary.parameters == 64 * 32 + 32 + 160 + 48 + 192
    assert summary.dense_parameters == 64 * 32 + 32 + 1536 + 48 + 768
    assert summary.compression == pytest.approx(2480 / 4432)
    text = str(summary)
    assert text.endswith("2,480 of 4,432 parameters, 55.96% of dense")
    assert "1 " in text and "48 × 32" in text


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
