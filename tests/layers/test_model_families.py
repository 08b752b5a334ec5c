"""`convert` on a model of every family: it runs, learns, is stored, folded, compiled and exported."""

import copy
from fnmatch import fnmatch

import pytest
import torch
from torch import Tensor, nn

from sinelr_lightning.layers import (
    Conversion,
    FactorizedLayer,
    LowRank,
    SineLowRank,
    cached_weights,
    convert,
    fold,
)

from .zoo import ZOO, Family, run

# What stays as it was, by a pattern over the names, with a word of the reason; all else is converted.
LEFT = {
    "ConvNeXt": {"*.block.0": "grouped"},
    "DiT": {"step": "not below"},
    "U-Net": {"up": "ConvTranspose2d uses its weights in ways of its own"},
    "LSTM": {"memory": "LSTM uses its weights in ways of its own"},
    "BERT": {"classifier": "not below"},
    "GPT-2": {"lm_head": "shared"},
    "Mixtral": {"*.experts": "its stacked matrices"},
    "T5": {"lm_head": "shared"},
    "Whisper": {"proj_out": "shared"},
    "wav2vec 2.0": {"*.pos_conv_embed.conv": "in ways of its own"},
}
RANK = 2


@pytest.fixture(params=ZOO)
def name(request: pytest.FixtureRequest) -> str:
    pytest.importorskip(ZOO[request.param].package)
    return request.param


@pytest.fixture
def family(name: str) -> Family:
    return ZOO[name]


def converted(family: Family) -> tuple[nn.Module, Conversion]:
    torch.manual_seed(0)
    model = family.make().eval()
    told = convert(model, SineLowRank(RANK))
    return model, told


def test_what_is_converted_and_what_is_left(name: str, family: Family):
    dense, (model, told) = family.make(), converted(family)
    expected = LEFT.get(name, {})
    assert all(any(fnmatch(left, pattern) for pattern in expected) for left in told.skipped)
    for pattern, reason in expected.items():
        reasons = [told.skipped[left] for left in told.skipped if fnmatch(left, pattern)]
        assert reasons and all(reason in one for one in reasons)
    factorized = [module for module in model.modules() if isinstance(module, FactorizedLayer)]
    assert len(told.converted) > 0 and len(factorized) >= len(told.converted)
    parameters = [sum(p.numel() for p in one.parameters()) for one in (model, dense)]
    assert parameters[0] < parameters[1]


def test_every_factor_gets_a_gradient(family: Family):
    model, _ = converted(family)
    run(family, model.train()).square().sum().backward()
    factors = {name: p for name, p in model.named_parameters() if name.rpartition(".")[2] in ("U", "V")}
    assert factors and all(p.grad is not None and p.grad.isfinite().all() for p in factors.values())
    dead = [name for name, p in factors.items() if not p.grad.any()]
    assert not dead


@torch.no_grad()
def test_stored_folded_and_copied_it_answers_alike(family: Family, tmp_path):
    model, _ = converted(family)
    answer = run(family, model)
    torch.save(model.state_dict(), tmp_path / "state.pt")
    other = family.make().eval()
    convert(other, SineLowRank(RANK))
    assert not torch.allclose(run(family, other), answer)
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert torch.equal(run(family, other), answer)
    folded = fold(copy.deepcopy(model))
    assert not any(isinstance(module, FactorizedLayer) for module in folded.modules())
    torch.testing.assert_close(run(family, folded), answer, rtol=1e-3, atol=1e-4)
    with cached_weights(model):
        torch.testing.assert_close(run(family, model), answer, rtol=1e-3, atol=1e-4)


@torch.no_grad()
def test_a_fit_takes_what_the_rank_allows(family: Family):
    torch.manual_seed(0)
    model = family.make().eval()
    told = convert(model, LowRank(RANK), init="fit")
    assert told.fits.keys() >= {name for name in told.converted if "in_proj" not in name}
    assert all(fit.weight_error < 1 and fit.weight_error <= fit.svd_weight_error + 1e-4 for fit in told.fits.values())
    assert run(family, model).isfinite().all()


@torch.no_grad()
def test_it_is_exported(name: str, family: Family):
    model, _ = converted(family)
    whole = Whole(model, family)
    try:
        torch.export.export(Whole(family.make().eval(), family), (torch.zeros(1),))
    except Exception:  # noqa: BLE001 (whatever the exporter has against the model, the sine is not it)
        pytest.skip(f"torch.export does not take {name} with dense weights either")
    program = torch.export.export(whole, (torch.zeros(1),)).module()
    torch.testing.assert_close(program(torch.zeros(1)), whole(torch.zeros(1)), rtol=1e-3, atol=1e-4)


class Whole(nn.Module):
    """The model as a function of one tensor, which is added to its answer."""

    def __init__(self, model: nn.Module, family: Family) -> None:
        super().__init__()
        self.model, self.family, self.inputs = model, family, family.inputs()

    def forward(self, x: Tensor) -> Tensor:
        return run(self.family, self.model, self.inputs) + x


@pytest.mark.parametrize("name", ["ViT", "GPT-2"])
def test_it_is_compiled(name: str):
    pytest.importorskip(ZOO[name].package)
    family = ZOO[name]
    model, _ = converted(family)
    explained = torch._dynamo.explain(Whole(model, family))(torch.zeros(1))
    dense = torch._dynamo.explain(Whole(family.make().eval(), family))(torch.zeros(1))
    assert explained.graph_break_count <= dense.graph_break_count
