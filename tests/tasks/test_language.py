"""The tasks on language models: what is trained, scored, stored and refused, on tiny random models."""

import json
import math

import pytest
import torch
from bases import write_bert, write_llama
from lightning.pytorch.callbacks import ModelCheckpoint
from toy import quiet_trainer

pytest.importorskip("peft")
pytest.importorskip("transformers")

from sinelr_lightning.callbacks import EMA
from sinelr_lightning.datamodules import LanguageData, SentenceData
from sinelr_lightning.errors import UserError
from sinelr_lightning.layers import Dense, LowRank, SineLowRank, parameter_groups
from sinelr_lightning.tasks import LanguageTask, SentenceTask
from sinelr_lightning.tasks.causal import _correct
from sinelr_lightning.tasks.segments import needs_mask

ADAM = lambda parameters: torch.optim.AdamW(parameters, lr=1e-2)  # noqa: E731
SINE = SineLowRank(rank=2)
QUESTIONS = [
    {"instruction": f"Is {number} even?\n\nAnswer format: true/false", "output": f"the correct answer is {answer}",
     "answer": answer}
    for number, answer in ((n, "true" if n % 2 == 0 else "false") for n in range(24))
]  # fmt: skip


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return write_llama(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    return write_bert(tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="module")
def questions(tmp_path_factory):
    path = tmp_path_factory.mktemp("questions") / "even.json"
    path.write_text(json.dumps(QUESTIONS))
    return str(path)


def data(path=None, **options):
    return LanguageData(path, **{"max_length": 96, "batch_size": 4, "epoch_steps": 5, **options})


def trained(task, datamodule, folder, **options):
    trainer = quiet_trainer(folder, **{"max_steps": 5, "num_sanity_val_steps": 0, **options})
    trainer.fit(task, datamodule)
    return trainer


def weights(task):
    return {name: parameter.detach().clone() for name, parameter in task.named_parameters()}


# -- training ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("adapter", [SINE, LowRank(rank=2)], ids=["sine", "lora"])
def test_the_adapter_alone_is_trained(llama, questions, tmp_path, adapter):
    task = LanguageTask(base=llama, adapter=adapter, optimizer=ADAM)
    before = weights(task)
    trainer = trained(task, data(questions), tmp_path)
    changed = {name for name, value in weights(task).items() if not torch.equal(value, before[name])}
    assert changed and all(".lora_" in name for name in changed)
    assert changed == {name for name, parameter in task.named_parameters() if parameter.requires_grad}
    assert all(parameter.grad is None for name, parameter in task.named_parameters() if name not in changed)
    assert trainer.callback_metrics["val/loss"] < math.log(len(task.tokenizer)), "better than a guess"


def test_it_starts_as_the_base_model(llama):
    task = LanguageTask(base=llama).eval()
    tokens = torch.arange(20)[None]
    with torch.no_grad():
        ours = task.network(input_ids=tokens).logits
        with task.network.disable_adapter():
            torch.testing.assert_close(ours, task.network(input_ids=tokens).logits)


def test_the_loss_is_that_of_transformers(llama, questions):
    task, samples = LanguageTask(base=llama).eval(), data(questions, packing=False, batch_size=1)
    samples.setup("fit")
    samples.use_tokenizer(task.tokenizer)
    batch = next(iter(samples.train_dataloader()))
    with torch.no_grad():
        expected = task.network(input_ids=batch["input_ids"], labels=batch["labels"]).loss
        torch.testing.assert_close(task.training_step(batch, 0), expected)


@pytest.mark.parametrize("kind", ["sdpa", "eager"])
def test_packed_samples_do_not_see_each_other(llama, questions, kind):
    task = LanguageTask(base=llama).eval()
    task.network.set_attn_implementation(kind)
    task.masks_segments = needs_mask(task.network, "the model")
    losses = {}
    for packing in (True, False):
        samples = data(questions, packing=packing, batch_size=2, max_length=192, epoch_steps=None)
        samples.setup("fit")
        samples.use_tokenizer(task.tokenizer)
        with torch.no_grad():
            losses[packing] = torch.cat([task(batch)[0] for batch in samples.train_dataloader()]).sort().values
            several = max(int(batch["segments"].max()) for batch in samples.train_dataloader())
        assert (several > 1) is packing
    torch.testing.assert_close(losses[True], losses[False], atol=1e-4, rtol=1e-4)


@pytest.fixture(scope="module")
def sliding(tmp_path_factory):
    from transformers import MistralConfig, MistralForCausalLM

    return write_llama(
        tmp_path_factory.mktemp("sliding"), config=MistralConfig, model=MistralForCausalLM, sliding_window=8
    )


def test_packed_samples_keep_a_sliding_window(sliding, questions, tmp_path):
    test_packed_samples_do_not_see_each_other(sliding, questions, "sdpa")


@pytest.mark.parametrize(("change", "masks"), [("", True), ("positions", False), ("state", None)])
def test_how_packed_samples_are_kept_apart_is_found_out(llama, change, masks, monkeypatch):
    model = LanguageTask(base=llama).network
    if masks is not False:  # a model that does not look at the positions, as older ones do not
        monkeypatch.setattr("transformers.masking_utils.find_packed_sequence_indices", lambda _: None)
    if change == "state":  # a convolution along the row leaks into the next sample
        for layer in model.get_base_model().model.layers:
            layer.register_forward_hook(lambda _, inputs, output: output + output.roll(1, 1))
    if masks is None:
        with pytest.raises(UserError, match=r"model would mix the samples of a packed row; set data\.packing false"):
            needs_mask(model, "model")
    else:
        assert needs_mask(model, "model") is masks
    assert model.training


def test_gradient_checkpointing_changes_nothing(llama, questions):
    samples, gradients = data(questions), []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        task = LanguageTask(base=llama, adapter=SINE, gradient_checkpointing=checkpointing)
        samples.setup("fit")
        samples.use_tokenizer(task.tokenizer)
        task.training_step(next(iter(samples.train_dataloader())), 0).backward()
        gradients.append([p.grad for p in task.parameters() if p.requires_grad])
    for plain, checkpointed in zip(*gradients, strict=True):
        assert plain is not None
        torch.testing.assert_close(plain, checkpointed)


# -- figures -------------------------------------------------------------------------------------------------------
def test_choices_are_scored_by_their_log_likelihood(llama, questions, tmp_path):
    task, samples = LanguageTask(base=llama), data(questions, test=questions, batch_size=3)
    trainer = quiet_trainer(tmp_path)
    figures = trainer.test(task, samples, verbose=False)[0]
    right, loss, tokens = 0, 0.0, 0
    for record in QUESTIONS:
        sums = {}
        for word in ("true", "false"):
            begin = task.prompt(record["instruction"])
            end = f"the correct answer is {word}<|im_end|>"
            first = begin.shape[1]
            ids = torch.cat(
                [begin, task.tokenizer(end, add_special_tokens=False, return_tensors="pt")["input_ids"]], 1
            )
            with torch.no_grad():
                logs = task.network(input_ids=ids).logits.log_softmax(-1)[0, :-1].gather(1, ids[0, 1:, None])
            sums[word] = -float(logs[first - 1 :].sum())
            if word == record["answer"]:
                loss, tokens = loss + sums[word], tokens + ids.shape[1] - first
        right += min(sums, key=sums.get) == record["answer"]
    assert figures["test/acc"] == pytest.approx(right / len(QUESTIONS))
    assert figures["test/loss"] == pytest.approx(loss / tokens, rel=1e-4)
    assert figures["test/ppl"] == pytest.approx(math.exp(loss / tokens), rel=1e-4)


@pytest.mark.parametrize(
    ("losses", "right"),
    [
        ([2, 1, 3], 1),
        ([1, 2, 3], 0),
        ([1, 1, 3], 0.5),
        ([1, 1, 1], 1 / 3),
        ([math.nan, 1, 1], 0),
        ([math.inf] * 3, 0),
    ],
)
def test_a_tie_is_a_share_and_no_number_is_wrong(losses, right):
    assert _correct(1, dict(enumerate(losses))) == pytest.approx(right)


def test_the_manual_is_text(llama, tmp_path):
    task = LanguageTask(base=llama, adapter=SINE, optimizer=ADAM)
    trainer = trained(task, data(limit=3), tmp_path, limit_val_batches=2)
    assert task.form == "text" and task.tokenizer.decode(task.prompt("The for")[0]) == "The for"
    assert "val/acc" not in trainer.callback_metrics and "val/ppl" in trainer.callback_metrics


# -- sentences -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("family", ["bert", "llama"])
def test_sentences_are_classified(family, request, tmp_path):
    path = tmp_path / "train.tsv"
    rows = [f"{'good' if n % 2 else 'bad'} film {n}\t{n % 2}" for n in range(40)]
    path.write_text("\n".join(["sentence\tlabel", *rows]) + "\n")
    torch.manual_seed(0)
    slow = lambda parameters: torch.optim.AdamW(parameters, lr=1e-3)  # noqa: E731
    task = SentenceTask(base=request.getfixturevalue(family), adapter=SINE, optimizer=slow)
    trained_head = [name for name, p in task.named_parameters() if p.requires_grad and ".lora_" not in name]
    assert trained_head and all("classifier" in name or "score" in name for name in trained_head)
    samples = SentenceData(str(path), batch_size=8, max_length=64, validation_share=0.3)
    trainer = trained(task, samples, tmp_path, max_steps=80)
    assert trainer.callback_metrics["val/acc"] > 0.7 and {"val/f1", "val/mcc"} <= trainer.callback_metrics.keys()
    trainer.save_checkpoint(tmp_path / "run.ckpt")
    torch.manual_seed(5)  # another head is drawn, and replaced
    back = SentenceTask.load_from_checkpoint(tmp_path / "run.ckpt", weights_only=True)
    assert quiet_trainer(tmp_path).test(back, samples, verbose=False)[0]["test/acc"] == pytest.approx(
        float(trainer.callback_metrics["val/acc"])
    )
    path.write_text(path.read_text().replace("\t0", "\tno").replace("\t1", "\tyes"))
    with pytest.raises(UserError, match="name the classes otherwise: 0, 1 and no, yes"):
        quiet_trainer(tmp_path).test(back, SentenceData(str(path), max_length=64), verbose=False)
    with pytest.raises(UserError, match=r"the data has 2 classes, the model 3: set model\.classes"):
        trained(SentenceTask(classes=3, base=request.getfixturevalue(family), adapter=SINE), samples, tmp_path)


def test_what_the_base_has_no_weights_for_is_trained_whole(tmp_path):
    task = SentenceTask(base=write_bert(tmp_path, whole=False), adapter=SINE)
    pooler = {name.rpartition("pooler.dense.")[2]: p.requires_grad for name, p in task.named_parameters()
              if "pooler" in name}  # fmt: skip
    assert {name for name, trains in pooler.items() if trains} == {
        "modules_to_save.default.weight",
        "modules_to_save.default.bias",
    }
    assert not any("lora" in name for name in pooler)


# -- checkpoints ---------------------------------------------------------------------------------------------------
def test_a_checkpoint_holds_the_adapter_alone(llama, questions, tmp_path):
    task = LanguageTask(base=llama, adapter=SINE, optimizer=ADAM)
    trainer = trained(task, data(questions), tmp_path)
    path = tmp_path / "run.ckpt"
    trainer.save_checkpoint(path)
    stored = torch.load(path, weights_only=True)
    assert set(stored["state_dict"]) == {name for name, p in task.named_parameters() if p.requires_grad}
    assert path.stat().st_size < sum(p.numel() for p in task.parameters() if p.requires_grad) * 4 * 3 + 100_000
    back = LanguageTask.load_from_checkpoint(path, weights_only=True)
    assert back.form == "chat" and back.adapter == SINE
    for name, value in weights(task).items():
        torch.testing.assert_close(weights(back)[name], value, rtol=0, atol=0)


def test_a_checkpoint_of_another_base_is_refused(llama, questions, tmp_path, tmp_path_factory):
    trainer = trained(LanguageTask(base=llama, adapter=SINE), data(questions), tmp_path)
    trainer.save_checkpoint(tmp_path / "run.ckpt")
    other = write_llama(tmp_path_factory.mktemp("other"), seed=1)
    with pytest.raises(UserError, match="adapter of another base model"):
        LanguageTask.load_from_checkpoint(tmp_path / "run.ckpt", base=other, weights_only=True)
    with pytest.raises(UserError, match="adapter is SineLowRank there, LowRank here"):
        LanguageTask(base=llama, adapter=LowRank(rank=2)).on_load_checkpoint(torch.load(tmp_path / "run.ckpt"))


def test_a_state_must_have_every_entry(llama):
    task = LanguageTask(base=llama, adapter=SINE)
    state = task.state_dict()
    first = next(iter(state))
    with pytest.raises(RuntimeError, match=first):
        task.load_state_dict({name: value for name, value in state.items() if name != first})


def test_with_averaged_weights_too(llama, questions, tmp_path):
    def averaged(name, **options):
        torch.manual_seed(0)
        task = LanguageTask(base=llama, adapter=SINE, optimizer=ADAM)
        saver = ModelCheckpoint(tmp_path, f"{name}{{step}}", every_n_train_steps=3, save_top_k=-1)
        trainer = quiet_trainer(
            tmp_path, max_steps=6, num_sanity_val_steps=0, enable_checkpointing=True, callbacks=[EMA(0.5), saver]
        )
        trainer.fit(task, data(questions, epoch_steps=3), **options)
        return task, torch.load(tmp_path / f"{name}step=6.ckpt", weights_only=True)

    task, whole = averaged("whole")
    names = {name for name, p in task.named_parameters() if p.requires_grad}
    assert set(whole["state_dict"]) == set(whole["current_model_state"]) == names
    _, resumed = averaged("resumed", ckpt_path=tmp_path / "wholestep=3.ckpt", weights_only=True)
    for state in ("state_dict", "current_model_state"):
        for name, value in whole[state].items():
            torch.testing.assert_close(resumed[state][name], value, rtol=0, atol=0)
    back = weights(LanguageTask.load_from_checkpoint(tmp_path / "wholestep=6.ckpt", weights_only=True))
    assert all(torch.equal(back[name], whole["state_dict"][name]) for name in names)
    assert not all(torch.equal(back[name], whole["current_model_state"][name]) for name in names)


# -- optimisers ----------------------------------------------------------------------------------------------------
def test_factors_keep_their_own_settings(llama):
    task = LanguageTask(base=llama, adapter=SineLowRank(2, lr_multiplier=3.0), modules_to_save=["norm"])
    groups = {group["lr_multiplier"]: group for group in parameter_groups(task, 0.1)}
    factors = {id(p) for name, p in task.named_parameters() if ".lora_" in name}
    assert {id(p) for p in groups[3.0]["params"]} == factors and groups[3.0]["weight_decay"] == 0
    assert set(groups) == {1.0, 3.0}


def test_modules_trained_whole_are_float32(llama, questions, tmp_path):
    task = LanguageTask(
        base=llama, adapter=SINE, optimizer=ADAM, dtype="bfloat16", modules_to_save=["lm_head", "embed_tokens"]
    )
    assert {p.dtype for p in task.parameters() if p.requires_grad} == {torch.float32}
    assert {p.dtype for p in task.parameters()} == {torch.float32, torch.bfloat16}
    before = weights(task)
    trained(task, data(questions), tmp_path)
    changed = {name for name, value in weights(task).items() if not torch.equal(value, before[name])}
    with task.network.disable_adapter():  # the frozen originals, in the base's type
        assert task.network(input_ids=torch.arange(8)[None]).logits.dtype == torch.bfloat16
    assert sum("modules_to_save" in name for name in changed) == 2
    assert all("modules_to_save" in name or ".lora_" in name for name in changed)


def test_blocks_trained_whole_in_a_half_precision_base(llama, questions, tmp_path):
    task = LanguageTask(
        base=llama, adapter=SINE, targets=["up_proj"], dtype="bfloat16", modules_to_save=["self_attn"]
    )
    trained(task, data(questions), tmp_path, max_steps=1)  # called by name, and it answers with a tuple


def test_all_in_half_precision(bert, tmp_path):
    path = tmp_path / "train.tsv"
    path.write_text("sentence\tlabel\n" + "".join(f"film {n}\t{n % 2}\n" for n in range(20)))
    task = SentenceTask(base=bert, adapter=SINE, dtype="bfloat16")
    trained(task, SentenceData(str(path), max_length=16), tmp_path, max_steps=2, precision="bf16-true")


# -- mistakes ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"adapter": Dense()}, "model.adapter Dense is no factorization"),
        ({"targets": ["q_prj"]}, r"no module's name ends in 'q_prj'; near it are q_proj"),
        ({"modules_to_save": ["lm_hed"]}, "modules_to_save: no module's name ends in 'lm_hed'; near it are lm_head"),
        ({"targets": ["q_proj", "nothing"]}, "no module's name ends in 'nothing'"),
        ({"targets": "q_prj"}, r"no module's name ends in 'q_prj'; near it are q_proj"),
        ({"dropout": 1.0}, r"model\.dropout must be at least 0 and below 1, got 1\.0"),
        ({"dropout": -0.1}, r"model\.dropout must be at least 0 and below 1, got -0\.1"),
        ({"dropout": math.nan}, r"model\.dropout must be at least 0 and below 1, got nan"),
        ({"alpha": 0}, r"model\.alpha must be a number above 0, got 0"),
        ({"alpha": -16.0}, r"model\.alpha must be a number above 0, got -16\.0"),
        ({"alpha": math.nan}, r"model\.alpha must be a number above 0, got nan"),
        ({"base": "/nowhere/folder"}, r"model\.base /nowhere/folder: there is no such folder$"),
        ({"base": "./nofolder"}, r"model\.base \./nofolder: there is no such folder in /"),
        ({"base": "a/b/c"}, r"model\.base a/b/c: there is no such folder in /"),
        ({"base": "nobody/no-such-model"}, "hub that can be reached or is cached"),
        ({"base": "model.gguf"}, "model.base model.gguf: there is no such file"),
    ],
    ids=lambda value: None if isinstance(value, str) else "-".join(value),
)
def test_mistakes_are_named(llama, options, message):
    with pytest.raises(UserError, match=message):
        LanguageTask(**{"base": llama, **options})


def test_samples_must_fit_the_model(llama, questions, tmp_path, tmp_path_factory):
    task = LanguageTask(base=llama)
    with pytest.raises(UserError, match=r"a sample has 300 tokens, the model reads 256: lower data\.max_length"):
        trained(task, data(limit=3, max_length=300), tmp_path)
    small = write_llama(tmp_path_factory.mktemp("few"), tokens=50)
    with pytest.raises(UserError, match="the model knows 50 tokens, numbered from 0: they do not belong together"):
        trained(LanguageTask(base=small), data(questions), tmp_path)


def test_one_target_may_be_a_text(llama):
    one, several = (LanguageTask(base=llama, adapter=SINE, targets=t).state_dict() for t in ("q_proj", ["q_proj"]))
    assert one.keys() == several.keys() and all(".q_proj." in name for name in one)


def test_a_damaged_weight_file_is_named(tmp_path):
    base = write_llama(tmp_path)
    file = tmp_path / "model.safetensors"
    for content in (file.read_bytes()[:-1000], b"", b"no weights at all"):
        file.write_bytes(content)
        with pytest.raises(UserError, match=rf"model\.base {base} cannot be loaded \("):
            LanguageTask(base=base)


def test_a_folder_without_a_model_is_named(tmp_path):
    with pytest.raises(UserError, match=r"a folder without config\.json"):
        LanguageTask(base=str(tmp_path))


def test_what_is_not_installed_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r'need peft and transformers: pip install -e "\.\[llm\]"'):
        LanguageTask()
