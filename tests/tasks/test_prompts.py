"""Answers to one prompt, which is read once: the same losses as of whole rows, whatever the model keeps."""

import pytest
import torch

pytest.importorskip("transformers")

import transformers
from transformers import AutoModelForCausalLM

from sinelr_lightning.datamodules.packing import stack_rows
from sinelr_lightning.datamodules.tokenization import UNTRAINED, Sample
from sinelr_lightning.tasks import LanguageTask
from sinelr_lightning.tasks.prompts import answers_after_prompts

BLOCKS = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
GROUPED = {**BLOCKS, "num_key_value_heads": 2}
GO_ON = {
    "LlamaConfig": BLOCKS,
    "GPT2Config": {"n_embd": 32, "n_layer": 2, "n_head": 4},
    "MistralConfig": {**GROUPED, "sliding_window": 5},
    "Gemma2Config": {**GROUPED, "head_dim": 8, "sliding_window": 5},
}
LONG = {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [2.0] * 4, "factor": 2.0}
STAY_WHOLE = {
    "MambaConfig": {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 4},  # a state would read the padding
    "BartConfig": {"d_model": 32, "decoder_layers": 2, "decoder_attention_heads": 4, "decoder_ffn_dim": 48},
    "Phi3Config": {**BLOCKS, "rope_parameters": LONG, "original_max_position_embeddings": 10},
}


def model(kind):
    torch.manual_seed(0)
    config = getattr(transformers, kind)(vocab_size=64, pad_token_id=0, **(GO_ON | STAY_WHOLE)[kind])
    made = AutoModelForCausalLM.from_config(config).eval()
    for parameter in made.parameters():
        parameter.data *= 8 if parameter.ndim == 2 else 1  # so that a wrong position changes the losses
    return made


class Scored(LanguageTask):
    """The losses of any model, without a base to load."""

    def __init__(self, network):
        torch.nn.Module.__init__(self)
        self.network = network


def question(number, prompt, answers):
    """Rows of a prompt with each of its answers; tokens are drawn by `number`."""
    generator = torch.Generator().manual_seed(number)
    asked = torch.randint(1, 64, (prompt,), generator=generator)
    for length in answers:
        ids = torch.cat([asked, torch.randint(1, 64, (length,), generator=generator)]).int()
        labels = ids.clone()
        labels[:prompt] = UNTRAINED
        yield Sample("here", ids.numpy(), labels.numpy())


def batch(*questions):
    rows = [(number, sample) for number, asked in enumerate(questions) for sample in question(number, *asked)]
    return {
        **stack_rows([[sample] for _, sample in rows], pad=0),
        "indices": torch.tensor([number for number, _ in rows]),
    }


@torch.no_grad()
@pytest.mark.parametrize("kind", GO_ON)
def test_what_follows_a_prompt_that_is_read_once_has_the_losses_of_whole_rows(kind):
    task = Scored(model(kind))
    whole = batch((9, (2, 4, 1)), (4, (1, 3)), (12, (5, 5, 2, 1)), (6, (3,)))
    rest, prompts = answers_after_prompts(task.network, whole)
    assert rest["input_ids"].shape == (10, 6) and prompts["attention_mask"].shape == (10, 11 + 6)
    torch.testing.assert_close(task(rest, prompts)[0], task(whole)[0], rtol=0, atol=1e-4)


@torch.no_grad()
def test_answers_that_begin_alike_are_told_apart():
    task, whole = Scored(model("LlamaConfig")), batch((5, (3, 3, 3)))
    whole["input_ids"][:, 5:7] = whole["input_ids"][0, 5:7]
    whole["labels"][:, 5:7] = whole["input_ids"][0, 5:7]
    rest, prompts = answers_after_prompts(task.network, whole)
    assert (rest["labels"] != UNTRAINED).sum(1).tolist() == [3, 3, 3]
    torch.testing.assert_close(task(rest, prompts)[0], task(whole)[0], rtol=0, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize(
    ("kind", "questions"),
    [
        *((kind, [(9, (2, 4))]) for kind in STAY_WHOLE),
        ("LlamaConfig", [(9, (2,)), (5, (3,))]),
        ("LlamaConfig", [(9, (2, 2)), (1, (3, 3))]),
    ],
)
def test_rows_stay_whole_where_no_prompt_can_be_shared(kind, questions):
    whole = batch(*questions)
    rest, prompts = answers_after_prompts(model(kind), whole)
    assert rest is whole and prompts == {}
