"""Language models from scratch: bytes, what is converted, that it learns, comes back and writes; mistakes."""

import math

import pytest
import torch
from command_line import fit
from toy import quiet_trainer

pytest.importorskip("transformers")

from sinelr_lightning.cli import main
from sinelr_lightning.datamodules import LanguageData
from sinelr_lightning.errors import UserError
from sinelr_lightning.layers import Dense, FactorizedLinear, SineLowRank, SparseLowRank
from sinelr_lightning.tasks import PretrainingTask
from sinelr_lightning.tasks.pretrained import byte_tokenizer

SMALL = {"width": 32, "depth": 1, "heads": 2, "context": 64}
ADAM = lambda parameters: torch.optim.AdamW(parameters, lr=2e-2)  # noqa: E731


def text(folder):
    """A folder with ten pages of sums."""
    for page in range(10):
        lines = [f"{n} and {n} make {2 * n}; ä → ü.\n" for n in range(40 * page, 40 * page + 40)]
        (folder / f"sums{page}.txt").write_text("".join(lines))
    return str(folder)


def data(path, **options):
    return LanguageData(path, **{"max_length": 64, "batch_size": 8, "epoch_steps": 80, **options})


def test_a_token_is_a_byte():
    tokenizer = byte_tokenizer()
    written = "naïve → “x”\n\t\x00 e\u0301 🙂"
    ids = tokenizer(written, add_special_tokens=False)["input_ids"]
    assert len(ids) == len(written.encode()) and tokenizer.decode(ids) == written
    assert len(tokenizer) == 258 and {tokenizer.eos_token_id, tokenizer.pad_token_id} == {256, 257}


@pytest.mark.parametrize("linear", [SineLowRank(4), SparseLowRank(2, density=0.05), Dense()], ids=str)
def test_it_learns_the_text(linear, tmp_path):
    torch.manual_seed(0)
    task = PretrainingTask(linear, optimizer=ADAM, **SMALL)
    factorized = [module for module in task.modules() if isinstance(module, FactorizedLinear)]
    assert len(factorized) == (0 if isinstance(linear, Dense) else 7)
    trainer = quiet_trainer(tmp_path, max_steps=80, num_sanity_val_steps=0)
    trainer.fit(task, data(text(tmp_path)))
    figures = trainer.callback_metrics
    # Counted letter by letter the text has 3.9 bits a byte.
    assert figures["val/bits"] < 3.5 and figures["val/bits"] == pytest.approx(
        figures["val/loss"].item() / math.log(2)
    )
    trainer.save_checkpoint(tmp_path / "run.ckpt")
    back = PretrainingTask.load_from_checkpoint(tmp_path / "run.ckpt", weights_only=True)
    again = quiet_trainer(tmp_path).test(back, data(text(tmp_path)), verbose=False)[0]
    assert again["test/loss"] == pytest.approx(figures["val/loss"].item(), rel=1e-5)


def test_the_form_of_questions_comes_back(tmp_path):
    path = tmp_path / "sums.jsonl"
    path.write_text("".join(f'{{"instruction": "add {n}", "output": "{n}"}}\n' for n in range(20)))
    task = PretrainingTask(SineLowRank(2), width=32, depth=1, heads=2, context=256)
    trainer = quiet_trainer(tmp_path, max_steps=1, num_sanity_val_steps=0)
    trainer.fit(task, data(str(path), max_length=256))
    trainer.save_checkpoint(tmp_path / "run.ckpt")
    back = PretrainingTask.load_from_checkpoint(tmp_path / "run.ckpt", weights_only=True)
    assert task.form == "alpaca" and torch.equal(back.prompt("add 3"), task.prompt("add 3"))


def test_by_the_command_line_it_trains_and_writes(tmp_path, capsys):
    config = tmp_path / "small.yaml"
    (tmp_path / "pages").mkdir()
    pages = text(tmp_path / "pages")
    config.write_text(
        "trainer: {accelerator: cpu, max_steps: 3, logger: false, num_sanity_val_steps: 0}\n"
        "model: {class_path: PretrainingTask, init_args: {width: 32, depth: 1, heads: 2, context: 64, "
        "linear: {class_path: SineLowRank, init_args: {rank: 2}}}}\n"
        f"data: {{class_path: LanguageData, init_args: {{train: {pages}, max_length: 64, epoch_steps: 3}}}}\n"
    )
    assert fit(config, tmp_path, "run") == 0
    ask = ["generate", "--ckpt_path", f"{tmp_path}/run", "--prompt", "3 and", "--max_new_tokens", "200"]
    capsys.readouterr()
    assert main(ask) == 0 and capsys.readouterr().out
    assert main([*ask, "--adapter", "false"]) == 2
    assert "a PretrainingTask has no adapter to do without" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 0}, r"model\.width must be at least 1"),
        ({"width": 30, "heads": 4}, r"multiple of 2·heads = 8, got 30"),
        ({"context": 1}, r"model\.context must be at least 2"),
    ],
    ids=["width", "heads", "context"],
)
def test_mistakes_are_named(options, message):
    with pytest.raises(UserError, match=message):
        PretrainingTask(**{**SMALL, **options})


def test_rows_must_fit_the_context(tmp_path):
    with pytest.raises(UserError, match=r"a sample has 80 tokens, the model reads 64: lower data\.max_length"):
        quiet_trainer(tmp_path).fit(PretrainingTask(**SMALL), data(text(tmp_path), max_length=80))
