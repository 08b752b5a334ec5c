"""What is kept and what is not: the weight in evaluation, matrices between forward and backward, checkpoints."""

import copy
import pickle

import pytest
import torch
from layers.test_adapted import Watch

from .kinds import CONVOLUTIONS, every_kind, make, with_and_without_dora
from .tiny import away, llama, logits, plain, sine  # without PEFT it skips this file

# isort: split
from peft import PeftModel, get_peft_model
from peft.utils.hotswap import hotswap_adapter

from sinelr_lightning.adapters.layers import FactorizedLoraLayer

# The kinds that keep a whole weight: an embedding forms the rows that are looked up.
kept_kinds = pytest.mark.parametrize("kind", ["linear", "transposed", *CONVOLUTIONS])


@pytest.fixture
def formed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Grows with each time that a whole weight is formed in evaluation."""
    calls, exact = [], FactorizedLoraLayer.exact
    monkeypatch.setattr(FactorizedLoraLayer, "exact", lambda self, name: calls.append(name) or exact(self, name))
    return calls


@kept_kinds
@with_and_without_dora
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_formed_once_in_evaluation(kind: str, dora: bool, mode, formed: list[str]):
    made = make(kind, use_dora=dora)
    expected = made.expected()
    with mode():
        for _ in range(3):
            assert away(made.model(made.x), expected) < 5e-6
    assert len(formed) == 1
    with torch.no_grad():  # what inference mode kept serves here as well
        assert away(made.model(made.x), expected) < 5e-6
    assert len(formed) == 1
    made.model(made.x).sum().backward()  # with gradients it is not taken
    assert all(p.grad is not None for p in made.trained().values())


def _step(made) -> None:
    made.model(made.x).pow(2).sum().backward()
    torch.optim.SGD(made.trained().values(), 1e-4).step()


def _load(made) -> None:
    made.model.load_state_dict({key: value * 1.5 for key, value in made.model.state_dict().items()})
    made.base.weight.data.mul_(1.5)
    if made.base.bias is not None:
        made.base.bias.data.mul_(1.5)


def _magnitude(made) -> None:
    with torch.no_grad():
        made.layer.lora_magnitude_vector["default"].weight.mul_(1.5)


def _base(made) -> None:
    with torch.no_grad():
        made.layer.base_layer.weight.mul_(2)
        made.base.weight.mul_(2)


def _merge(made) -> None:
    made.model.merge_adapter()
    with torch.no_grad():
        made.model(made.x)
    made.model.unmerge_adapter()


def _scale(made) -> None:
    made.layer.set_scale("default", 2.0)
    made.config.lora_alpha *= 2


def _train(made) -> None:
    made.model.train()
    for p in made.trained().values():
        p.data.mul_(1.5)  # a change that leaves no trace at the tensor
    made.model.eval()


def _replace(made) -> None:
    for p in made.trained().values():
        p.data = p.data * 1.5


def _state(made) -> None:
    for name, value in made.model.state_dict().items():
        if "lora_" in name:
            value.data.mul_(1.5)


CHANGES = [_step, _load, _base, _merge, _scale, _train, _replace, _state]


@kept_kinds
@with_and_without_dora
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__.strip("_"))
def test_formed_again_after_a_change(kind: str, dora: bool, change):
    made = make(kind, use_dora=dora)
    with torch.no_grad():
        before = made.model(made.x)
    change(made)
    with torch.no_grad():
        assert away(made.model(made.x), made.expected()) < 2e-5
    assert change is _merge or away(made.expected(), before) > 1e-2


@kept_kinds
def test_formed_again_after_a_change_of_the_magnitude(kind: str):
    test_formed_again_after_a_change(kind, True, _magnitude)


def test_one_weight_for_each_type():
    made = make("linear")
    with torch.no_grad():
        with torch.autocast("cpu", torch.bfloat16):
            low = made.model(made.x)
        y = made.model(made.x)
        assert (y.dtype, low.dtype) == (torch.float32, torch.bfloat16)
        assert 1e-4 < away(low, y) < 0.1
        assert away(made.model(made.x), y) == 0


def test_another_adapter_is_not_served_the_weight_of_the_first():
    model = get_peft_model(llama(), sine())
    model.add_adapter("other", sine(frequency=10.0))
    model.eval()
    first = logits(model)
    model.set_adapter("other")
    other = logits(model)
    model.set_adapter("default")
    assert away(first, other) > 1e-2
    assert away(logits(model), first) == 0


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["copy", "pickle"])
def test_a_copy_keeps_nothing_and_computes_the_same(copied):
    made = make("linear")
    with torch.no_grad():
        y = made.model(made.x)
        assert made.layer._kept is not None
        again = copied(made.model)
        assert again.base_model.model[0]._kept is None
        assert away(again(made.x), y) == 0
        for p in made.trained().values():
            p.mul_(2)
        assert away(again(made.x), y) == 0
    assert set(again.state_dict()) == set(made.model.state_dict())


def test_hotswapped_weights_are_served(tmp_path):
    for name in ("one", "two"):
        torch.manual_seed(len(name) + ord(name[0]))
        get_peft_model(llama(), sine()).save_pretrained(tmp_path / name)
    expected = [logits(PeftModel.from_pretrained(llama(), tmp_path / name)) for name in ("one", "two")]
    model = PeftModel.from_pretrained(llama(), tmp_path / "one")
    assert away(logits(model), expected[0]) == 0
    hotswap_adapter(model, tmp_path / "two", "default", torch_device="cpu")
    assert away(logits(model), expected[1]) == 0
    assert away(*expected) > 1e-2


# --------------------------------------------------------------------------------------- between forward and backward


@every_kind
@with_and_without_dora
def test_no_matrix_is_kept_for_backward(kind: str, dora: bool):
    made = make(kind, use_dora=dora)
    base = made.layer.base_layer.weight
    x = made.x[:1] if made.x.dim() > 1 else made.x
    if kind == "embedding":
        x = x[:, :2]  # two rows of fourteen
    small = base.numel() * 0.9
    assert x.numel() < small or kind.startswith("conv")
    with Watch(small) as watch:
        y = made.model.train()(x)
    assert y.grad_fn is not None
    assert watch.made or kind == "embedding"  # the count sees the matrix that was formed
    inputs = {x.untyped_storage()._cdata, y.untyped_storage()._cdata}
    alive = {ref.cdata for ref in watch.made if not ref.expired()} - {base.untyped_storage()._cdata} - inputs
    assert not alive


@pytest.mark.parametrize("reentrant", [False, True], ids=["", "reentrant"])
@pytest.mark.parametrize("changes", [{}, {"use_dora": True}, {"lora_dropout": 0.3}], ids=str)
def test_gradient_checkpointing(reentrant: bool, changes):
    ids = torch.arange(12).reshape(2, 6)

    def gradients(checkpointing: bool) -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        model = get_peft_model(llama(), sine(**changes)).train()
        if checkpointing:
            model.enable_input_require_grads()
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
            assert model.base_model.model.model.gradient_checkpointing
        torch.manual_seed(1)
        model(input_ids=ids, labels=ids).loss.backward()
        return {name: p.grad for name, p in model.named_parameters() if p.requires_grad}

    ours, expected = gradients(True), gradients(False)
    assert len(ours) == 2 * 7 * (3 if changes.get("use_dora") else 2)
    for name, value in expected.items():
        assert away(ours[name], value) < 1e-5


@pytest.mark.parametrize("other", [plain, sine], ids=["plain", "sine"])
def test_several_active_adapters_add_up(other):
    # W₀ + ΔW₁ + ΔW₂: two products more, the same as both merged.
    model = get_peft_model(llama(), sine())
    model.add_adapter("other", other())
    model.eval()
    first = logits(model)
    model.base_model.set_adapter(["default", "other"])
    both = logits(model)
    assert away(both, first) > 1e-2
    model.merge_adapter()
    assert away(logits(model), both) < 2e-5
    model.unmerge_adapter()
    assert away(logits(model), both) < 2e-5
