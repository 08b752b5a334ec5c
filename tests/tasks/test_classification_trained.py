"""A classifier that begins with trained weights: taken once, fitted, averaged, and back from a checkpoint."""

import pytest
import torch
from torchvision import models
from toy import quiet_trainer

from sinelr_lightning.callbacks import EMA
from sinelr_lightning.datamodules import DigitsData
from sinelr_lightning.errors import UserError
from sinelr_lightning.layers import Dense, LowRank, SineLowRank
from sinelr_lightning.runs import load_task
from sinelr_lightning.tasks import ClassificationTask


def task(**options):
    return ClassificationTask(**{"linear": SineLowRank(2), **options})


@pytest.fixture
def library(monkeypatch):
    """torchvision with trained weights of one network; the list tells when they were asked for."""
    torch.manual_seed(1)
    known = models.mobilenet_v3_small(num_classes=10)
    asked = []

    def get_model(name, weights=None, **options):
        asked.append(weights is not None)
        network = models.mobilenet_v3_small(num_classes=10)
        if weights is not None:
            network.load_state_dict(known.state_dict())
        return network

    monkeypatch.setattr(models, "get_model", get_model)
    return known, asked


MOBILE = {"network": "mobilenet_v3_small", "network_args": None, "include": ["classifier.0"], "pretrained": True}
CLASSIFIER = "network.classifier.0"


def fit_once(folder, one, **options):
    trainer = quiet_trainer(folder, max_steps=1, limit_val_batches=0, num_sanity_val_steps=0, **options)
    trainer.fit(one, DigitsData(image_size=32, batch_size=8, epoch_steps=1))
    trainer.save_checkpoint(folder / "run.ckpt")
    return trainer


def test_a_run_begins_with_the_trained_weights_and_fits_them(tmp_path, library):
    known, asked = library
    one = task(linear=LowRank(64), init="fit", **MOBILE)
    assert asked == [False], "a task is made without weights: a checkpoint brings them"
    fit_once(tmp_path, one)
    assert asked == [False, True]
    wanted = known.classifier[0].weight
    U, S, V = torch.linalg.svd(wanted)
    best = U[:, :64] * S[:64] @ V[:64]
    # One step of AdamW moves an entry by at most its rate (of the warm-up, a hundredth of it).
    torch.testing.assert_close(one.network.classifier[0].weight, best, rtol=0, atol=1e-3)
    torch.testing.assert_close(one.network.features[0][0].weight, known.features[0][0].weight, rtol=0, atol=1e-4)


@pytest.mark.parametrize("options", [{"linear": SineLowRank(8), "init": "fit"}, {"init": "fit", "budget": 0.7}])
def test_what_was_fitted_comes_back_from_its_checkpoint(tmp_path, library, options):
    one = task(**options, calibration_batches=1, **MOBILE)
    fit_once(tmp_path, one)
    layer, images = one.network.classifier[0], torch.randn(2, 3, 32, 32)
    quiet_trainer(tmp_path).test(one, DigitsData(image_size=32), verbose=False)
    assert one.network.classifier[0] is layer, "trained weights are taken once"
    again = load_task(tmp_path / "run.ckpt")
    quiet_trainer(tmp_path).test(again, DigitsData(image_size=32), verbose=False)
    assert again.network.classifier[0].factorization == layer.factorization
    torch.testing.assert_close(again(images), one.eval()(images))
    resumed = task(**options, calibration_batches=1, **MOBILE)
    resumed.from_checkpoint = True
    trainer = quiet_trainer(tmp_path, max_steps=2, limit_val_batches=0, num_sanity_val_steps=0)
    trainer.fit(resumed, DigitsData(image_size=32, batch_size=8, epoch_steps=1), ckpt_path=tmp_path / "run.ckpt")
    assert library[1].count(True) == 1, "a run that goes on has its weights from the checkpoint"
    assert resumed.global_step == 2


def test_the_average_is_of_what_was_fitted(tmp_path, library):
    one = task(linear=SineLowRank(8), init="fit", **MOBILE)
    fit_once(tmp_path, one, callbacks=[EMA(decay=0.5)])
    stored = torch.load(tmp_path / "run.ckpt", weights_only=True)
    assert stored["state_dict"].keys() == stored["current_model_state"].keys()
    assert f"{CLASSIFIER}.hyper.gain" in stored["state_dict"]
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(load_task(tmp_path / "run.ckpt")(images), one.eval()(images))


def test_dense_stays_as_its_library_made_it(tmp_path, library):
    known, _ = library
    one = task(linear=Dense(), init="fit", **MOBILE)
    fit_once(tmp_path, one)
    torch.testing.assert_close(one.network.classifier[0].weight, known.classifier[0].weight, rtol=0, atol=1e-3)


def test_trained_weights_that_cannot_be_had(tmp_path, monkeypatch):
    def offline(name, weights=None, **options):
        if weights is not None:
            raise OSError("Name or service not known")
        return models.mobilenet_v3_small(**options)

    monkeypatch.setattr(models, "get_model", offline)
    one = task(**MOBILE)
    with pytest.raises(UserError, match=r"cannot be had \(Name or service not known\); put them into"):
        quiet_trainer(tmp_path).fit(one, DigitsData(image_size=32))
