"""What the teachers of Uninformed Students know without students: distances of their descriptors to normal ones.

    python benchmarks/teachers.py mvtec_ad/screw --patches 17 33 65
    python benchmarks/teachers.py mtd --resize 128 --every 3
    python benchmarks/teachers.py mtd --patches 33 --apart 4 --resize 128 --train 800 --every 3 --methods padim \
        --model mtd.blemish --say errors
    BLEMISH_WEIGHTS=weights python benchmarks/teachers.py mvtec_ad/screw --patches 65 --apart 16 --of resnet18

`patchcore` keeps `--count` descriptors of the normal images (the nearest one says how unusual a place is), `padim` a
Gaussian at each position. Descriptors lie `--apart` pixels from each other; maps are not smoothed. Where these maps are
better than the students', the students lose what the teacher knows; where not, the teacher does not know it. `--of`
asks the network that the teachers learned from, crop by crop as in their training: what could be known. `--model`, a
file that `benchmarks/students.py` wrote, asks its students (`--say answers`), or their errors (`--say errors`).
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, pad

from blemish import Detector, PaDiM, PatchCore, Preprocess, Students, evaluate, open_dataset
from blemish.features.backbones import custom_backbone, find_backbone
from blemish.features.descriptors import PatchDescriptor, find_descriptor
from blemish.features.extract import build_extractor
from blemish.features.weights import find_weights


class Teacher(nn.Module):
    """Descriptors of a teacher, `(batch, 128, h, w)`; pixels are in [0, 1], as it normalises them itself."""

    def __init__(self, teacher: PatchDescriptor, apart: int) -> None:
        super().__init__()
        self.teacher, self.out, self.apart = teacher, nn.Identity(), apart

    def forward(self, pixels: Tensor) -> Tensor:
        first, step = (self.apart - 1) // 2, self.apart // self.teacher.stride
        fields = self.teacher.padded(pixels)[:, :, first:, first:]
        found: Tensor = self.out(self.teacher.inside(fields, dense=False)[:, :, ::step, ::step])
        return found


class Taught(Teacher):
    """The mean answer of students, or its error, as `Teacher` gives the teacher's."""

    def __init__(self, model: Path, patch: int, apart: int, *, errors: bool) -> None:
        method = Detector.load(model).method
        assert isinstance(method, Students)
        scale = method.scales_[patch]
        super().__init__(scale.teacher, apart)
        self.scale, self.errors = scale, errors

    def forward(self, pixels: Tensor) -> Tensor:
        first, step = (self.apart - 1) // 2, self.apart // self.teacher.stride
        fields = self.teacher.padded(pixels)[:, :, first:, first:]
        parts = (
            self.scale._residuals(fields, dense=False)
            if self.errors
            else [student.inside(fields, dense=False) for student in self.scale._students()]
        )
        found: Tensor = self.out(torch.stack(parts).mean(dim=0)[:, :, ::step, ::step])
        return found


class Original(nn.Module):
    """What the network P says of each crop, as the teachers learned it: its map, averaged."""

    def __init__(self, backbone: str, tap: str, patch: int, *, apart: int, side: int) -> None:
        super().__init__()
        row = find_backbone(backbone)
        self.network, self.out = build_extractor(row, weights=find_weights(row), taps=(tap,)), nn.Identity()
        self.patch, self.apart, self.side = patch, apart, (side, side)

    def forward(self, pixels: Tensor) -> Tensor:
        around, first = self.patch // 2, (self.apart - 1) // 2
        padded = pad(pixels, (around,) * 4, mode="reflect")[:, :, first:, first:]
        crops = padded.unfold(2, self.patch, self.apart).unfold(3, self.patch, self.apart)
        batch, _, rows, columns = crops.shape[:4]
        parts = crops.permute(0, 2, 3, 1, 4, 5).flatten(0, 2).split(64)
        answers = [
            self.network(interpolate(part, self.side, mode="bilinear")).maps[0].mean(dim=(2, 3)) for part in parts
        ]
        found: Tensor = self.out(torch.cat(answers).unflatten(0, (batch, rows, columns)).permute(0, 3, 1, 2))
        return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--patches", type=int, nargs="+", default=[17, 33, 65])
    parser.add_argument("--weights", type=Path, help="folder of teachers; default: the built-in ones")
    parser.add_argument("--of", help="ask this backbone instead, such as resnet18")
    parser.add_argument("--tap", default="layer3", help="of --of")
    parser.add_argument(
        "--side", type=int, default=64, help="to which --of enlarges a crop; of the built-in teachers 64"
    )
    parser.add_argument("--model", type=Path, help="ask the students of this file instead")
    parser.add_argument("--say", choices=["answers", "errors"], default="errors", help="of --model")
    parser.add_argument("--apart", type=int, default=8, help="pixels, a multiple of 8 for p = 65, of 4 for p = 33")
    parser.add_argument("--methods", nargs="+", choices=["patchcore", "padim"], default=["patchcore", "padim"])
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--resize", type=int, default=256)
    parser.add_argument("--train", type=int, default=80, help="most normal images to learn from")
    parser.add_argument("--every", type=int, default=1, help="score every so many of the test images")
    options = parser.parse_args()
    torch.set_num_threads(1)
    dataset = open_dataset(options.data)
    dataset = replace(dataset, test=dataset.test[:: options.every])
    images = dataset.train_images()
    every = -(-len(images) // options.train)
    images = images.subset(list(range(0, len(images), every)))
    for patch in options.patches:
        if not options.of and options.apart % find_descriptor(patch, options.weights).stride:
            parser.error(f"--apart {options.apart}: expected a multiple of 8 for p = 65, of 4 for p = 33")
        network: nn.Module
        if options.of:
            network = Original(options.of, options.tap, patch, apart=options.apart, side=options.side)
        elif options.model:
            network = Taught(options.model, patch, options.apart, errors=options.say == "errors")
        else:
            network = Teacher(find_descriptor(patch, options.weights), options.apart)
        row = custom_backbone(network.eval(), taps=("out",), name=f"p{patch}", mean=(0, 0, 0), std=(1, 1, 1))
        for name in options.methods:
            method = (
                PatchCore(backbone=row, patches="single", count=options.count, sigma=0, top_share=0)
                if name == "patchcore"
                else PaDiM(backbone=row, reduction="none", sigma=0)
            )
            detector = Detector(method=method, preprocess=Preprocess(options.resize), calibration="none").fit(images)
            found = evaluate(detector, dataset).figures
            shown = {key: getattr(found, key) for key in ("image_auroc", "pixel_auroc", "au_pro_30")}
            text = "  ".join(f"{key} {value:.3f}" for key, value in shown.items() if value is not None)
            print(f"{options.data.name}  p = {patch}  {name:9}  {len(images)} images  {text}", flush=True)


if __name__ == "__main__":
    main()
