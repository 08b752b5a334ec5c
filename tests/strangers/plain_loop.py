"""A training script that knows nothing of sine layers, but for the line that says `convert`."""

import torch
from sklearn.datasets import load_digits
from torch import nn

torch.manual_seed(0)
images, labels = (torch.tensor(array) for array in load_digits(return_X_y=True))
images = images.float() / 16
train, test = slice(0, 1500), slice(1500, None)

model = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10))

from sinelr_lightning import SineLowRank, convert  # noqa: E402

convert(model, SineLowRank(rank=8), include=["0", "2"])

optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
for _ in range(12):
    for index in torch.randperm(1500).split(50):
        loss = nn.functional.cross_entropy(model(images[train][index]), labels[train][index])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

with torch.no_grad():
    accuracy = (model(images[test]).argmax(1) == labels[test]).float().mean().item()
print(f"accuracy {accuracy} parameters {sum(p.numel() for p in model.parameters())}")
