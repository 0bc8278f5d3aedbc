"""The peer's side of `against_anomalib.py`; runs in the peer's own environment, imports nothing of blemish.

Prints one JSON line: seconds to fit, seconds to score, peak memory. Scores and maps go to an npz file.
"""

from __future__ import annotations

import argparse
import json
import logging
import resource
import tempfile
import warnings
from pathlib import Path
from time import perf_counter

import torch

warnings.filterwarnings("ignore")
if torch.version.cuda is None:  # torchvision from PyPI is built against CUDA; its import needs these two declarations
    library = torch.library.Library("torchvision", "DEF")
    library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

import numpy as np  # noqa: E402
from anomalib.data import Folder  # noqa: E402
from anomalib.engine import Engine  # noqa: E402
from anomalib.models import Padim, Patchcore  # noqa: E402
from anomalib.models.components.sampling import KCenterGreedy  # noqa: E402
from lightning.pytorch import seed_everything  # noqa: E402


def by_one_product(self: KCenterGreedy, cluster_center: torch.Tensor) -> None:
    """Its distances as |x|^2 - 2 x.c + |c|^2: the same picks up to rounding, without three passes over all patches."""
    if self.min_distances is None:
        self.squares = self.features.square().sum(dim=1)
        self.min_distances = torch.full((len(self.features), 1), torch.inf)
    center = self.features[cluster_center].squeeze()
    squared = torch.addmv(self.squares, self.features, center, alpha=-2).add_(center.square().sum()).clamp_min_(0)
    torch.minimum(self.min_distances, squared[:, None].sqrt_(), out=self.min_distances)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("method", choices=["padim", "patchcore"])
    parser.add_argument("data", type=Path)
    parser.add_argument("weights", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--ratio", type=float, default=0.01)
    parser.add_argument("--one-product", action="store_true")
    options = parser.parse_args()
    if options.one_product:
        KCenterGreedy.update_distances = by_one_product
    logging.getLogger("lightning").setLevel(logging.ERROR)
    seed_everything(options.seed)

    kinds = sorted(p.name for p in (options.data / "test").iterdir() if p.name != "good")
    data = Folder(
        name="data",
        root=options.data,
        normal_dir="train/good",
        normal_test_dir="test/good",
        abnormal_dir=[f"test/{kind}" for kind in kinds],
        val_split_mode="same_as_test",  # it cannot fit without a validation set; one batch of it is run
        num_workers=2,
    )
    # Nothing that the task does not need: no thresholds, no metrics, no pictures. Raw scores come out.
    bare = {"pre_trained": False, "post_processor": False, "evaluator": False, "visualizer": False}
    if options.method == "padim":
        model = Padim(backbone="resnet18", **bare)
    else:
        layers = ("layer2", "layer3")
        model = Patchcore(backbone="resnet18", layers=layers, coreset_sampling_ratio=options.ratio, **bare)
    weights = torch.load(options.weights, weights_only=True)
    missing, _ = model.model.feature_extractor.feature_extractor.load_state_dict(weights, strict=False)
    assert not [name for name in missing if not name.endswith("num_batches_tracked")], missing
    with tempfile.TemporaryDirectory() as folder:
        engine = Engine(
            accelerator="cpu",
            devices=1,
            logger=False,
            default_root_dir=folder,
            enable_progress_bar=False,
            limit_val_batches=1,
            num_sanity_val_steps=0,
        )
        data.setup()
        start = perf_counter()
        engine.fit(model=model, datamodule=data)
        fit = perf_counter() - start
        start = perf_counter()
        batches = engine.predict(model=model, dataloaders=data.test_dataloader(), return_predictions=True)
        score = perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    names = [path for batch in batches for path in batch.image_path]
    scores = torch.cat([batch.pred_score.reshape(-1) for batch in batches])
    maps = torch.cat([batch.anomaly_map.reshape(-1, *batch.anomaly_map.shape[-2:]) for batch in batches])
    np.savez(options.out, names=np.array(names), scores=scores.numpy(), maps=maps.numpy().astype(np.float32))
    print(json.dumps({"fit": fit, "score": score, "images": len(names), "peak_bytes": peak}))


if __name__ == "__main__":
    main()
