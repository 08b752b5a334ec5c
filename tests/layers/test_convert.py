import copy
import io
import pickle

import pytest
import torch
import torchvision
from torch import nn
from torch.nn.utils import prune

from sinelr_lightning.layers import (
    Dense,
    FactorizedConv2d,
    FactorizedLinear,
    Kronecker,
    LowRank,
    SineLowRank,
    convert,
    fold,
    summarize,
)


class Block(nn.Module):
    """A transformer block as in the vision transformers, with a dropout to tell training from evaluation."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, 4, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.norm(x)
        x = x + self.attention(h, h, h, need_weights=False)[0]
        return x + self.mlp(x)


class SmallViT(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 32, 4, stride=4)
        self.blocks = nn.Sequential(Block(), Block())
        self.head = nn.Linear(32, 10)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.head(self.blocks(self.patch(image).flatten(2).mT).mean(1))


def test_vision_transformer():
    model, image = SmallViT(), torch.randn(2, 3, 16, 16)
    before = summarize(model).parameters
    result = convert(model, SineLowRank(2), exclude=["head"])
    assert result.converted == ["patch"] + [
        f"blocks.{i}.{name}"
        for i in (0, 1)
        for name in ("attention.in_proj_weight", "attention.out_proj", "mlp.0", "mlp.2")
    ]
    assert not result.skipped
    assert type(model.patch) is FactorizedConv2d and type(model.head) is nn.Linear
    assert summarize(model).dense_parameters == before

    model(image).square().sum().backward()  # in training, through the packed attention's functional form
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in model.blocks[0].attention.out_proj.parameters())
    trained = model(image).detach()
    with torch.no_grad():  # in evaluation, where attention may take its fused path
        torch.testing.assert_close(model.eval()(image), trained, rtol=1e-4, atol=1e-5)
        for tolerance in (None, 1e-5):
            folded = fold(copy.deepcopy(model), tolerance)
            torch.testing.assert_close(folded(image), trained, rtol=1e-3, atol=1e-4)
            assert not any(isinstance(m, FactorizedLinear | FactorizedConv2d) for m in folded.modules())


@pytest.mark.parametrize("evaluation", [False, True])
def test_pytorchs_own_encoder_layer_reads_the_weights(evaluation: bool):
    model = nn.Sequential(nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True))
    convert(model, SineLowRank(1))
    x = torch.randn(2, 5, 32)
    expected = model(x).detach()
    model.train(not evaluation)
    with torch.set_grad_enabled(not evaluation):
        for served in (model, fold(copy.deepcopy(model)), fold(copy.deepcopy(model), 1e-6)):
            torch.testing.assert_close(served(x), expected, rtol=1e-4, atol=1e-5)


def test_resnet18():
    model = torchvision.models.resnet18(num_classes=7).eval()
    result = convert(model, LowRank(4), exclude=["fc"])
    assert not result.skipped
    assert len(result.converted) == 20  # its convolutions
    layer = model.layer2[0].conv1
    assert (layer.stride, layer.padding, layer.kernel_size, layer.bias) == ((2, 2), (1, 1), (3, 3), None)
    assert not layer.training
    x = torch.randn(1, 3, 32, 32)
    assert model.layer2[0].downsample[0].kernel_size == (1, 1) and model.conv1.kernel_size == (7, 7)
    expected = model(x)
    torch.testing.assert_close(fold(model)(x), expected, rtol=1e-4, atol=1e-4)
    assert type(model.layer2[0].conv1) is nn.Conv2d


@pytest.mark.parametrize("rank", [1, 100, 250])
def test_vit_b_16_has_the_parameters_of_the_paper(rank: int):
    with torch.device("meta"):
        model = torchvision.models.vit_b_16()
    state = torch.get_rng_state()
    result = convert(model, SineLowRank(rank), include=["*.mlp.*"])
    assert torch.equal(torch.get_rng_state(), state)  # nothing was drawn for a model without memory
    assert len(result.converted) == 24
    assert sum(p.numel() for p in model.parameters()) == 29_944_552 + 92_160 * rank
    assert all(p.is_meta for p in model.parameters())


def test_convnext_tiny():
    model = torchvision.models.convnext_tiny(num_classes=7).eval()
    result = convert(model, SineLowRank(2), exclude=["classifier.2"])
    depthwise = [name for name in result.skipped if name.endswith(".block.0")]
    assert len(depthwise) == 18 == len(result.skipped)  # the blocks
    assert {result.skipped[name].partition("(")[0] for name in depthwise} == {"a grouped convolution "}
    assert len(result.converted) == 18 * 2 + 4  # two 1×1 layers a block, the stem and three reductions
    with torch.no_grad():
        assert model(torch.randn(1, 3, 32, 32)).isfinite().all()


def test_ranks_of_single_layers():
    def named() -> nn.Module:
        return nn.ModuleDict(
            {"a": nn.Linear(32, 32), "b": nn.Sequential(nn.Linear(32, 32)), "c": nn.MultiheadAttention(32, 2)}
        )

    model = named()
    convert(model, SineLowRank(3, phase_spread=1.0), ranks={"b*": 5, "c.in_proj.v": 7, "c.in_proj*": 2, "*": 4})
    layers = {name: m.factorization for name, m in model.named_modules() if hasattr(m, "factorization")}
    assert {name: f.rank for name, f in layers.items()} == {
        "a": 4, "b.0": 5, "c.in_proj.q": 2, "c.in_proj.k": 2, "c.in_proj.v": 7, "c.out_proj": 4,
    }  # fmt: skip
    assert all(f.phase_spread == 1.0 for f in layers.values())  # all else as in the factory
    model = named()
    convert(model, LowRank(3), exclude=["c*"], ranks={"a": 1})
    assert (model["a"].factorization.rank, model["b"][0].factorization.rank) == (1, 3)

    model = named()
    with pytest.raises(ValueError, match=r"'b' of ranks matches no layer that is converted; near names: b\.0"):
        convert(model, LowRank(3), ranks={"a": 1, "b": 2})
    with pytest.raises(ValueError, match=r"pattern 'a' of ranks matches no layer that is converted"):
        convert(model, LowRank(3), exclude=["a"], ranks={"a": 1})
    with pytest.raises(ValueError, match="ranks and budget need a factorization with a rank, got Dense"):
        convert(model, Dense(), ranks={"a": 1})
    with pytest.raises(ValueError, match="rank must be at least 1, got 0"):
        convert(model, LowRank(3), ranks={"a": 0})
    assert type(model["a"]) is nn.Linear
    assert "rank 40 is not below" in convert(model, LowRank(3), include=["a"], ranks={"a": 40}).skipped["a"]


def test_leaves_and_names_what_would_not_gain():
    model = nn.ModuleDict(
        {
            "depthwise": nn.Conv2d(64, 64, 3, groups=64),
            "grouped": nn.Conv2d(64, 64, 3, groups=2),
            "narrow": nn.Linear(64, 3),
            "growing": nn.Linear(8, 8),
            "good": nn.Linear(64, 64),
        }
    )
    result = convert(model, LowRank(4))
    assert result.converted == ["good"]
    assert result.skipped["depthwise"] == "a grouped convolution (64 groups)"
    assert result.skipped["grouped"] == "a grouped convolution (2 groups)"
    assert "rank 4 is not below min(out_features=3, in_features=64) = 3" in result.skipped["narrow"]
    assert result.skipped["growing"] == "its factors would have 64 parameters, its weight has 64"
    assert str(result).startswith("converted 1 layers\n  left depthwise: ")


def test_a_factory_without_convolutions():
    model = nn.Sequential(nn.Conv1d(8, 8, 3), nn.Linear(8, 8), nn.MultiheadAttention(8, 2))
    dense = model[1]
    result = convert(model, Dense(), exclude=["*.out_proj"])
    assert result.skipped == {
        "0": "Dense makes no convolutions",
        "2.in_proj_weight": "Dense makes no packed projections",
    }
    assert result.converted == ["1"] and model[1] is not dense and type(model[1]) is nn.Linear
    with pytest.raises(ValueError, match='init="fit" needs a factorization, got Dense'):
        convert(model, Dense(), init="fit")


def test_patterns():
    def named() -> nn.Module:
        return nn.ModuleDict({"encoder": nn.Linear(32, 32), "decoder": nn.Linear(32, 32), "head": nn.Linear(32, 32)})

    assert convert(named(), LowRank(1), include=["*coder"], exclude=["de*"]).converted == ["encoder"]
    assert convert(named(), LowRank(1), include=[lambda name, m: name > "e"]).converted == ["encoder", "head"]
    with pytest.raises(ValueError) as error:
        convert(named(), LowRank(1), include=["encodr"])
    assert "pattern 'encodr' matches no linear layer or convolution; near names: encoder" in str(error.value)
    model = named()
    with pytest.raises(ValueError, match=r"pattern 'haed' .* near names: head"):
        convert(model, LowRank(1), exclude=["haed"])
    assert all(type(m) is nn.Linear for m in model.values())  # an error changes nothing
    with pytest.raises(ValueError, match="the model has none"):
        convert(nn.ReLU(), LowRank(1))
    with pytest.raises(ValueError, match='init must be "fresh" or "fit", got \'svd\''):
        convert(named(), LowRank(1), init="svd")


def test_keeps_device_type_mode_and_bias():
    model = nn.Sequential(nn.Linear(32, 24), nn.Linear(24, 32, bias=False)).bfloat16().eval()
    bias = model[0].bias.detach().clone()
    convert(model, SineLowRank(1))
    assert torch.equal(model[0].bias, bias) and model[1].bias is None
    assert all(p.dtype == torch.bfloat16 for p in model.parameters())
    assert not model[0].training
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(32, 24))
    convert(model, SineLowRank(1))
    assert all(p.is_meta for p in model.parameters())


@pytest.mark.parametrize("factory", [LowRank(3), SineLowRank(3)])
def test_fit_approximates_the_present_weights(factory):
    model = nn.Sequential(nn.Linear(32, 24), nn.Conv2d(6, 20, 3))
    with torch.no_grad():
        model[0].weight.copy_(torch.randn(24, 3) @ torch.randn(3, 32))
        model[1].weight.copy_((torch.randn(20, 3) @ torch.randn(3, 54)).reshape(20, 6, 3, 3))
    weights = [layer.weight.detach().flatten(1) for layer in model]
    convert(model, factory, init="fit")
    for layer, weight in zip(model, weights, strict=True):
        assert (layer.weight - weight).norm() < 3e-3 * weight.norm()
        assert all(p.requires_grad for p in layer.parameters())
    convert_error = (factory(32, 24).weight - weights[0]).norm() / weights[0].norm()
    assert convert_error > 0.5  # fresh factors know nothing of the weight


def saved_and_loaded(state: dict) -> dict:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def fresh() -> nn.Module:
    model = nn.Sequential(nn.Linear(32, 24), nn.Sequential(nn.Linear(24, 40)))
    convert(model, SineLowRank(3))
    return model


def test_a_fit_travels_in_the_state():
    x, keys = torch.randn(5, 32), list(fresh().state_dict())
    fitted = nn.Sequential(nn.Linear(32, 24), nn.Sequential(nn.Linear(24, 40)))
    convert(fitted, SineLowRank(3), init="fit")
    state = saved_and_loaded(fitted.state_dict())
    added = [f"{layer}.hyper.{name}" for layer in ("0", "1.0") for name in ("frequency", "gain")]
    assert sorted(state) == sorted(keys + added)
    assert all(state[key].dtype == torch.float64 and state[key].shape == () for key in added)

    loaded = fresh()
    loaded.load_state_dict(state)
    assert torch.equal(loaded(x), fitted(x))
    assert loaded[0].factorization == fitted[0].factorization != SineLowRank(3)
    assert sorted(copy.deepcopy(loaded).state_dict()) == sorted(state)  # and once more
    assert sorted(pickle.loads(pickle.dumps(fitted)).state_dict()) == sorted(state)

    # A state that was not fitted returns to the hyperparameters of the construction.
    plain = fresh()
    loaded.load_state_dict(saved_and_loaded(plain.state_dict()))
    assert torch.equal(loaded(x), plain(x))
    assert list(loaded.state_dict()) == keys


def test_loading_names_hyperparameters_that_are_unknown_or_wrong():
    state = fresh().state_dict() | {"0.hyper.gian": torch.tensor(2.0), "1.0.hyper.gain": torch.tensor(2.0)}
    with pytest.raises(RuntimeError, match=r'Unexpected key\(s\) in state_dict: "0\.hyper\.gian"\.'):
        fresh().load_state_dict(state)
    result = fresh().load_state_dict(state, strict=False)
    assert (result.missing_keys, result.unexpected_keys) == ([], ["0.hyper.gian"])
    with pytest.raises(RuntimeError, match=r"0\.hyper: gain must be a positive number, got -1\.0"):
        fresh().load_state_dict(fresh().state_dict() | {"0.hyper.gain": torch.tensor(-1.0)})
    model = fresh()
    model.load_state_dict({"1.0.hyper.gain": torch.tensor(2.0)}, strict=False)  # without its factors
    assert model[1][0].factorization == SineLowRank(3)


def test_shared_layers_stay_shared():
    layer = nn.Linear(32, 32)
    model = nn.ModuleDict({"a": layer, "b": nn.Sequential(layer), "c": nn.Linear(32, 32)})
    result = convert(model, SineLowRank(1))
    assert result.converted == ["a", "b.0", "c"]
    assert model["a"] is model["b"][0] is not model["c"]
    fold(model)
    assert type(model["a"]) is nn.Linear and model["a"] is model["b"][0]


def test_tied_weights_are_left():
    model = nn.ModuleDict({"embedding": nn.Embedding(50, 32), "head": nn.Linear(32, 50), "body": nn.Linear(32, 32)})
    model["head"].weight = model["embedding"].weight
    result = convert(model, SineLowRank(1))
    assert result.converted == ["body"]
    assert result.skipped == {"head": "its weight is shared with another module"}


def test_same_padding_with_a_padding_mode():
    model = nn.Sequential(nn.Conv2d(4, 12, 4, padding="same", padding_mode="circular"))
    convert(model, LowRank(1))
    x = torch.randn(1, 4, 6, 6)
    y = model(x)
    torch.testing.assert_close(fold(model)(x), y, rtol=1e-4, atol=1e-5)
    assert y.shape == (1, 12, 6, 6)


def test_a_budget_with_nothing_to_convert():
    with pytest.raises(ValueError, match="budget"):
        convert(nn.Sequential(nn.LSTM(64, 64)), SineLowRank(2), budget=0.5)


# ------------------------------------------------------------------------------------------- what stays as it was


@pytest.mark.parametrize("init", ["fresh", "fit"])
def test_what_was_frozen_stays_frozen(init: str):
    model = nn.ModuleDict(
        {
            "frozen": nn.Linear(32, 32),
            "bias": nn.Linear(32, 32),  # its bias alone is trained
            "trained": nn.Conv1d(16, 16, 3),
            "attention": nn.MultiheadAttention(32, 2),
        }
    )
    model["frozen"].requires_grad_(False)
    model["bias"].weight.requires_grad_(False)
    model["attention"].requires_grad_(False)
    assert not convert(model, SineLowRank(2), init=init).skipped
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert sorted(trained) == ["bias.bias", "trained.U", "trained.V", "trained.bias"]


def test_weights_that_are_made_of_other_parameters_are_left():
    model = nn.ModuleDict({name: nn.Linear(32, 32) for name in ("normed", "spectral", "pruned", "bias", "good")})
    model["attention"] = nn.MultiheadAttention(32, 2)
    with pytest.warns(FutureWarning):
        nn.utils.weight_norm(model["normed"])
    nn.utils.spectral_norm(model["spectral"])
    prune.l1_unstructured(model["pruned"], "weight", 0.5)
    prune.l1_unstructured(model["bias"], "bias", 0.5)
    prune.l1_unstructured(model["attention"], "in_proj_weight", 0.5)
    before = {name: type(module) for name, module in model.named_modules()}
    result = convert(model, LowRank(2), exclude="*.out_proj")
    assert result.converted == ["good"]
    made = "is made of other parameters and buffers (weight_norm, spectral_norm or prune)"
    assert result.skipped == {
        **dict.fromkeys(("normed", "spectral", "pruned"), f"its weight {made}"),
        "bias": f"its bias {made}",
        "attention.in_proj_weight": f"its in_proj_weight {made}",
    }
    changed = [name for name, module in model.named_modules() if type(module) is not before[name]]
    assert changed == ["good"]


def test_stacks_of_matrices_are_named():
    class Experts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down = nn.Parameter(torch.randn(4, 32, 64)), nn.Parameter(torch.randn(4, 64, 32))
            self.position = nn.Parameter(torch.randn(1, 10, 32))  # one matrix

    model = nn.ModuleDict({"experts": Experts(), "router": nn.Linear(32, 32), "lazy": nn.LazyBatchNorm1d()})
    result = convert(model, Kronecker(1))
    assert result.converted == ["router"]
    assert result.skipped == {"experts": "its stacked matrices (up, down) belong to no linear layer or convolution"}
    assert list(convert(nn.ModuleDict({"made": model["router"], "other": nn.Linear(8, 8)}), LowRank(1)).skipped) == []


def test_one_pattern_needs_no_list():
    def named() -> nn.Module:
        return nn.ModuleDict({"encoder": nn.Linear(32, 32), "decoder": nn.Linear(32, 32), "head": nn.Linear(32, 32)})

    assert convert(named(), LowRank(1), include="*coder", exclude="de*").converted == ["encoder"]
    assert convert(named(), LowRank(1), include=lambda name, m: name > "e").converted == ["encoder", "head"]


def test_a_state_that_does_not_fit_changes_no_layer():
    def budgeted(budget: float) -> nn.Module:
        model = nn.Sequential(nn.Linear(32, 24))
        convert(model, SineLowRank(3), budget=budget)
        return model

    other, model = budgeted(0.9).state_dict(), budgeted(0.5)
    rank = model[0].factorization.rank
    assert int(other["0.hyper.rank"]) > rank
    for broken in (
        {key: value for key, value in other.items() if key != "0.V"},
        other | {"0.V": other["0.V"][:-1]},
        other | {"0.hyper.rank": torch.tensor(2)},
    ):
        with pytest.raises(RuntimeError, match=r"0\.hyper: SineLowRank\(rank=\d+.* has factors U \[24, \d+\], V"):
            model.load_state_dict(broken)
        assert model[0].factorization.rank == rank == model[0].U.shape[1]
    model.load_state_dict(other)
    assert model[0].factorization.rank == int(other["0.hyper.rank"])
