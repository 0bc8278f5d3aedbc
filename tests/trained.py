"""Every method with settings that take a moment; for those that train, a tiny classifier with BatchNorm."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from blemish.features.backbones import custom_backbone
from blemish.features.descriptors import PatchDescriptor, write_descriptor
from blemish.methods import METHODS, FeatureMethod
from blemish.training.pictures import Pictures
from contract.laws import Images, batch

CLASSES = 3


class Classifier(nn.Module):
    """Three stages with strides 4, 8 and 16, and a linear layer at the end."""

    def __init__(self, seed=0):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            for name, (given, width, stride) in zip("abc", [(3, 6, 4), (6, 8, 2), (8, 10, 2)], strict=True):
                stage = nn.Sequential(nn.Conv2d(given, width, 5, stride, 2), nn.BatchNorm2d(width), nn.ReLU())
                stage[1].running_mean.copy_(0.1 * torch.randn(width))
                stage[1].running_var.copy_(torch.rand(width) + 0.5)
                setattr(self, name, stage)
            self.head = nn.Linear(10, CLASSES)

    def forward(self, x):
        return self.head(self.c(self.b(self.a(x))).mean(dim=(2, 3)))


NET = custom_backbone(Classifier(), taps=("a", "b", "c"), trace_size=32)


def varied_pixels(n, seed, size=(24, 24)):
    """Noise, in another light for each image."""
    random = torch.Generator().manual_seed(seed)
    return torch.rand(n, 3, *size, generator=random) * torch.rand(n, 3, 1, 1, generator=random)


class Killed(BaseException):
    """Like the signal, but within the process."""


def check_resumes(make, train, test, path, *, step):
    """A fit that dies at a step and is begun again with its checkpoint scores like one that did not."""
    expected = make().fit(Images(train)).score(batch(test)).images
    draw = Pictures.draw

    def die(self, now, size, *, seed):
        if now == step:
            raise Killed
        return draw(self, now, size, seed=seed)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Pictures, "draw", die)
        with pytest.raises(Killed):
            make(checkpoint=str(path)).fit(Images(train))
    torch.randn(5)  # a new process has another random state
    again = make(checkpoint=str(path)).fit(Images(train))
    assert torch.equal(again.score(batch(test)).images, expected)


def write_reference(path):
    """Nine labelled images, `.npz`."""
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (9, 24, 24, 3), dtype=np.uint8)
    images[:, :, :, 0] //= 1 + np.arange(9)[:, None, None].astype(np.uint8) % CLASSES
    np.savez(path, images=images, labels=np.arange(9) % CLASSES)
    return str(path)


def write_teachers(folder):
    """Small teachers with random weights, and the folder that they are in."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        for patch in (17, 33, 65):
            write_descriptor(PatchDescriptor(patch, width=0.05), folder / f"descriptor{patch}.safetensors")
    return str(folder)


_FOLDER = Path(tempfile.mkdtemp(prefix="blemish-"))
atexit.register(shutil.rmtree, _FOLDER, ignore_errors=True)
REFERENCE = write_reference(_FOLDER / "reference.npz")
TEACHERS = write_teachers(_FOLDER)
TINY = {
    "cflow": {"backbone": "filters", "blocks": 2, "condition": 4, "positions": 64, "steps": 10, "rate": 1e-2},
    "students": {"weights": TEACHERS, "steps": 4, "grid": 6},
    "gaussian_finetune": {"backbone": NET, "epochs": 1},
    "panda": {"backbone": NET, "epochs": 2, "batch": 8},
    "mean_shifted": {"backbone": NET, "epochs": 1},
    "deep_svdd": {"backbone": NET, "epochs": 2, "side": 8},
    "geom": {"backbone": NET, "epochs": 12, "side": 8, "shift": 0.0, "batch": 16},
    "joint": {"backbone": NET, "epochs": 1, "batch": 8, "reference": REFERENCE},
}
"""Parameters with which a fit of a method that trains takes a moment."""


def quick(name, **parameters):
    """A method that learns in a moment, without weights of others."""
    return METHODS[name](**{**TINY.get(name, {"backbone": "filters"}), **parameters})


def reads_features(name):
    return issubclass(METHODS[name], FeatureMethod) and METHODS[name]().reads_features
