"""What sine adapters bring in language models, beside LoRA and its kin under one budget.

Every method gets the same base model, layers, rank, batches and steps and the same sweep of learning rates
(`sweep.py`), chosen on validation samples; the figures are of test samples that nothing was chosen by. `LoRA, α·ω/g`
is the control that the paper lacks: near its start a sine adapter is a LoRA with α multiplied by ω/g. HiRA is PEFT's
own, W₀ + W₀ ∘ (B·A), sine HiRA the same with a sine.

    python benchmarks/llm_quality.py PATH/TO/sst2 --base PATH/TO/minilm          (train.tsv, dev.tsv)
    python benchmarks/llm_quality.py PATH/TO/commonsense/ARC-Easy                (train.json, test.json)
    python benchmarks/llm_quality.py PATH/TO/commonsense/ARC-Easy --answers texts
    python benchmarks/llm_quality.py manual                                      (Python's own: perplexity)

The questions of multiple choice come in the authors' form, which lists numbered answers and asks for the number;
small models stay at chance there. `--answers texts` gives the question alone, and the answers' texts to choose from.
`--stored` makes the table of what was run before, as far as the sweeps came to an end.

Writes benchmarks/results/llm_quality_DATA.{json,md}.
"""

import argparse
import functools
import json
import math
import re
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from sweep import RESULTS, Case, Run, Sweep, bare_trainer, settle, train
from timing import markdown

from sinelr_lightning.layers import LinearFactory, LowRank, SineLowRank
from sinelr_lightning.layers.sine_ops import phase_of

SINE_OVER_LORA = 6.0  # ω/g of frequency="auto"
METHODS: dict[str, dict[str, Any]] = {
    "LoRA": {"adapter": LowRank},
    "LoRA, α·ω/g": {"adapter": LowRank, "alpha": SINE_OVER_LORA},
    "rsLoRA": {"adapter": LowRank, "rslora": True},
    "DoRA": {"adapter": LowRank, "dora": True},
    "HiRA": {"adapter": LowRank},
    "sine LoRA": {"adapter": SineLowRank},
    "sine DoRA": {"adapter": SineLowRank, "dora": True},
    "sine HiRA": {"adapter": lambda rank: SineLowRank(rank, frequency=6.0, gain=1.0), "hadamard": True},
}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="manual, or a folder with train.json and test.json or train.tsv and dev.tsv")
    parser.add_argument("--base", default="smollm2")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 8])
    parser.add_argument("--lrs", type=float, nargs="+", default=[3e-4, 1e-3, 3e-3])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--rows", type=int, default=32, help="sentences, or rows of tokens, a step")
    parser.add_argument("--length", type=int, default=128, help="tokens a row at most")
    parser.add_argument("--share", type=float, default=0.02, help="of the training data, for validation")
    parser.add_argument("--answers", default="numbers", choices=["numbers", "texts"], help="of multiple choice")
    parser.add_argument("--questions", type=int, help="of the test at most, where --answers is texts; all without it")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, one thread each on the CPU")
    parser.add_argument("--stored", action="store_true", help="run nothing: the table of the runs there are")
    args = parser.parse_args()
    if args.questions is not None and (args.questions < 1 or args.answers != "texts"):
        parser.error("--questions is a number from 1 on, and goes with --answers texts")
    return args


def sentences(args: argparse.Namespace) -> bool:
    return (Path(args.data) / "train.tsv").is_file()


def make(args: argparse.Namespace, case: Case, lr: float = 1e-3) -> Any:
    from sinelr_lightning.tasks import LanguageTask, Schedule, SentenceTask

    method, rank = case
    options = dict(METHODS[method])
    kind: Any = SentenceTask if sentences(args) else LanguageTask
    if method == "HiRA":
        kind = type(f"Hira{kind.__name__}", (_Hira, kind), {})
    alpha = 2 * rank * options.pop("alpha", 1.0)  # s = 2 at every rank
    if options.get("rslora"):
        alpha = 2 * math.sqrt(8)  # one alpha at every rank, as its rule wants it: s = alpha/√r is 2 at rank 8, 4 at 2
    return kind(
        base=args.base,
        alpha=alpha,
        dtype=args.dtype,
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=lr),
        schedule=Schedule("cosine", warmup=max(1, args.steps // 20), final=0.05),
        **{**options, "adapter": options["adapter"](rank)},
    )


class _Hira:
    """The task with PEFT's own HiRA, W₀ + W₀ ∘ (B·A) (Huang et al., ICLR 2025)."""

    def peft_config(self, adapter: LinearFactory, **options: Any) -> Any:
        from peft import HiraConfig

        kept = ("target_modules", "modules_to_save", "task_type")
        return HiraConfig(r=adapter.rank, **{name: options[name] for name in kept})  # ty: ignore[missing-attribute]


def read(args: argparse.Namespace) -> Any:
    from sinelr_lightning.datamodules import LanguageData, SentenceData

    folder = Path(args.data)
    common = {
        "validation_share": args.share,
        "max_length": args.length,
        "batch_size": args.rows,
        "epoch_steps": args.steps,
    }
    if sentences(args):
        return SentenceData(str(folder / "train.tsv"), test=str(folder / "dev.tsv"), **common)
    if args.data == "manual":
        return LanguageData(**common)
    with tempfile.TemporaryDirectory() as changed:
        if args.answers == "texts":
            folder = as_texts(folder, Path(changed), args.questions)
        data = LanguageData(str(folder / "train.json"), test=str(folder / "test.json"), too_long="drop", **common)
        for split in ("train", "val", "test"):
            data.read_split(split)
    return data


QUESTION = re.compile(
    r"Please choose the correct answer to the question: (.*?)\n\nAnswer1: (.*)\n\nAnswer format: .*", re.S
)


def as_texts(folder: Path, out: Path, questions: int | None) -> Path:
    """Write the questions alone, with the answers' texts as choices; those with one text twice are left out.

    Of the test, `questions` at most, as many from each part of it.
    """
    for name in ("train.json", "test.json"):
        records = []
        for item in json.loads((folder / name).read_text()):
            asked = QUESTION.fullmatch(item["instruction"])
            if asked is None:
                sys.exit(f"{folder / name}: is not in the authors' form: {item['instruction'][:80]!r}")
            choices = re.split(r" ?Answer\d+: ", asked[2])
            number = int(item["answer"].removeprefix("answer")) - 1
            if len(set(choices)) == len(choices):
                records.append({"instruction": asked[1], "choices": choices, "answer": number})
        if name == "test.json" and questions is not None and questions < len(records):
            records = [records[number * len(records) // questions] for number in range(questions)]
        (out / name).write_text(json.dumps(records))
    return out


def run(args: argparse.Namespace, one: Run) -> dict[str, float]:
    """Train and score one case; everything else the same."""
    method, rank, lr, seed = one
    settle(seed, args.device)
    task = make(args, (method, rank), lr)
    names, score = (("acc", "loss"), "acc") if sentences(args) else (("loss",), "loss")
    test = "" if args.data == "manual" else "acc"
    scores = train(task, read(args), args.steps, args.device, names, test=test)
    chosen = scores["acc"] if score == "acc" else -scores["loss"]
    return {**scores, **phases(task), "chosen": chosen, "parameters": task.size()["trained_parameters"]}


def untrained(args: argparse.Namespace) -> dict[str, float]:
    """What the base model scores alone: an adapter adds nothing at first."""
    settle(0, args.device)
    task, data = make(args, ("LoRA", 1)), read(args)
    with bare_trainer(0, args.device) as trainer:
        (figures,) = trainer.validate(task, data, verbose=False)
        if args.data != "manual":
            figures |= trainer.test(task, data, verbose=False)[0]
    scores = {"loss": figures["val/loss"]}
    return scores if args.data == "manual" else {**scores, "test_acc": figures["test/acc"]}


@torch.no_grad()
def phases(task: torch.nn.Module) -> dict[str, float]:
    """Over the sine adapters of a trained model: spread of the phases in radians, and the largest phase."""
    from sinelr_lightning.adapters.layers import FactorizedLoraLayer

    spreads, largest = [], []
    for layer in task.modules():
        if isinstance(layer, FactorizedLoraLayer) and layer.ours("default"):
            sine = layer.formula("default")
            assert isinstance(sine, SineLowRank)
            u, v = layer.factors("default")
            phase = phase_of(u, v, sine.omega(len(v)))
            spreads.append(float(phase.std()))
            largest.append(float(phase.abs().max()))
    if not spreads:
        return {}
    return {
        "phase_spread": statistics.median(spreads),
        "phase_spread_most": max(spreads),
        "phase_most": max(largest),
    }


def table(args: argparse.Namespace, sweep: Sweep, cases: list[Case]) -> str:
    columns = {"validation loss": ("loss", "{:.4f}")}
    if args.data != "manual":
        columns = {"test accuracy": ("test_acc", "{:.2%}"), **columns}
    rows = []
    if before := sweep.report.get("before"):
        values = [form.format(before[name]) for name, form in columns.values()]
        rows.append(["before training", "–", "0", *values, "–", "–"])
    for case in cases:
        method, rank = case
        parameters, _ = sweep.mean(case, "parameters")
        seeds = len(sweep.chosen(case))
        figures = 1 if seeds == 1 else 2  # no spread of a single seed
        values = [
            " ± ".join(form.format(v) for v in sweep.mean(case, name)[:figures]) for name, form in columns.values()
        ]
        best = f"{sweep.best_lr(case):g}"
        rows.append([method, str(rank), f"{parameters:,.0f}", *values, best, str(seeds)])
    return markdown(["method", "rank", "trained parameters", *columns, "best lr", "seeds"], rows)


def main() -> None:
    args = arguments()
    cases = [(method, rank) for method in args.methods for rank in args.ranks]
    ignored = ("data", "jobs", "lrs", "seeds", "ranks", "methods", "base", "answers", "stored")
    setting = {name: value for name, value in vars(args).items() if name not in ignored and value is not None}
    setting |= {"base": Path(args.base).name}
    name = Path(args.data).name.lower() + ("_texts" if args.answers == "texts" else "")
    sweep = Sweep(RESULTS / f"llm_quality_{name}.json", setting, "chosen")
    if args.stored:
        cases = [case for case in cases if sweep.swept(case, args.lrs)]
        if not cases:
            sys.exit(f"{sweep.path}: no case is swept over {args.lrs}")
    else:
        if not sentences(args) and "before" not in sweep.report:  # a head for sentences begins at random
            sweep.report["before"] = untrained(args)
            sweep.save()
        sweep.work(functools.partial(run, args), cases, args.lrs, args.seeds, args.jobs)
    head = (
        f"{name}: {setting['base']}, all linear layers, {args.steps} steps of {args.rows} rows of up to "
        f"{args.length} tokens, learning rates {sweep.rates()}\n"
    )
    sweep.publish(head, table(args, sweep, cases))


if __name__ == "__main__":
    main()
