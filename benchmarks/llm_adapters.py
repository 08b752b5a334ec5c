"""Cost of a training step of adapters in PEFT: LoRA, DoRA, sine LoRA as two products and as this package has it.

    python benchmarks/llm_adapters.py                              # 20 minutes on two CPU cores
    python benchmarks/llm_adapters.py --cases llama-8b --dtypes bfloat16 --device cuda

A step is forward and backward through frozen blocks with adapters in all their linear layers, from gradients of the
output to those of the input and of the adapters. `llama-8b` is one block of Llama 3 8B's shape (hidden 4096, 14336
inside, grouped queries), `smollm2` are two of SmolLM2-135M's, both with random weights. `two products` is the
authors' form, base(x) + s·x·(sin(ω·B·A)/g)ᵀ, left to autograd; `formed` is ours without the polynomials of small
phases (`layers.powers`).

Times are the fastest of the turns that all methods take in a new order, ratios those of one run. Memory is the
largest sum of live tensors during a step less what lay there before: on the CPU from the allocations that the
profiler records, on a GPU from the allocator.
"""

import argparse
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from timing import Setting, fastest, machine, peak, table
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from sinelr_lightning.adapters import SineLoraConfig

CASES: dict[str, dict[str, Any]] = {
    "smollm2": {
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "num_hidden_layers": 2,
    },
    "llama-8b": {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "num_hidden_layers": 1,
    },
}
TWO_PRODUCTS = "sine LoRA, two products"
FORMED = "sine LoRA, formed"
METHODS = ("LoRA", "DoRA", TWO_PRODUCTS, FORMED, "sine LoRA", "sine DoRA")


class TwoProducts(nn.Module):
    """base(x) + s·x·(sin(ω·B·A)/g)ᵀ by ordinary operations, as in the authors' code."""

    def __init__(self, layer: Any, omega: float, gain: float) -> None:
        super().__init__()
        self.base, self.a, self.b = layer.base_layer, layer.lora_A["default"], layer.lora_B["default"]
        self.scale, self.omega, self.gain = layer.scaling["default"], omega, gain

    def forward(self, x: Tensor) -> Tensor:
        update = torch.sin(self.omega * (self.b.weight @ self.a.weight)) / self.gain
        return self.base(x) + (x.to(update.dtype) @ update.t()).to(x.dtype) * self.scale


def build(method: str, case: str, rank: int, dtype: torch.dtype, device: str) -> nn.Module:
    """Blocks with adapters whose B is not zero, as after some training."""
    torch.manual_seed(0)
    with torch.device(device):
        model = LlamaForCausalLM(LlamaConfig(**CASES[case], vocab_size=64)).to(dtype)
    options: Any = {"r": rank, "lora_alpha": 2 * rank, "target_modules": "all-linear", "use_dora": "DoRA" in method}
    config = SineLoraConfig(**options) if "sine" in method else LoraConfig(**options)
    network = get_peft_model(model, config).get_base_model().get_submodule("model").train()
    for name, parameter in network.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.01)
    if method == TWO_PRODUCTS:
        for name, layer in list(network.named_modules()):
            if isinstance(layer, LoraLayer):
                n = layer.in_features
                assert n is not None
                network.set_submodule(name, TwoProducts(layer, 6 * n**0.5, n**0.5))
    return network


def step(network: Any, x: Tensor, grad: Tensor) -> None:
    y = network(inputs_embeds=x.requires_grad_(), use_cache=False).last_hidden_state
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    torch.autograd.grad(y, [x, *trained], grad)


def formed_step(network: Any, x: Tensor, grad: Tensor) -> None:
    """The step with the whole weight formed, whatever the phases."""
    with mock.patch("sinelr_lightning.layers.adapted.enough_degree", lambda *_: None):
        step(network, x, grad)


def peak_on_cpu(run: Callable[[], None]) -> float:
    """MB of live tensors at most during `run` beyond those before it."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    raw = profiler.profiler.kineto_results.events()
    changes = sorted((event.start_ns(), event.nbytes()) for event in raw if event.name() == "[memory]")
    live = most = 0
    for _, change in changes:
        live += change
        most = max(most, live)
    return most / 1e6


def measure(case: str, rank: int, dtype: torch.dtype, tokens: int, setting: Setting) -> list[list[str]]:
    networks = {method: build(method, case, rank, dtype, setting.device) for method in METHODS}
    hidden = CASES[case]["hidden_size"]
    x, grad = (torch.randn(1, tokens, hidden, device=setting.device, dtype=dtype) for _ in range(2))
    runs = {method: functools.partial(step, network, x, grad) for method, network in networks.items()}
    runs[FORMED] = functools.partial(formed_step, networks[FORMED], x, grad)
    times = fastest(runs, setting)
    memory = {name: (peak if setting.device == "cuda" else peak_on_cpu)(run) for name, run in runs.items()}
    return [
        [
            case,
            str(rank),
            str(dtype).removeprefix("torch."),
            method,
            f"{times[method]:,.0f}",
            f"{times[method] / times['LoRA']:.2f}",
            f"{times[TWO_PRODUCTS] / times[method]:.2f}",
            f"{memory[method]:,.0f}",
            f"{memory[method] / memory['LoRA']:.2f}",
        ]
        for method in METHODS
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"], choices=["float32", "bfloat16"])
    parser.add_argument("--ranks", type=int, nargs="+", default=[8])
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--seconds", type=float, default=120, help="a case ends once it has used these")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "llm_adapters.md")
    args = parser.parse_args()
    setting = Setting(args.device, autocast=False, seconds=args.seconds)
    rows = []
    for case in args.cases:
        for dtype in args.dtypes:
            for rank in args.ranks:
                rows += measure(case, rank, getattr(torch, dtype), args.tokens, setting)
                print(*rows[-len(METHODS) :], sep="\n", flush=True)
    columns = ["block", "rank", "type", "adapter", "ms", "over LoRA", "two products over it", "peak MB", "over LoRA"]
    title = f"A training step on {args.tokens} tokens"
    args.out.write_text(machine(setting) + "\n" + table(title, columns, rows))


if __name__ == "__main__":
    main()
