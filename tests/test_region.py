"""What is outside the region of interest is neither learned nor scored, for every method and however it is said."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import conv2d
from typer.testing import CliRunner

from blemish import KNN, SPADE, CFlow, Detector, PaDiM, PatchCore, Preprocess, Students, Subspace
from blemish.augment.changes import draw_change
from blemish.choosing import choose as home
from blemish.choosing.candidates import Candidate
from blemish.choosing.choose import compare
from blemish.cli import app
from blemish.datasets.layouts import open_dataset
from blemish.datasets.region import Region
from blemish.errors import ArgumentError, DatasetError, ImageError, ModelFileError
from blemish.evaluation.detector import evaluate
from blemish.features.descriptors import find_descriptor
from blemish.images.source import Batches, as_source
from blemish.methods import cflow
from blemish.metrics import au_pro, pixel_auroc, pixel_average_precision, pixel_curve
from blemish.ops.maps import mean_of_highest
from blemish.report.facts import facts
from blemish.report.figures import scale_of, tile

SIZE = 48
INSIDE = np.zeros((SIZE, SIZE), bool)
INSIDE[8:40, 4:28] = True


def good(seed, *, outside=0):
    """A texture inside; something else outside, which `outside` draws."""
    y, x = np.mgrid[:SIZE, :SIZE]
    base = 120 + 30 * np.sin(x / 2 + seed % 3) + 30 * np.sin(y / 2)
    picture = base[..., None] + np.random.default_rng(seed).normal(0, 5, (SIZE, SIZE, 3))
    clutter = np.random.default_rng([seed, outside]).integers(0, 255, (SIZE, SIZE, 3))
    return np.where(INSIDE[..., None], picture.clip(0, 255), clutter).astype(np.uint8)


def bad(seed, top, left, *, outside=0):
    picture = good(seed, outside=outside)
    picture[top : top + 8, left : left + 8] = 255
    return picture


def make(method=None, **settings):
    settings = {"calibration": "none", "preprocess": Preprocess(SIZE), "roi": INSIDE} | settings
    return Detector(method=method or PaDiM(backbone="filters", dimensions=8), **settings)


def scored(detector, picture):
    (decision,) = detector.predict(picture)
    return decision.score, None if decision.map is None else decision.map.tobytes()


METHODS = {
    "padim": lambda: PaDiM(backbone="filters", dimensions=8),
    "padim, share": lambda: PaDiM(backbone="filters", dimensions=8, top_share=0.02),
    "patchcore": lambda: PatchCore(backbone="filters", ratio=0.1, reweight=3),
    "spade": lambda: SPADE(backbone="filters", k=3, top_share=0.0),
    "subspace": lambda: Subspace(backbone="filters", variance=0.9),
    "knn": lambda: KNN(backbone="filters"),
    "cflow": lambda: CFlow(backbone="filters", steps=2, positions=16, blocks=2, condition=8, validation=0.3),
    "students": lambda: Students(patches=(17,), steps=2, students=2, dense=False),
}


@pytest.mark.parametrize(("name", "tile"), [*((name, None) for name in METHODS), ("patchcore", 32), ("knn", 32)])
def test_nothing_outside_reaches_a_number(name, tile):
    """Of two models of the same insides, each in another clutter, none tells pictures apart by theirs."""
    one, other = (
        make(METHODS[name](), tile=tile).fit([good(i, outside=clutter) for i in range(6)]) for clutter in (0, 1)
    )
    assert scored(one, good(100)) == scored(other, good(100, outside=7))
    (decision,) = one.predict(good(100))
    assert decision.map is None or np.array_equal(np.isnan(decision.map), ~INSIDE)


def test_a_method_that_is_chosen_looks_inside_alone(monkeypatch):
    """What is known of a picture already keeps its region, and no change that chooses is drawn outside."""
    pictures = [good(i) for i in range(32)]
    row = [Candidate(PatchCore(backbone="filters", ratio=0.1), Preprocess(SIZE))]
    batches = Batches(as_source(pictures), Preprocess(SIZE), 4, region=Region(INSIDE))
    inside = compare(batches, row)[1].batch(batches.source.names[5:7]).inside
    assert torch.equal(inside, torch.from_numpy(INSIDE).expand(2, -1, -1))
    drawn = []

    def watched(*args, **settings):
        drawn.append(draw_change(*args, **settings))
        return drawn[-1]

    monkeypatch.setattr(home, "draw_change", watched)
    make().choose(pictures, row)
    assert not any(mask[~torch.from_numpy(INSIDE)].any() for _, mask in drawn)
    assert sum(bool(mask.any()) for _, mask in drawn) > 0.9 * len(drawn)


def test_tiles_outside_are_neither_learned_nor_scored():
    corner = np.zeros((64, 64), bool)
    corner[4:28, 4:28] = True
    random = np.random.default_rng(0)
    pictures = [random.integers(0, 255, (64, 64, 3), dtype=np.uint8) for _ in range(5)]
    tiled = make(KNN(backbone="filters"), preprocess=Preprocess(64), tile=32, overlap=0, roi=corner).fit(pictures)
    assert len(tiled.method_.bank_) == 5
    alone = make(KNN(backbone="filters"), preprocess=Preprocess(32), roi=corner[:32, :32])
    alone.fit([picture[:32, :32] for picture in pictures])
    other = random.integers(0, 255, (64, 64, 3), dtype=np.uint8)
    assert scored(tiled, other)[0] == pytest.approx(scored(alone, other[:32, :32])[0], rel=1e-5)


def test_a_defect_outside_alarms_without_a_region_and_not_with_one():
    pictures = [good(i) for i in range(40)]
    with_roi = make(PatchCore(backbone="filters", ratio=0.1), calibration="split", held_out=0.5).fit(pictures)
    assert next(with_roi.predict(bad(100, 12, 8))).is_anomalous
    before, after = (next(with_roi.predict(picture)) for picture in (good(100), bad(100, 12, 36)))
    assert not after.is_anomalous
    assert before.score == after.score


def test_what_fills_the_outside_is_not_learned_as_a_patch():
    """It would be normal anywhere then, also where a part is missing and its plain holder is to be seen."""
    pictures = [good(i) for i in range(3)]
    bank = make(PatchCore(backbone="filters", ratio=1.0)).fit(pictures).method_.bank_.vectors()
    assert len(bank) == 3 * cells(8).sum()
    found = make(SPADE(backbone="filters", k=3)).fit(pictures).method_
    (batch,) = Batches(as_source(pictures), Preprocess(SIZE), 3)
    every = found.extractor_(_grey_outside(batch.pixels)).maps[0].permute(0, 2, 3, 1).flatten(1, 2)
    gallery, inside = found.gallery_[0], torch.from_numpy(cells(4).ravel())
    assert torch.equal(gallery[:, inside], every[:, inside])
    assert torch.equal(gallery[:, ~inside], every[:, [int(cells(4).argmax())]].expand(-1, int((~inside).sum()), -1))


@pytest.mark.parametrize("scale", ["position", "global"])
def test_flows_learn_what_is_inside_alone(scale):
    """Vectors and scaling are as if each image were its inside, whatever is around it."""
    method = CFlow()
    maps = torch.rand(4, 3, 6, 5, generator=torch.Generator().manual_seed(0))
    inside = torch.rand(4, 6, 5, generator=torch.Generator().manual_seed(1)) < 0.5
    if scale == "position":
        inside = inside[:1].expand(4, -1, -1)
    layer = cflow._Layer(maps, inside)
    vectors, positions = layer.draw(torch.tensor([0, 2]), 200, torch.Generator().manual_seed(2))
    learned = [(i, p) for i in (0, 2) for p in inside[i].flatten().nonzero()[:, 0].tolist()]
    known = {(float(maps[i, 0, p // 5, p % 5]), p) for i, p in learned}
    assert set(zip(vectors[:, 0].tolist(), positions.tolist(), strict=True)) == known
    changed = cflow._Layer(torch.where(inside[:, None], maps, 1e6), inside)
    one, other = (method._scaling(scale, of, torch.arange(4)) for of in (layer, changed))
    if scale == "position":
        one, other = one[:, inside[0].flatten()], other[:, inside[0].flatten()]
    assert torch.equal(one, other)


@pytest.mark.parametrize("patch", [33, 17])
def test_students_learn_from_fields_with_the_region_in_the_middle(patch):
    """Every crop has some; loss, targets and errors are those of these fields alone, found one by one."""
    scale = Students(patches=(patch,), students=1, grid=3)._scale(find_descriptor(patch, None))
    pixels = _grey_outside(torch.from_numpy(good(0)).movedim(2, 0).float() / 255)
    picture = torch.cat([pixels, torch.from_numpy(INSIDE)[None]])[None]
    field, stride = scale.teacher.field, scale.teacher.stride
    for seed in range(5):
        crop = scale.crop(picture, torch.Generator().manual_seed(seed))
        outputs = (
            scale.teacher.inside(crop[:, :3], dense=False)[0],
            scale.students[0].inside(crop[:, :3], dense=False)[0],
        )
        counted = []
        for row, column in np.ndindex(*outputs[0].shape[1:]):
            top, left = (stride * at + (field - 1) // 2 - (stride - 1) // 2 for at in (row, column))
            if crop[0, 3, top : top + stride, left : left + stride].any():
                counted.append(tuple(of[:, row, column].detach() for of in outputs))
        expected = sum(float((student - teacher).square().sum()) for teacher, student in counted) / len(counted)
        assert float(scale.loss(crop, hard=None).detach()) == pytest.approx(expected, rel=1e-4)
    scale.round()
    scale.fit_errors([picture], by_position=False)
    errors = scale.errors(pixels[None], dense=False)[0, 0]
    kept = torch.from_numpy(INSIDE).unfold(0, stride, stride).unfold(1, stride, stride).flatten(2).any(dim=2)
    assert float(scale.error_mean[0]) == pytest.approx(
        float(errors[: len(kept), : kept.shape[1]][kept].mean()), rel=1e-4
    )
    scale.fit_residuals([picture])
    middles = scale.teacher.padded(pixels[None])[:, :, (stride - 1) // 2 :, (stride - 1) // 2 :]
    with torch.no_grad():
        whitened = conv2d(scale._residuals(middles, dense=False)[0], scale.residual_factor, scale.residual_shift)[0]
    of_region = whitened[:, : len(kept), : kept.shape[1]][:, kept].mean(dim=1)
    torch.testing.assert_close(of_region, torch.zeros(128), rtol=0, atol=1e-3)


def cells(stride):
    """Which positions of a map have a pixel of the region."""
    return INSIDE.reshape(SIZE // stride, stride, SIZE // stride, stride).any(axis=(1, 3))


def _grey_outside(pixels):
    return torch.where(torch.from_numpy(INSIDE), pixels, 127 / 255)


def test_an_image_score_is_made_inside():
    maps = torch.arange(18.0).reshape(2, 3, 3)
    inside = torch.zeros(2, 3, 3, dtype=bool)
    inside[0, 0] = inside[1, 1, 1] = True
    assert mean_of_highest(maps, 0.0, inside).tolist() == [2.0, 13.0]
    assert mean_of_highest(maps, 0.67, inside).tolist() == [1.5, 13.0]
    assert mean_of_highest(maps, 0.0, inside & False).tolist() == [-torch.inf] * 2


def test_levels_outside_say_nothing_of_the_white_level(tmp_path):
    def deep(seed, lamp):
        levels = np.round(good(seed).mean(axis=2) * (1023 / 255)).astype(np.uint16)
        levels[~INSIDE] = lamp
        return levels

    one = make(preprocess=Preprocess(SIZE, white_level="auto")).fit([deep(i, 0) for i in range(8)])
    other = make(preprocess=Preprocess(SIZE, white_level="auto")).fit([deep(i, 65535) for i in range(8)])
    assert one.preprocessing.white_level == other.preprocessing.white_level == 1023
    assert scored(one, deep(100, 5)) == scored(other, deep(100, 65535))


def test_pictures_of_one_colour_inside_are_not_learned():
    flat = good(0)
    flat[INSIDE] = 90
    with pytest.raises(ImageError, match="all its pixels have one colour"):
        make().fit([good(1), flat])


# How a region is said, and kept


def test_a_mask_polygons_and_an_array_are_one_region(tmp_path):
    Image.fromarray(INSIDE.astype(np.uint8) * 255).resize((2 * SIZE, 2 * SIZE), 0).save(tmp_path / "roi.png")
    polygon = [[4, 8], [27, 8], [27, 39], [4, 39]]
    (tmp_path / "roi.json").write_text(json.dumps({"size": [SIZE, SIZE], "polygons": [polygon]}))
    for source in (tmp_path / "roi.png", str(tmp_path / "roi.json"), INSIDE, INSIDE.astype(np.uint8), Region(INSIDE)):
        assert np.array_equal(Region.read(source).of("a.png", (SIZE, SIZE)), INSIDE)


def test_the_model_file_keeps_the_region(tmp_path):
    detector = make().fit([good(i) for i in range(12)])
    detector.save(tmp_path / "m.blemish")
    loaded = Detector.load(tmp_path / "m.blemish")
    assert scored(loaded, bad(100, 12, 36)) == scored(detector, good(100, outside=3))
    loaded.save(tmp_path / "again.blemish")
    assert (tmp_path / "again.blemish").read_bytes() == (tmp_path / "m.blemish").read_bytes()


@pytest.mark.parametrize(
    "state",
    [
        {"region.size": [SIZE, SIZE], "region.bits": [1]},
        {"region.size": [4, -2], "region.bits": [1]},
        {"region.size": [4], "region.bits": [1]},
        {"region.size": [2, 4], "region.bits": [0]},
        {"region.other": [1]},
    ],
)
def test_a_forged_region_is_refused(tmp_path, state):
    from blemish import persist

    tensors = {name: torch.tensor(v, dtype=torch.uint8 if "bits" in name else torch.int64) for name, v in state.items()}
    detector = make(roi=None).fit([good(i) for i in range(12)])
    kept = {f"method.{name}": tensor for name, tensor in detector.method_.state().items()}
    persist.save(tmp_path / "m.blemish", kept | tensors, detector.manifest())
    with pytest.raises(ModelFileError):
        Detector.load(tmp_path / "m.blemish")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "expected a JSON object"),
        ('{"size": [9, 9], "polygons": [[[1, 2], [3, 4]]]}', "at least 3 points"),
        ('{"size": [0, 9], "polygons": []}', "at least 3 points"),
        ('{"size": [9, 9], "polygons": []}', "got an empty one"),
    ],
)
def test_polygons_that_say_nothing_are_refused(tmp_path, text, message):
    (tmp_path / "roi.json").write_text(text)
    with pytest.raises(ArgumentError, match=message):
        make(roi=tmp_path / "roi.json").fit([good(0)])


def test_a_region_of_another_shape_or_nothing_is_refused():
    with pytest.raises(DatasetError, match=r"of image 0, \(48, 48\) \(as EXIF turns it\), got \(48, 20\)"):
        make(roi=INSIDE[:, :20]).fit([good(0)])
    with pytest.raises(ArgumentError, match="expected a bool or uint8 array"):
        make(roi=np.zeros((4, 4))).fit([good(0)])
    corner = np.zeros((SIZE, SIZE), bool)
    corner[0, :2] = True
    with pytest.raises(DatasetError, match="nothing of its region of interest is left"):
        make(roi=corner, preprocess=Preprocess(64, 32)).fit([good(0)])


@pytest.fixture
def parts(tmp_path):
    """A data set whose parts lie here or there, and a region for each picture."""
    for place, count in (("train/good", 8), ("test/good", 3), ("test/hole", 3)):
        for i in range(count):
            seed = {"train/good": i, "test/good": 100 + i, "test/hole": 200 + i}[place]
            picture = bad(seed, 12, 8, outside=i) if "hole" in place else good(seed, outside=i)
            for root, array in (("data", picture), ("roi", INSIDE.astype(np.uint8) * 255)):
                path = tmp_path / root / place / f"{i}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(np.roll(array, 12 * (i % 2), axis=1)).save(path)
            if "hole" in place:
                mask = np.zeros((SIZE, SIZE), np.uint8)
                mask[12:20, 8:16] = 255
                mask[44:48, 44:48] = 255  # outside the region: no pixel figure counts it
                path = tmp_path / "data/ground_truth/hole" / f"{i}_mask.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(np.roll(mask, 12 * (i % 2), axis=1)).save(path)
    return tmp_path


def test_one_region_a_picture_figures_inside_and_the_page(parts):
    dataset = open_dataset(parts / "data")
    detector = make(PatchCore(backbone="filters", ratio=0.2), roi=parts / "roi").fit(parts / "data")
    detector.save(parts / "m.blemish")
    assert facts(detector)["Region of interest"] == "one for each image"
    evaluation = evaluate(detector, dataset)
    pairs = []
    for i, record in enumerate(evaluation.records):
        region = np.roll(INSIDE, 12 * (int(record.sample.path.stem) % 2), axis=1)
        map = evaluation.map(i)
        assert np.array_equal(~np.isnan(map), region)
        mask = np.zeros_like(region) if record.sample.mask is None else np.asarray(Image.open(record.sample.mask)) > 0
        pairs.append((map[region], mask[region]))
    scores, labels = (np.concatenate(part) for part in zip(*pairs, strict=True))
    above = (scores[labels][:, None] > scores[~labels]) + 0.5 * (scores[labels][:, None] == scores[~labels])
    assert evaluation.figures.pixel_auroc == pytest.approx(above.mean())
    assert evaluation.figures.image_auroc == 1.0
    shown = tile(evaluation, 0, scale=scale_of(evaluation))
    white = (np.asarray(shown.heat) == 255).all(axis=2)
    assert white.any(axis=0).sum() > 100  # the outline
    loaded = Detector.load(parts / "m.blemish")
    with pytest.raises(DatasetError, match=r"expected an image in the folder of regions .* got no folder"):
        list(loaded.predict(dataset.test_images()))
    loaded.roi = parts / "roi"
    expected = [record.decision.score for record in evaluation.records]
    assert [decision.score for decision in loaded.predict(dataset.test_images())] == expected
    (parts / "roi/test/hole/0.png").unlink()
    with pytest.raises(DatasetError, match=r"roi of test/hole/0\.png: expected an image in the folder"):
        list(loaded.predict(dataset.test_images()))


def test_what_is_masked_out_of_a_map_counts_as_neither():
    random = np.random.default_rng(0)
    map, mask = random.normal(size=(9, 9)).astype(np.float32), random.random((9, 9)) < 0.3
    cut = pixel_curve([(map[:6, 2:], mask[:6, 2:]), (map[:6, 2:] + 1, None)])
    outside = np.ones((9, 9), bool)
    outside[:6, 2:] = False
    blind = np.where(outside, np.nan, map)
    masked = pixel_curve([(np.ma.MaskedArray(m, outside), m0) for m, m0 in ((blind, mask), (blind + 1, None))])
    for figure in (pixel_auroc, pixel_average_precision, au_pro):
        assert figure(masked) == figure(cut)


def test_the_command_line(parts):
    def run(*arguments):
        return CliRunner().invoke(app, list(map(str, arguments)))

    common = ("--backbone", "filters", "--resize", SIZE, "--calibration", "none")
    model, data, roi = parts / "m.blemish", parts / "data", parts / "roi"
    assert run("fit", data, "--roi", roi, "--out", model, *common).exit_code == 0
    judged = run("predict", model, data, "--roi", roi)
    assert judged.exit_code == 0
    assert sum('"score"' in line for line in judged.output.splitlines()) == 6
    Image.fromarray(INSIDE.astype(np.uint8) * 255).save(parts / "one.png")
    assert run("fit", data, "--roi", parts / "one.png", "--out", model, *common).exit_code == 0
    refused = run("predict", model, data, "--roi", roi)
    assert refused.exit_code == 1
    assert "none, as the model has its own" in str(refused.output) + str(refused.exception)


def test_a_picture_is_no_region(tmp_path):
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (24, 32), dtype=np.uint8)).save(tmp_path / "0.png")
    with pytest.raises(ArgumentError, match=r"0\.png: expected a mask: black outside, white where to look, got a pict"):
        Region.read(tmp_path / "0.png")
    with pytest.raises(ArgumentError, match=r"0\.png: expected a mask"):
        Region.read(tmp_path).of("0.jpg", (24, 32))
