"""Language models through the command line: stopping and going on, sharding, generation, export, mistakes."""

import io
import json
import os
import subprocess
import sys
import time

import pytest
import torch
import yaml
from bases import write_llama
from command_line import fit, stored

pytest.importorskip("peft")

from sinelr_lightning.cli import main
from sinelr_lightning.runs import load_task, resolve_checkpoint

SHARDED = {
    "class_path": "ModelParallelStrategy",
    "init_args": {"data_parallel_size": 2, "tensor_parallel_size": 1, "save_distributed_checkpoint": False},
}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return write_llama(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def config(base, tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli")
    lines = [{"instruction": f"Name {n}", "output": "the correct answer is " + ["true", "false"][n % 2]}
             for n in range(30)]  # fmt: skip
    for line in lines[::3]:
        line["choices"] = ["the correct answer is true", "the correct answer is false"]
        line["answer"] = line["output"]
    (folder / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    settings = {
        "trainer": {"accelerator": "cpu", "max_steps": 8, "num_sanity_val_steps": 0, "logger": False},
        "model": {
            "class_path": "LanguageTask",
            "init_args": {
                "base": base,
                "adapter": {"class_path": "SineLowRank", "init_args": {"rank": 2}},
                "optimizer": {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.1, "momentum": 0.9}},
            },
        },
        "data": {
            "class_path": "LanguageData",
            "init_args": {
                "train": str(folder / "train.jsonl"), "max_length": 64, "batch_size": 4, "epoch_steps": 8,
                "validation_share": 1 / 6,  # five samples: one process has a batch more to evaluate than the other
            },
        },
    }  # fmt: skip
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


def same_weights(one, other, tolerance):
    assert stored(one)["state_dict"].keys() == stored(other)["state_dict"].keys()
    for name, value in stored(one)["state_dict"].items():
        torch.testing.assert_close(stored(other)["state_dict"][name], value, rtol=0, atol=tolerance)


@pytest.fixture(scope="module")
def run(config, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    assert fit(config, folder, "whole") == 0
    return folder / "whole" / "version_0"


def test_two_processes_that_share_the_weights_equal_one(config, run, tmp_path):
    command = [sys.executable, "-m", "sinelr_lightning", "fit", "--config", str(config), f"--runs_dir={tmp_path}"]
    command += ["--name=two", "--trainer.devices=2", f"--trainer.strategy={json.dumps(SHARDED)}"]
    subprocess.run(command, check=True, timeout=200, env={**os.environ, "OMP_NUM_THREADS": "1"})
    same_weights(run, tmp_path / "two" / "version_0", 1e-4)


def test_killed_in_mid_epoch_it_goes_on_to_the_same_weights(config, run, tmp_path):
    # The last state is saved every 0 minutes, so after each step.
    saver = {"class_path": "sinelr_lightning.callbacks.Checkpoint", "init_args": {"every_minutes": 0}}
    always = f"--trainer.callbacks={json.dumps([saver])}"
    dropping = "--model.dropout=0.2"  # whose draws must come back
    assert fit(config, tmp_path, "whole", dropping) == 0
    command = [sys.executable, "-m", "sinelr_lightning", "fit", "--config", str(config), f"--runs_dir={tmp_path}"]
    process = subprocess.Popen([*command, "--name=killed", always, dropping], stderr=subprocess.DEVNULL)
    last = tmp_path / "killed" / "version_0" / "checkpoints" / "last.ckpt"
    for _ in range(1000):
        if last.is_file() or process.poll() is not None:
            break
        time.sleep(0.05)
    process.kill()
    process.wait()
    step = torch.load(last, weights_only=True)["global_step"]
    assert step < 8, "it ended before it was killed"
    assert fit(config, tmp_path, "killed", f"--ckpt_path={tmp_path}/killed") == 0
    same_weights(tmp_path / "whole" / "version_0", tmp_path / "killed" / "version_0", 1e-7)
    with pytest.raises(AssertionError):
        same_weights(run, tmp_path / "whole" / "version_0", 1e-7)


# -- what is made of a run -----------------------------------------------------------------------------------------
def test_text_is_generated_by_the_adapter(run, capsys):
    ask = ["generate", "--ckpt_path", str(run), "--prompt", "Name 7", "--max_new_tokens", "12"]
    texts = []
    for options in ([], [], ["--adapter", "false"], ["--temperature", "5", "--seed", "1"]):
        assert main([*ask, *options]) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] and texts[0] == texts[1] and len({texts[0], *texts[2:]}) == 3


def test_it_is_drawn_from_all_tokens(run, monkeypatch):
    from transformers import LlamaForCausalLM

    seen = []
    monkeypatch.setattr(
        LlamaForCausalLM, "generate", lambda *_, generation_config, **__: seen.append(generation_config)
    )
    for temperature in ("0", "0.7"):
        assert main(["generate", "--ckpt_path", str(run), "--prompt", "a", "--temperature", temperature]) == 0
    greedy, drawn = seen
    assert (greedy.do_sample, greedy.top_k) == (False, None)
    assert (drawn.do_sample, drawn.temperature, drawn.top_p, drawn.top_k) == (True, 0.7, 1.0, 0)


class Stdout(io.TextIOWrapper):
    """An output of ASCII; one of nobody, whose file is `spare`, if that is given."""

    def __init__(self, spare=None):
        super().__init__(io.BytesIO(), encoding="ascii")
        self.spare = spare

    def write(self, text):
        if self.spare:
            raise BrokenPipeError(32, "Broken pipe")
        return super().write(text)

    def fileno(self):
        return self.spare.fileno()


def test_an_output_that_ends_early_or_cannot_be_written(run, tmp_path, capsys, monkeypatch):
    ask = ["generate", "--ckpt_path", str(run), "--prompt", "Name 7", "--temperature", "5"]
    with (tmp_path / "spare").open("w") as spare, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", Stdout(spare))
        assert main(ask) == 0
        assert os.path.samestat(os.fstat(spare.fileno()), os.stat(os.devnull))
    assert "Traceback" not in capsys.readouterr().err
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", Stdout())
        assert main(ask) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "error: the output's encoding, ascii, cannot write '" in error and "set PYTHONIOENCODING=utf-8" in error


def test_every_end_of_an_answer_stops_it(run):
    task = load_task(resolve_checkpoint(str(run)))
    closing = task.tokenizer.convert_tokens_to_ids("<|im_end|>")
    task.tokenizer.eos_token, task.network.generation_config.eos_token_id = "!", [5, 7]
    assert task.end_tokens() == sorted({task.tokenizer.convert_tokens_to_ids("!"), 5, 7, closing})


@pytest.mark.parametrize("form", ["adapter", "merged", "lora"])
def test_an_export_answers_as_the_run_does(run, tmp_path, capsys, form):
    out = tmp_path / form
    options = ["--rank=31"] if form == "lora" else []
    for _ in range(2):  # the second one replaces the first
        assert main(["export", "--ckpt_path", str(run), "--format", form, "--out", str(out), *options]) == 0
        assert "differ from the trained ones by at most" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == [form], "nothing is left beside it"
    assert (out / ("config.json" if form == "merged" else "adapter_config.json")).is_file()
    if form != "merged":
        kind = json.loads((out / "adapter_config.json").read_text())["peft_type"]
        assert kind == {"adapter": "SINELORA", "lora": "LORA"}[form]


def test_a_plain_lora_that_keeps_too_little_is_refused(run, tmp_path, capsys):
    out = tmp_path / "lora"
    arguments = ["export", "--ckpt_path", str(run), "--format=lora", "--out", str(out), "--rank=1", "--energy=0.9999"]
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert "a plain LoRA of rank 1 keeps" in error and "less than --energy 0.9999" in error
    assert not list(tmp_path.iterdir())


def test_an_adapter_that_changes_nothing_is_refused(config, tmp_path, capsys):
    assert fit(config, tmp_path, "idle", "--trainer.max_steps=1", "--model.optimizer.lr=1e-30") == 0
    assert main(["export", "--ckpt_path", f"{tmp_path}/idle", "--format=merged", "--out", str(tmp_path / "out")]) == 2
    assert "the adapter changes nothing: the logits are those of the base model" in capsys.readouterr().err


def test_a_folder_of_the_users_is_not_replaced(run, tmp_path, capsys):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("words")
    assert main(["export", "--ckpt_path", str(run), "--format=adapter", "--out", str(tmp_path / "mine")]) == 2
    assert "exists and is no earlier export: name another folder" in capsys.readouterr().err
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "words"


def test_a_full_disk_leaves_the_old_adapter(run, tmp_path, capsys, monkeypatch):
    out = tmp_path / "adapter"
    arguments = ["export", "--ckpt_path", str(run), "--format=adapter", "--out", str(out)]
    assert main(arguments) == 0
    before = {path.name: path.read_bytes() for path in out.iterdir()}

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("peft.PeftModel.save_pretrained", full)
    capsys.readouterr()
    assert main(arguments) == 2
    assert "cannot be written: No space left on device" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before and len(list(tmp_path.iterdir())) == 1


# -- mistakes ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["export", "--ckpt_path", "RUN"], "a LanguageTask is written with --format adapter, merged or lora"),
        (["export", "--ckpt_path", "RUN", "--format", "lora", "--rank", "0"], "rank must be at least 1, got 0"),
        (["generate", "--ckpt_path", "RUN", "--prompt", " "], "the prompt is empty"),
        (["generate", "--ckpt_path", "RUN", "--prompt", "a", "--top_p", "0"], "top_p must be above 0"),
        (
            ["generate", "--ckpt_path", "RUN", "--prompt", "a", "--seed", str(2**64)],
            "seed must be a whole number from",
        ),
        (["generate", "--ckpt_path", "RUN", "--prompt", "a" * 4000], "tokens, the model reads 256"),
        (["fit", "--config", "CONFIG", "--model.adapter", "Dense"], "model.adapter Dense is no factorization"),
        (["fit", "--config", "CONFIG", "--model.adapter.frequency", "0"], "frequency must be a positive number"),
        (["fit", "--config", "CONFIG", "--model.targets", "[q_prj]"], "near it are q_proj"),
        (["fit", "--config", "CONFIG", "--data.max_length", "8"], "train.jsonl:1"),
        (["fit", "--ckpt_path", "RUN", "--model.adapter.rank", "3"], "the checkpoint is of another architecture"),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value[:1] + value[-2:])[:40],
)
def test_a_mistake_is_one_line(config, run, tmp_path, capsys, arguments, message):
    places = {"RUN": str(run), "CONFIG": str(config)}
    fits = [f"--runs_dir={tmp_path}"] if arguments[0] == "fit" else []
    assert main([*(places.get(argument, argument) for argument in arguments), *fits]) == 2
    error = capsys.readouterr().err
    assert message in error.splitlines()[-1] and "Traceback" not in error
