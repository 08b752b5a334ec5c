"""A Lightning project of one's own: module, datamodule, manual optimisation, and one line that says `convert`."""

import sys

import lightning.pytorch as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset, random_split


class Digits(L.LightningDataModule):
    def setup(self, stage):
        images, labels = load_digits(return_X_y=True)
        data = TensorDataset(torch.tensor(images).float() / 16, torch.tensor(labels))
        self.train, self.val = random_split(data, [1500, 297], torch.Generator().manual_seed(0))

    def train_dataloader(self):
        return DataLoader(self.train, batch_size=50, shuffle=True)

    def val_dataloader(self):
        return DataLoader(self.val, batch_size=64)


class Classifier(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.automatic_optimization = False
        self.encoder = nn.TransformerEncoderLayer(16, 2, 64, dropout=0.0, batch_first=True)
        self.embed, self.head = nn.Linear(8, 16), nn.Linear(16, 10)

    def forward(self, x):
        return self.head(self.encoder(self.embed(x.view(-1, 8, 8))).mean(1))

    def training_step(self, batch, batch_idx):
        loss = nn.functional.cross_entropy(self(batch[0]), batch[1])
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(loss)
        self.clip_gradients(optimizer, 1.0, "norm")
        optimizer.step()

    def validation_step(self, batch, batch_idx):
        self.log("accuracy", (self(batch[0]).argmax(1) == batch[1]).float().mean())

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=5e-3)


def project():
    model = Classifier()

    from sinelr_lightning import SineLowRank, convert

    convert(model, SineLowRank(rank=4), include=["encoder.linear*", "encoder.self_attn.*"])
    return model


def trainer(folder, epochs):
    return L.Trainer(
        default_root_dir=folder, max_epochs=epochs, accelerator="cpu", logger=False, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0,
        callbacks=[ModelCheckpoint(folder, "run", save_last=True)],
    )  # fmt: skip


if __name__ == "__main__":
    folder = sys.argv[1]
    L.seed_everything(0, verbose=False)
    trainer(folder, 8).fit(project(), Digits())
    model, resumed = project(), trainer(folder, 20)
    resumed.fit(model, Digits(), ckpt_path=f"{folder}/last.ckpt")
    accuracy = resumed.callback_metrics["accuracy"].item()
    print(f"accuracy {accuracy} parameters {sum(p.numel() for p in model.parameters())}")
