"""Every family of factorizations as an adapter: starts at the base, learns, is saved, loaded and merged."""

import copy

import pytest
import torch
from layers.families import PACKAGE_FAMILIES

from .tiny import WIDTH  # without PEFT it skips this file

# isort: split
from peft import PeftModel, get_peft_model
from torch import nn

from sinelr_lightning.adapters import FactorizedLoraConfig


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(2 * WIDTH, 3 * WIDTH), nn.Linear(3 * WIDTH, WIDTH)

    def forward(self, x):
        return self.second(self.first(x).tanh())


@pytest.mark.parametrize("dora", [False, True], ids=["", "dora"])
@pytest.mark.parametrize("family", PACKAGE_FAMILIES, ids=lambda f: f.__name__)
def test_any_family(family, dora: bool, tmp_path):
    torch.manual_seed(0)
    base, x, target = Two(), torch.randn(16, 2 * WIDTH), torch.randn(16, WIDTH)
    config = FactorizedLoraConfig(
        factorization=family.__name__, r=2, lora_alpha=4, target_modules=["first", "second"], use_dora=dora
    )
    model = get_peft_model(copy.deepcopy(base), config)
    torch.testing.assert_close(model(x), base(x))
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    losses = []
    for _ in range(60):
        loss = (model(x) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.95 * losses[0]
    trained = model(x)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(copy.deepcopy(base), tmp_path)
    assert torch.equal(loaded(x), trained)
    torch.testing.assert_close(loaded.merge_and_unload()(x), trained, rtol=1e-4, atol=1e-5)


def test_refuses_a_start_that_no_training_would_leave():
    with pytest.raises(ValueError, match="relu has no slope at 0"):
        FactorizedLoraConfig(factorization="ActivatedLowRank", factorization_args={"activation": "relu"})
    FactorizedLoraConfig(
        factorization="ActivatedLowRank", factorization_args={"activation": "relu"}, init_lora_weights=False
    )
