"""lm-evaluation-harness scores an adapter's folder as it scores the merged model's."""

import importlib.util

import pytest
import torch
from bases import write_llama

from .tiny import ALL, learn  # without PEFT it skips this file

# isort: split
from peft import get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from sinelr_lightning.adapters import SineLoraConfig

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("lm_eval") is None, reason="lm_eval is not installed: pip install lm_eval"
)
QUESTIONS = [("the correct answer is", " true"), ("the correct answer is", " false"), ("2 + 2 =", " 4")]


def scores(**model) -> torch.Tensor:
    from lm_eval.api.instance import Instance  # ty: ignore[unresolved-import]
    from lm_eval.models.huggingface import HFLM  # ty: ignore[unresolved-import]

    asked = [Instance("loglikelihood", {}, pair, number) for number, pair in enumerate(QUESTIONS)]
    answers = HFLM(**model, device="cpu", batch_size=2, dtype="float32").loglikelihood(asked, disable_tqdm=True)
    return torch.tensor([score for score, _ in answers])


@pytest.mark.parametrize("dora", [False, True], ids=["", "dora"])
def test_adapter_and_merged_model_score_the_same(dora: bool, tmp_path):
    base = write_llama(tmp_path / "base")
    config = SineLoraConfig(r=3, lora_alpha=6, target_modules=ALL, use_dora=dora, task_type="CAUSAL_LM")
    model = learn(get_peft_model(AutoModelForCausalLM.from_pretrained(base), config))
    model.save_pretrained(tmp_path / "adapter")
    model.merge_and_unload().save_pretrained(tmp_path / "merged")
    AutoTokenizer.from_pretrained(base).save_pretrained(tmp_path / "merged")
    adapted = scores(pretrained=base, peft=str(tmp_path / "adapter"))
    merged = scores(pretrained=str(tmp_path / "merged"))
    torch.testing.assert_close(adapted, merged, rtol=1e-4, atol=1e-4)
    assert (adapted - scores(pretrained=base)).abs().max() > 1e-2
