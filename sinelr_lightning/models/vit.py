"""A compact vision transformer for small images."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sinelr_lightning.layers.factory import Dense, LinearFactory

__all__ = ["VisionTransformer"]


class VisionTransformer(nn.Module):
    """Images → class logits: Dosovitskiy et al. 2021, figure 1, with the mean over patches in place of a class token.

    Patches are embedded by one convolution, and a learnt position is added to each. Then `depth` blocks

        x ← x + attention(norm(x)),    x ← x + mlp(norm(x)),    mlp(x) = fc2(GELU(fc1(x)))

    (pre-norm), a last norm, the mean over patches (Beyer et al. 2022) and a dense head. The layers of attention
    (`qkv`, `proj`) and feed-forward (`fc1`, `fc2`) come from the factories; `convert` reaches them as `*.mlp.*` and
    `*.attention.*`.

    Args:
        image_size: pixels of each side; a multiple of `patch_size`.
        patch_size: pixels of a patch's side.
        channels: of the images.
        classes: number of classes.
        width: features of a patch; a multiple of `heads`.
        depth: blocks.
        heads: of the attention.
        mlp_ratio: features inside the feed-forward over `width`.
        dropout: of attention's and feed-forward's outputs.
        mlp, attention: make the layers of the two.

    Raises:
        ValueError: sizes that do not divide.
    """

    def __init__(
        self,
        image_size: int = 32,
        patch_size: int = 4,
        channels: int = 3,
        classes: int = 10,
        width: int = 192,
        depth: int = 6,
        heads: int = 3,
        mlp_ratio: float = 4.0,
        dropout: float = 0.0,
        mlp: LinearFactory = Dense(),  # noqa: B008 (frozen)
        attention: LinearFactory = Dense(),  # noqa: B008 (frozen)
    ) -> None:
        super().__init__()
        if image_size % patch_size or width % heads:
            raise ValueError(
                f"image_size {image_size} must be a multiple of patch_size {patch_size}, "
                f"width {width} one of heads {heads}"
            )
        self.embedding = nn.Conv2d(channels, width, patch_size, patch_size)
        self.positions = nn.Parameter(0.02 * torch.randn((image_size // patch_size) ** 2, width))
        inner = round(mlp_ratio * width)
        self.blocks = nn.ModuleList(_Block(width, heads, inner, dropout, mlp, attention) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits [B, classes] of images [B, channels, image_size, image_size]."""
        x = self.embedding(images).flatten(2).transpose(1, 2) + self.positions
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x).mean(1))


class _Block(nn.Module):
    def __init__(
        self, width: int, heads: int, inner: int, dropout: float, mlp: LinearFactory, attention: LinearFactory
    ) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = _Attention(width, heads, attention)
        self.mlp = _FeedForward(width, inner, mlp)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.dropout(self.attention(self.norm1(x)))
        return x + self.dropout(self.mlp(self.norm2(x)))


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int, linear: LinearFactory) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = linear(width, 3 * width)
        self.proj = linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, patches, width = x.shape
        q, k, v = self.qkv(x).view(batch, patches, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v)
        return self.proj(mixed.transpose(1, 2).reshape(batch, patches, width))


class _FeedForward(nn.Module):
    def __init__(self, width: int, inner: int, linear: LinearFactory) -> None:
        super().__init__()
        self.fc1, self.fc2 = linear(width, inner), linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))
