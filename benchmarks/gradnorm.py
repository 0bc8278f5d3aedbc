"""Exact per-sample gradient norms side by side: the engine, a training step, chunked vmap, a loop, the published way.

    python benchmarks/gradnorm.py [--network resnet18] [--batch 16] [--device cpu] [--json FILE]

Random weights (time does not depend on them). Every contender runs in a fresh process, in turn, `--rounds` times; the
medians are compared. Memory is the peak of the process above that of the same process before the first pass.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path

import torch
from _measure import median_seconds, peak_bytes, run_json, write

from blemish.features.packages import import_torchvision
from blemish.images.preprocess import Preprocess
from blemish.ood import Classifier, Gradient
from blemish.ops.gradnorm import GradNorms, cross_entropy, per_sample_grad_norms

CONTENDERS = {
    "training step": "forward, mean cross-entropy, backward over all parameters, for the batch",
    "engine": "blemish.ops.gradnorm.GradNorms, all parameters, for the batch",
    "engine, first call": "the same through per_sample_grad_norms, which reads the network each time",
    "vmap": "torch.func.vmap(grad) in chunks of 4",
    "loop": "one image at a time: forward, backward, norm of all gradients",
    "method": "blemish's whole gradient method: perturb and score",
    "published method": "as the published code: batch 1, full backward twice, norms parameter by parameter",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="resnet18")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--contender", choices=CONTENDERS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.contender:
        return one(args)
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in CONTENDERS}
    for _ in range(args.rounds):
        for name in CONTENDERS:
            flags = ["--network", args.network, "--batch", str(args.batch), "--device", args.device]
            flags += ["--repeats", str(args.repeats), "--contender", name]
            rows[name].append(run_json([sys.executable, __file__, *flags]))
    found = {name: {key: statistics.median(r[key] for r in rs) for key in rs[0]} for name, rs in rows.items()}
    step, mib = found["training step"]["seconds"], 2**20 * args.batch
    for name, row in found.items():
        extra = (row["bytes"] - found["training step"]["bytes"]) / mib
        print(
            f"{name:20s} {1e3 * row['seconds'] / args.batch:8.1f} ms an image  {row['seconds'] / step:6.2f} training "
            f"steps  {extra:+7.1f} MiB an image against the training step"
        )
    ratio = found["method"]["seconds"] / found["published method"]["seconds"]
    print(f"engine against vmap {found['vmap']['seconds'] / found['engine']['seconds']:.2f}x, against the loop "
          f"{found['loop']['seconds'] / found['engine']['seconds']:.2f}x; method / published {ratio:.2f}")  # fmt: skip
    write(args.json, found)
    return None


def one(args: argparse.Namespace) -> None:
    torch.manual_seed(0)
    works = Works(args.network, args.batch, args.device)
    work = getattr(works, args.contender.replace(" ", "_").replace(",", ""))

    def synchronised() -> None:
        work()
        if args.device != "cpu":
            torch.cuda.synchronize()

    before = peak_bytes() if args.device == "cpu" else torch.cuda.memory_allocated()
    seconds = median_seconds(synchronised, args.repeats)
    after = peak_bytes() if args.device == "cpu" else torch.cuda.max_memory_allocated()
    print(json.dumps({"seconds": seconds, "bytes": after - before}))


class Works:
    """What the contenders do."""

    def __init__(self, network: str, batch: int, device: str) -> None:
        self.model = import_torchvision().models.get_model(network, weights=None).eval().to(device)
        self.pixels = torch.rand(batch, 3, 224, 224, device=device)
        self.classifier = Classifier(self.model, Preprocess(224), device=device)
        self.x = self.classifier.normalised(self.pixels)
        self.norms = GradNorms(self.model)

    def training_step(self) -> None:
        self.model.zero_grad()
        logits = self.model(self.x)
        torch.nn.functional.cross_entropy(logits, logits.argmax(1)).backward()

    def engine(self) -> None:
        self.norms.norms(self.x, cross_entropy())

    def engine_first_call(self) -> None:
        per_sample_grad_norms(self.model, self.x, cross_entropy())

    def vmap(self) -> None:
        values = {name: p.detach() for name, p in self.model.named_parameters()}
        state = dict(self.model.named_buffers())

        def loss(values: dict[str, torch.Tensor], image: torch.Tensor) -> torch.Tensor:
            logits = torch.func.functional_call(self.model, {**values, **state}, (image[None],))
            return torch.nn.functional.cross_entropy(logits, logits.argmax(1))

        def norm(image: torch.Tensor) -> torch.Tensor:
            return sum(g.square().sum() for g in torch.func.grad(loss)(values, image).values()).sqrt()

        torch.func.vmap(norm, chunk_size=4)(self.x)

    def loop(self) -> None:
        parameters = list(self.model.parameters())
        for image in self.x:
            logits = self.model(image[None])
            loss = torch.nn.functional.cross_entropy(logits, logits.argmax(1))
            gradients = torch.autograd.grad(loss, parameters)
            torch.stack([g.square().sum() for g in gradients]).sum().sqrt()

    def method(self) -> None:
        Gradient().score(self.classifier.outputs(self.pixels))

    def published_method(self) -> None:
        for image in self.x:
            moved = image[None].clone().requires_grad_()
            self._published_pass(moved)
            moved = (moved - 0.001 * moved.grad.sign()).detach()
            self._published_pass(moved)
            sum(p.grad.reshape(-1).cpu().norm().item() ** 2 for p in self.model.parameters())

    def _published_pass(self, image: torch.Tensor) -> None:
        self.model.zero_grad()
        logits = self.model(image) / 2
        torch.nn.functional.cross_entropy(logits, logits.argmax(1)).backward()


if __name__ == "__main__":
    main()
