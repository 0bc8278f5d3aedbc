"""The HTML report: one file, right numbers, right order, nothing unescaped, and nothing odd that breaks it."""

from __future__ import annotations

import base64
import io
import re
from copy import copy
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from blemish import Detector, PaDiM, Preprocess, evaluate, open_dataset, write_report
from blemish.errors import OutputError
from blemish.report import figures as draw

EVIL = "<b>x&.png"
DASH = "\N{EN DASH}"


class Page(HTMLParser):
    """What a reader meets: `text`, every tag with its attributes, and the text of the cards by section."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.files: dict[str, list[str]] = {}
        self.badges: dict[str, list[str]] = {}
        self._inside: list[str] = []
        self.feed(html)
        self.text = re.sub(r"\s+", " ", " ".join(self.words))

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self._inside.append((dict(attributes).get("class") or tag).split()[0])

    def handle_data(self, data):
        inside = self._inside[-1] if self._inside else ""
        if inside == "style" or not data.strip():
            return
        self.words.append(data.strip())
        if inside == "h3":
            self._section = data.strip()
        if inside in ("file", "badge"):
            store = self.files if inside == "file" else self.badges
            store.setdefault(self._section, []).append(data.strip())

    def handle_endtag(self, tag):
        if self._inside:
            self._inside.pop()

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))


VOID = {"meta", "img", "br", "link", "input"}


def parse(path):
    # HTMLParser does not know that void tags never close.
    html = path.read_text(encoding="utf-8")
    return Page(re.sub(rf"<({'|'.join(VOID)})\b([^>]*[^/>])?>", r"<\1\2/>", html))


def picture(rng, *, defect=None, size=64):
    """A noisy grey surface; `defect` is the contrast of a bright square."""
    pixels = np.clip(rng.normal(110, 12, (size, size, 3)), 0, 255)
    if defect is not None:
        pixels[20:36, 24:40] = np.clip(pixels[20:36, 24:40] + defect, 0, 255)
    return Image.fromarray(pixels.astype(np.uint8))


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """30 normal training images; 5 + 8 + 4 test images, masks at twice the scale, an evil file name and odd kinds."""
    rng, root = np.random.default_rng(0), tmp_path_factory.mktemp("data")
    mask = np.zeros((128, 128), np.uint8)
    mask[40:72, 48:80] = 255
    names = {
        "train/good": [f"{i:02}.png" for i in range(30)],
        "test/good": [*(f"n{i}.png" for i in range(4)), "n<i>.png"],
        "test/a$^^$": [*(f"s{i}.png" for i in range(7)), EVIL],
        "test/裂纹": [f"c{i}.png" for i in range(4)],
    }
    for folder, files in names.items():
        (root / folder).mkdir(parents=True)
        for number, name in enumerate(files):
            contrast = {"test/a$^^$": 4 * max(0, number - 3), "test/裂纹": 30}.get(folder)
            picture(rng, defect=contrast).save(root / folder / name)
            if contrast is not None:
                target = root / folder.replace("test", "ground_truth") / name.replace(".png", "_mask.png")
                target.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(mask).save(target)
    return root


@pytest.fixture(scope="module")
def detector(root):
    settings = {"preprocess": Preprocess(64), "held_out": 0.34, "false_alarm_rate": 0.2, "on_error": "skip"}
    return Detector(method=PaDiM(backbone="filters"), **settings).fit(open_dataset(root).train_images())


@pytest.fixture(scope="module")
def evaluation(detector, root):
    return evaluate(detector, open_dataset(root), intervals=True, repetitions=2)


@pytest.fixture
def few(monkeypatch):
    """A small gallery, to write a page quickly."""
    for part, count in {"MISSES": 3, "FALSE_ALARMS": 1, "DETECTIONS": 2}.items():
        monkeypatch.setattr(f"blemish.report.evaluation.{part}", count)


@pytest.fixture
def short(evaluation):
    """Four records of both classes, to write a page quickly."""
    return replace(evaluation, records=evaluation.records[6:10], maps=evaluation.maps[6:10])


@pytest.fixture(scope="module")
def written(evaluation, tmp_path_factory):
    path = tmp_path_factory.mktemp("out") / "report.html"
    assert write_report(evaluation, str(path), title="<i>Tiles</i> & co", facts={"Seed": "<0>"}) == path
    return path


@pytest.fixture(scope="module")
def page(written):
    return parse(written)


def percent(value):
    return f"{100 * value:.1f}\N{NO-BREAK SPACE}%"


def test_is_one_file_that_fetches_nothing(written, page):
    assert [p.name for p in written.parent.iterdir()] == ["report.html"]
    links = [a[key] for _, a in page.tags for key in ("src", "href", "srcset", "data", "action") if key in a]
    assert len(links) > 20
    assert all(link.startswith("data:image/") for link in links)
    html = written.read_text(encoding="utf-8")
    assert not re.search(r"https?://|url\(|@import|<script|<link", html)


def test_every_picture_decodes_and_has_an_alternative_text(page):
    images = [attributes for tag, attributes in page.tags if tag == "img"]
    for attributes in images:
        assert attributes["alt"]
        with Image.open(io.BytesIO(base64.b64decode(attributes["src"].split(",", 1)[1]))) as image:
            image.load()


def test_verdict_and_figures_are_those_of_the_evaluation(evaluation, page):
    figures = evaluation.figures
    found = round((1 - figures.misses) * figures.n_anomalous)
    alarms = round(figures.false_alarms * figures.n_normal)
    assert 0 < found < 12  # both kinds of verdict occur, so that a mix-up shows
    assert found != alarms
    assert f"it flags {found} of 12 anomalous images and {alarms} of 5 normal images." in page.text
    assert f"Image AUROC {percent(figures.image_auroc)}" in page.words
    for label, name in {
        "Image AUROC": "image_auroc", "Average precision, anomalous": "average_precision",
        "Average precision, normal": "average_precision_normal", "False alarms at 95\xa0% found": "fpr_at_95_tpr",
        "Misses": "misses", "F1": "f1", "AU-PRO up to 30\xa0%": "au_pro_30", "AU-PRO up to 5\xa0%": "au_pro_05",
        "Pixel AUROC": "pixel_auroc", "F1 of an oracle": "f1_max_oracle",
    }.items():  # fmt: skip
        assert page.words[page.words.index(label) + 1] == percent(getattr(figures, name)), label


def test_intervals_are_printed_beside_their_figures(evaluation, page):
    assert len(evaluation.intervals) == 14
    for name, (low, high) in evaluation.intervals.items():
        value = percent(getattr(evaluation.figures, name))
        printed = [page.words[i + 1] for i, word in enumerate(page.words[:-1]) if word == value]
        assert f"{100 * low:.1f} {DASH} {percent(high)}" in printed, name


def test_gallery_shows_mistakes_in_order(evaluation, page):
    records = sorted(evaluation.records, key=lambda record: record.decision.score)
    anomalous = [r for r in records if r.sample.anomalous]
    normal = [r for r in records if not r.sample.anomalous]
    assert page.files["Worst misses"] == [r.sample.path.name for r in anomalous]
    assert page.badges["Worst misses"] == ["found" if r.decision.is_anomalous else "missed" for r in anomalous]
    assert page.files["Worst false alarms"] == [r.sample.path.name for r in normal[::-1]]
    shown = page.files["Typical detections"]
    assert len(shown) == 4
    assert len(set(shown)) == 4
    assert set(shown) <= {r.sample.path.name for r in anomalous if r.decision.is_anomalous}


@pytest.mark.usefixtures("few")
def test_gallery_is_cut_to_the_worst(evaluation, tmp_path):
    files = parse(write_report(evaluation, tmp_path / "r.html", title="t")).files
    records = sorted(evaluation.records, key=lambda record: record.decision.score)
    assert files["Worst misses"] == [r.sample.path.name for r in records if r.sample.anomalous][:3]
    assert files["Worst false alarms"] == [r.sample.path.name for r in records if not r.sample.anomalous][-1:]
    assert len(files["Typical detections"]) == 2


def test_names_are_text_and_never_markup(written, page):
    html = written.read_text(encoding="utf-8")
    assert EVIL in page.files["Worst misses"]
    assert "&lt;b&gt;x&amp;.png" in html
    assert not re.search(r"<b>|<i>Tiles|n<i>|<0>", html)
    assert {"<i>Tiles</i> & co", "<0>", "a$^^$", "裂纹"} <= set(page.words)


def test_a_name_that_is_not_utf_8_does_not_stop_the_report(short, tmp_path):
    odd = replace(short, skipped=(("bad\udcff.png", "damaged <b>"),))
    text = parse(write_report(odd, tmp_path / "r.html", title="t")).text
    assert "bad\\udcff.png : damaged <b>" in text
    assert "1 skipped" in text


@pytest.mark.usefixtures("few")
def test_uncalibrated(detector, root, tmp_path):
    uncalibrated = copy(detector)
    uncalibrated.calibration_ = None
    evaluation = evaluate(uncalibrated, open_dataset(root))
    page = parse(write_report(evaluation, tmp_path / "r.html", title="t"))
    assert "The detector was not calibrated" in page.text
    assert f"Misses {DASH} " in page.text
    assert "Not computed: the detector was not calibrated" in page.text
    assert "it flags" not in page.text
    assert not page.badges
    assert "95 % interval" not in page.text.replace("\xa0", " ")
    assert draw.scale_of(evaluation).threshold is None


@pytest.mark.usefixtures("few")
def test_image_level_method(evaluation, tmp_path):
    blank = dict.fromkeys(("pixel_auroc", "au_pro_30", "au_pro_05"))
    images = replace(evaluation, maps=None, figures=replace(evaluation.figures, **blank), intervals={})
    page = parse(write_report(images, tmp_path / "r.html", title="t"))
    assert "Not computed: the method judges whole images and makes no maps." in page.text
    assert "There are no heat maps" in page.text
    assert not [a for tag, a in page.tags if tag == "img" and (a["alt"] or "").startswith("Heat map")]
    assert len(page.files["Worst misses"]) == 3


@pytest.mark.parametrize("anomalous", [True, False])
@pytest.mark.usefixtures("few")
def test_one_class_only(detector, root, tmp_path, anomalous):
    dataset = open_dataset(root)
    dataset = replace(dataset, test=tuple(s for s in dataset.test if s.anomalous == anomalous))
    page = parse(write_report(evaluate(detector, dataset), tmp_path / "r.html", title="t"))
    missing, there = ("normal", "anomalous") if anomalous else ("anomalous", "normal")
    assert f"No image AUROC: there are no {missing} test images." in page.text
    assert re.search(rf"it flags \d+ of \d+ {there} images\.", page.text)
    assert not [a for tag, a in page.tags if tag == "img" and (a["alt"] or "").startswith("ROC")]


def test_no_readable_image_at_all(detector, root, tmp_path):
    (tmp_path / "bad.png").write_bytes(b"not an image")
    dataset = open_dataset(root)
    dataset = replace(dataset, test=(replace(dataset.test[0], path=tmp_path / "bad.png"),))
    evaluation = evaluate(detector, dataset)
    page = parse(write_report(evaluation, tmp_path / "r.html", title="t"))
    assert "No test image could be read." in page.text
    assert "not an image, or of a format that is not read" in page.text


@pytest.mark.usefixtures("few")
def test_files_that_are_gone_leave_a_placeholder(evaluation, tmp_path):
    first, second, *rest = sorted(evaluation.records, key=lambda r: (not r.sample.anomalous, r.decision.score))
    order = [evaluation.records.index(r) for r in (first, second, *rest)]
    gone = replace(first, sample=replace(first.sample, path=tmp_path / "gone.png"))
    maskless = replace(second, sample=replace(second.sample, mask=tmp_path / "gone_mask.png"))
    changed = replace(evaluation, records=(gone, maskless, *rest), maps=evaluation.maps[order])
    page = parse(write_report(changed, tmp_path / "r.html", title="t"))
    assert page.files["Worst misses"][0] == "gone.png"
    assert page.text.count("The image file can no longer be read.") == 1
    assert page.text.count("The mask file can no longer be read.") == 1


def test_place_that_cannot_be_written(short, tmp_path):
    with pytest.raises(OutputError, match="expected a file in an existing folder"):
        write_report(short, tmp_path / "nowhere" / "r.html", title="t")


def test_old_report_stays_whole_where_the_new_one_fails(short, tmp_path, monkeypatch):
    path = tmp_path / "r.html"
    path.write_text("old")

    def fail(*_):
        raise OSError("no room")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OutputError, match="no room"):
        write_report(short, path, title="t")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["r.html"]


def test_threshold_is_half_way_on_the_scale(evaluation):
    scale = draw.scale_of(evaluation)
    threshold = evaluation.figures.threshold
    values = np.array([scale.low, threshold, scale.high, 10 * scale.high, np.nan])
    np.testing.assert_allclose(scale.place(values), [0, 0.5, 1, 1, np.nan], atol=1e-12)
    other = replace(evaluation, maps=evaluation.maps * 3)  # a method whose score is not the map's maximum
    assert draw.scale_of(other).threshold is None


def test_scale_reaches_strong_detections_and_no_weak_one_looks_strong(evaluation):
    normal = draw.scale_of(replace(evaluation, records=evaluation.records[8:13], maps=evaluation.maps[8:13]))
    assert normal.high == pytest.approx(2 * normal.threshold - normal.low)
    scale = draw.scale_of(evaluation)
    assert scale.high > 60
    assert scale.place(np.array([0.5 * (scale.threshold + scale.high)])) == pytest.approx(0.75)


def test_each_tile_has_its_own_map(evaluation):
    colour = {}
    for name in ("c0.png", "n1.png"):
        index = [record.sample.path.name for record in evaluation.records].index(name)
        tile = draw.tile(evaluation, index, scale=draw.scale_of(evaluation), side=64)
        assert tile.photo.size == tile.heat.size == (64, 64)
        red, _, blue = tile.heat.getpixel((32, 28))
        colour[name] = red - blue
    assert colour["c0.png"] > 80
    assert abs(colour["n1.png"]) < 20


def test_kinds_too_many_for_the_score_plot_share_a_row(evaluation, monkeypatch):
    monkeypatch.setattr(draw, "MAX_KINDS", 2)
    assert [(name, int(chosen.sum())) for name, chosen in draw._rows(evaluation)] == [
        ("good", 5),
        ("2 other kinds", 12),
    ]
    assert draw.score_plot(evaluation).startswith(b"\x89PNG")


def test_blind_border_is_hatched_and_never_coloured():
    photo = Image.new("RGB", (40, 40), (90, 90, 90))
    map = np.full((40, 40), 9.0)
    map[:, :10] = np.nan
    pixels = np.asarray(draw.overlay(photo, map, scale=draw.Scale(0.0, 10.0, 5.0))).astype(int)
    assert np.ptp(pixels[:, :10], axis=2).max() == 0
    assert len(np.unique(pixels[:, :10])) == 2
    assert np.ptp(pixels[:, 12:], axis=2).min() > 60


def test_outline_surrounds_the_mask_at_any_scale():
    photo = Image.new("RGB", (50, 50))
    mask = np.zeros((200, 200), dtype=bool)
    mask[80:120, 80:120] = True
    pixels = np.asarray(draw.outline(photo, mask))
    drawn = np.argwhere((pixels == draw.OUTLINE).all(axis=2))
    assert drawn.min() == 19
    assert drawn.max() == 30
    assert not pixels[20:30, 20:30].any()
    assert np.asarray(draw.outline(photo, mask & False)).max() == 0


def test_deep_grey_images_are_shown_in_their_own_range(evaluation, tmp_path):
    Image.fromarray((np.arange(64 * 64, dtype=np.uint16)).reshape(64, 64)).save(tmp_path / "deep.png")
    record = evaluation.records[0]
    deep = replace(record, sample=replace(record.sample, path=tmp_path / "deep.png"))
    tile = draw.tile(replace(evaluation, records=(deep, *evaluation.records[1:])), 0, scale=None)
    assert tile.photo.mode == "RGB"
    assert tile.photo.getextrema()[0][1] > 250


def test_only_the_exact_ends_are_printed_as_ends(short, tmp_path):
    shares = {"image_auroc": 0.9997, "average_precision": 1.0, "fpr_at_95_tpr": 1e-5, "f1": 0.0}
    changed = replace(short, figures=replace(short.figures, **shares), intervals={})
    words = parse(write_report(changed, tmp_path / "r.html", title="t")).words
    assert "Image AUROC > 99.9\xa0%" in words
    for label, text in {
        "Average precision, anomalous": "100.0",
        "False alarms at 95\xa0% found": "< 0.1",
        "F1": "0.0",
    }.items():
        assert words[words.index(label) + 1] == f"{text}\xa0%"
