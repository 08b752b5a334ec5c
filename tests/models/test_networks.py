import pytest
import torch
from torchvision import models

from sinelr_lightning.models import VisionTransformer, image_network


def test_ours_and_torchvisions_by_name():
    assert isinstance(image_network("vit", 7, arguments={"image_size": 8, "patch_size": 4}), VisionTransformer)
    resnet = image_network("resnet18", 7)
    assert resnet(torch.randn(2, 3, 32, 32)).shape == (2, 7)


def test_trained_weights_are_kept_and_a_head_of_another_size_is_drawn_anew(monkeypatch):
    trained = models.resnet18(num_classes=1000)
    asked = []
    monkeypatch.setattr(models, "get_model", lambda name, weights, **_: asked.append(weights) or trained)
    network = image_network("resnet18", 7, pretrained=True)
    assert asked[0] is not None and network.conv1 is trained.conv1 and network.fc.out_features == 7
    head = image_network("resnet18", 7, pretrained=True).fc
    assert head is network.fc  # it has the size already


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("resnet8", {}, "unknown network 'resnet8'.*resnet"),
        ("vit", {"pretrained": True}, "no trained weights of our compact vit"),
        ("vit", {"arguments": {"widht": 3}}, "widht"),
        ("raft_large", {}, "unknown network"),  # torchvision's, but no classifier
        ("googlenet", {}, "googlenet has auxiliary heads"),
    ],
)
def test_what_cannot_be_made(name, options, words):
    with pytest.raises(ValueError, match=words):
        image_network(name, 10, **options)


def test_a_library_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r'pip install -e "\.\[vision\]"'):
        image_network("timm/vit_tiny_patch16_224", 10)


def test_a_network_has_the_form_of_its_trained_weights_without_them():
    with torch.device("meta"):
        assert image_network("vit_h_14", 10, of_trained=True).image_size == 518
        assert image_network("vit_h_14", 10).image_size == 224
        assert image_network("vit_b_16", 10, of_trained=True, arguments={"image_size": 32}).image_size == 32


def test_a_trained_network_without_a_linear_head_is_refused(monkeypatch):
    monkeypatch.setattr(models, "get_model", lambda name, weights, **_: models.squeezenet1_1())
    with pytest.raises(ValueError, match="squeezenet1_1 has no linear head"):
        image_network("squeezenet1_1", 10, pretrained=True)
