"""The ingredients of torchvision's training recipe (references/classification) over one of its networks.

MixUp and CutMix in the collate function, label smoothing, parameters sorted for weight decay by their module's kind,
linear warm-up into cosine, gradient scaling and clipping, an averaged model with its buffers, a checkpoint in the
middle from which everything goes on.
"""

import sys
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, TensorDataset, default_collate
from torchvision.models import VisionTransformer
from torchvision.transforms import v2

EPOCHS = 16


def build():
    network = VisionTransformer(
        image_size=8, patch_size=2, num_layers=2, num_heads=2, hidden_dim=32, mlp_dim=128, num_classes=10
    )

    from sinelr_lightning import SineLowRank, convert

    convert(network, SineLowRank(rank=8), include=["*.mlp.*", "*.self_attention*"])
    return network


def groups(network):
    decayed, others = [], []
    for module in network.modules():
        for name, parameter in module.named_parameters(recurse=False):
            (others if isinstance(module, nn.LayerNorm) or name == "bias" else decayed).append(parameter)
    return [{"params": decayed, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}]


class State:
    def __init__(self):
        self.network = build()
        self.average = AveragedModel(self.network, multi_avg_fn=get_ema_multi_avg_fn(0.98), use_buffers=True)
        self.optimizer = torch.optim.AdamW(groups(self.network), lr=4e-3)
        warm = torch.optim.lr_scheduler.LinearLR(self.optimizer, 0.1, total_iters=2)
        cosine = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, EPOCHS - 2)
        self.schedule = torch.optim.lr_scheduler.SequentialLR(self.optimizer, [warm, cosine], [2])
        self.scaler = torch.amp.GradScaler("cpu")
        self.epoch = 0

    @property
    def parts(self):
        return {name: getattr(self, name) for name in ("network", "average", "optimizer", "schedule", "scaler")}

    def save(self, path):
        torch.save({"epoch": self.epoch, **{name: part.state_dict() for name, part in self.parts.items()}}, path)

    def load(self, path):
        stored = torch.load(path, weights_only=True)
        self.epoch = stored["epoch"]
        for name, part in self.parts.items():
            part.load_state_dict(stored[name])


def train(state, loader, until):
    while state.epoch < until:
        for images, shares in loader:
            with torch.amp.autocast("cpu", torch.bfloat16):
                logits = state.network(images)
            loss = nn.functional.cross_entropy(logits.float(), shares, label_smoothing=0.1)
            state.optimizer.zero_grad()
            state.scaler.scale(loss).backward()
            state.scaler.unscale_(state.optimizer)
            nn.utils.clip_grad_norm_(state.network.parameters(), 1.0)
            state.scaler.step(state.optimizer)
            state.scaler.update()
            state.average.update_parameters(state.network)
        state.schedule.step()
        state.epoch += 1


if __name__ == "__main__":
    torch.manual_seed(0)
    images, labels = load_digits(return_X_y=True)
    images, labels = torch.tensor(images).float().view(-1, 1, 8, 8).repeat(1, 3, 1, 1) / 8 - 1, torch.tensor(labels)
    mix = v2.RandomChoice([v2.MixUp(alpha=0.2, num_classes=10), v2.CutMix(alpha=1.0, num_classes=10)])
    loader = DataLoader(
        TensorDataset(images[:1500], labels[:1500]), 50, shuffle=True, collate_fn=lambda b: mix(*default_collate(b))
    )
    path = Path(sys.argv[1]) / "middle.pth"
    first = State()
    train(first, loader, EPOCHS // 2)
    first.save(path)
    state = State()
    state.load(path)
    train(state, loader, EPOCHS)
    state.average.eval()
    with torch.inference_mode():
        accuracy = (state.average(images[1500:]).argmax(1) == labels[1500:]).float().mean().item()
    print(f"accuracy {accuracy} parameters {sum(p.numel() for p in state.network.parameters())}")
