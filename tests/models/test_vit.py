import pytest
import torch
from torch import nn

from sinelr_lightning.layers import SineLowRank
from sinelr_lightning.layers.factorized import FactorizedLinear
from sinelr_lightning.models import VisionTransformer


def small(**options):
    return VisionTransformer(
        **{"image_size": 8, "patch_size": 2, "channels": 1, "width": 32, "depth": 2, "heads": 4, **options}
    )


def test_logits_of_each_image_alone():
    model = small().eval()
    images = torch.randn(5, 1, 8, 8)
    logits = model(images)
    assert logits.shape == (5, 10)
    torch.testing.assert_close(model(images[2:3]), logits[2:3], atol=1e-5, rtol=1e-4)


def test_its_factories_make_the_layers_of_its_parts():
    model = small(mlp=SineLowRank(2))
    made = [name for name, module in model.named_modules() if isinstance(module, FactorizedLinear)]
    assert made == [f"blocks.{i}.mlp.{layer}" for i in range(2) for layer in ("fc1", "fc2")]
    both = small(mlp=SineLowRank(2), attention=SineLowRank(2))
    assert [n for n, m in both.named_modules() if type(m) is nn.Linear] == ["head"]


def test_a_block_by_hand():
    block = small().blocks[0].double()
    x = torch.randn(1, 3, 32, dtype=torch.float64)
    h = block.norm1(x)[0]
    q, k, v = (part.view(3, 4, 8) for part in block.attention.qkv(h).chunk(3, -1))
    mixed = torch.empty(3, 4, 8, dtype=torch.float64)
    for head in range(4):
        share = (q[:, head] @ k[:, head].T / 8**0.5).softmax(-1)
        mixed[:, head] = share @ v[:, head]
    y = x[0] + block.attention.proj(mixed.reshape(3, 32))
    y = y + block.mlp.fc2(nn.functional.gelu(block.mlp.fc1(block.norm2(y))))
    torch.testing.assert_close(block(x)[0], y)


def test_patches_are_told_apart_by_their_place():
    model = small().eval()
    image = torch.zeros(1, 1, 8, 8)
    image[..., :4, :4] = 1
    assert not torch.allclose(model(image), model(image.flip(-1)), atol=1e-4)


@pytest.mark.parametrize("options", [{"image_size": 9}, {"width": 30}])
def test_sizes_that_do_not_divide(options):
    with pytest.raises(ValueError, match="must be a multiple"):
        small(**options)
