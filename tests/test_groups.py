"""Images that belong together: which they are, that they stay on one side, and what the promise is worth then."""

from __future__ import annotations

from fractions import Fraction
from itertools import permutations, product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from blemish import Detector, PaDiM, Preprocess, from_arrays
from blemish.calibrate import calibrate, conformal_p_values
from blemish.datasets.layouts import open_dataset
from blemish.errors import ArgumentError, CalibrationError, DatasetError
from blemish.evaluation.detector import evaluate, evaluation_json
from blemish.images.digest import contents, pixel_digest, with_digests
from blemish.images.groups import find_groups, hold_out, join_groups
from blemish.images.source import as_source, from_paths
from blemish.promises import require_images
from blemish.report.evaluation import write_report
from contract.laws import normal_pixels
from test_detector import NORMAL, TEST, arrays

scored = st.lists(st.tuples(st.sampled_from([0.0, 0.5, 1.0, 2.0, 7.0]), st.integers(0, 5)), min_size=6, max_size=40)


def naive_p_value(scores, groups, score):
    """The formula in loops and exact fractions."""
    total = Fraction(1)
    for group in set(groups):
        own = [s for s, g in zip(scores, groups, strict=True) if g == group]
        total += Fraction(sum(s >= score for s in own), len(own))
    return total / (len(set(groups)) + 1)


@given(scored, st.sampled_from([0.2, 1 / 3, 0.5, 0.7]))
def test_p_values_and_threshold_of_groups(pairs, rate):
    scores, groups = zip(*pairs, strict=True)
    if len(set(groups)) < np.ceil(1 / rate):
        with pytest.raises(CalibrationError, match="held-out groups of normal images, there are"):
            require_images(0, rate, of="groups of normal images")
        return
    calibration = calibrate(scores, false_alarm_rate=rate, groups=groups)
    for score in np.arange(-0.25, 8, 0.25):
        expected = naive_p_value(scores, groups, score)
        assert calibration.p_value(score) == pytest.approx(float(expected), rel=1e-12)
        assert (score > calibration.threshold) == (float(expected) <= rate + 1e-12)


def test_one_image_a_group_is_as_without_groups():
    scores = np.random.default_rng(0).normal(size=50).round(1)
    plain = calibrate(scores, false_alarm_rate=0.05)
    grouped = calibrate(scores, false_alarm_rate=0.05, groups=np.random.default_rng(1).permutation(50))
    assert grouped.groups is None
    assert (grouped.threshold, grouped.n_groups) == (plain.threshold, plain.n_groups)
    values = np.linspace(-3, 3, 40)
    np.testing.assert_array_equal(conformal_p_values(scores, values, groups=range(50)), plain.p_values(values))


@pytest.mark.parametrize("rate", [Fraction(1, 4), Fraction(1, 3), Fraction(1, 2)])
def test_the_promise_holds_exactly_for_one_image_of_a_new_group(rate):
    """All orders of four groups of sizes 1 to 4, and each image of the last: an average, not a draw."""
    groups = [[5.0], [1.0, 9.0], [2.0, 6.0, 7.0], [3.0, 4.0, 8.0, 9.5]]
    alarms, cases = Fraction(0), 0
    for *known, new in permutations(groups):
        scores = [s for group in known for s in group]
        labels = [i for i, group in enumerate(known) for _ in group]
        calibration = calibrate(scores, false_alarm_rate=float(rate), groups=labels)
        alarms += Fraction(sum(s > calibration.threshold for s in new), len(new))
        cases += 1
    assert 0 < alarms / cases <= rate


def test_bursts_break_the_promise_that_counts_images_and_not_the_one_that_counts_groups():
    """Twenty bursts of 1 or 20 images that are nearly alike; long ones have higher scores. 2 000 draws, fixed seed."""
    random, alarms = np.random.default_rng(0), {"images": 0.0, "groups": 0.0}
    for _ in range(2000):
        sizes = random.choice([1, 20], size=25)
        centres = random.gamma(2.0, size=25) + (sizes == 1)
        bursts = [c + 0.01 * random.normal(size=n) for c, n in zip(centres, sizes, strict=True)]
        scores, labels = np.concatenate(bursts[:24]), np.repeat(np.arange(24), sizes[:24])
        for kind, groups in (("images", None), ("groups", labels)):
            calibration = calibrate(scores, false_alarm_rate=0.1, groups=groups)
            alarms[kind] += float(np.mean(bursts[24] > calibration.threshold)) / 2000
    assert alarms["groups"] < 0.1 + 4 * np.sqrt(0.1 * 0.9 / 2000)
    assert alarms["images"] > 0.13


def test_groups_must_be_one_number_a_score():
    with pytest.raises(ArgumentError, match="groups: expected 3 whole numbers, one a score"):
        calibrate([1.0, 2.0, 3.0], false_alarm_rate=0.5, groups=[0, 1])


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=12))
def test_whatever_shares_a_key_is_one_group(rows):
    found = join_groups(*zip(*rows, strict=True))
    linked = {(i, j) for i, j in product(range(len(rows)), repeat=2) if any(map(int.__eq__, rows[i], rows[j]))}
    for middle, i, j in product(range(len(rows)), repeat=3):
        if (i, middle) in linked and (middle, j) in linked:
            linked.add((i, j))
    assert all((found[i] == found[j]) == ((i, j) in linked) for i, j in product(range(len(rows)), repeat=2))
    assert sorted(set(found)) == list(range(max(found) + 1))


@pytest.mark.parametrize("fraction", [0.2, 0.5])
def test_the_draw_is_as_before_where_nothing_belongs_together(fraction):
    source = from_arrays(NORMAL)
    rest, held_out = hold_out(range(40), fraction, seed=3)
    before = source.split(fraction, seed=3)
    assert (source.subset(rest).names, source.subset(held_out).names) == (before[0].names, before[1].names)


def write(folder, name, array, **options):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)
    return path


def test_a_pattern_and_a_function_name_the_same_groups():
    paths = ["train/good/part1_a.png", "train/good/part1_b.png", "train/good/part2_a.png"]
    source = from_arrays(NORMAL[:3], names=paths)
    assert find_groups(source, paths, r"part(\d)") == [0, 0, 1]
    assert find_groups(source, paths, lambda path: path.split("_")[0]) == [0, 0, 1]
    assert find_groups(source, paths, r"_(\w)\.") == [0, 1, 0]
    with pytest.raises(ArgumentError, match="group_by: expected a regular expression with a group in parentheses"):
        find_groups(source, paths, "part")
    with pytest.raises(ArgumentError, match=r"group_by: expected a pattern that is found in every path.*part2_a"):
        find_groups(source, paths, "part(1)")
    with pytest.raises(ArgumentError, match="group_by: expected a regular expression, got '\\('"):
        find_groups(source, paths, "(")


def test_contents_go_by_the_bytes_of_files_and_by_the_pixels_of_arrays(tmp_path):
    one, same = write(tmp_path, "a.png", NORMAL[0]), write(tmp_path, "b.png", NORMAL[0])
    other, gone = write(tmp_path, "c.png", NORMAL[1]), tmp_path / "gone.png"
    keys = list(contents(from_paths([one, same, other, gone])))
    assert keys[0] == keys[1]
    assert len(set(keys)) == 3
    keys = list(contents(from_arrays([NORMAL[0], NORMAL[1], NORMAL[0]])))
    assert keys[0] == keys[2] != keys[1]


def test_digests_see_shape_type_and_values():
    pictures = [np.zeros((4, 6), np.uint8), np.zeros((6, 4), np.uint8), np.zeros((4, 6), np.int8)]
    assert len({pixel_digest(picture) for picture in [*pictures, np.eye(4, 6, dtype=np.uint8)]}) == 4
    source, known = with_digests(from_arrays(NORMAL[:3]))
    assert known == {}
    source.subset([2]).load(0)
    assert known == {"image 2": pixel_digest(as_source(NORMAL[2]).load(0))}


SETTINGS = {"method": PaDiM(backbone="filters"), "preprocess": Preprocess(32), "false_alarm_rate": 0.2}


def test_groups_are_held_out_whole_and_kept_in_the_file(tmp_path):
    names = [f"part{i // 2}/{i}.png" for i in range(40)]
    seen = []
    detector = Detector(**SETTINGS, group_by=lambda path: seen.append(path) or path.split("/")[0])
    detector.fit(from_arrays(NORMAL, names=names))
    assert seen == names
    assert detector.calibration_.n_groups == 4
    assert sorted(np.bincount(detector.calibration_.groups)) == [2, 2, 2, 2]
    detector.save(tmp_path / "m.blemish")
    again = Detector.load(tmp_path / "m.blemish").calibration_
    np.testing.assert_array_equal(again.groups, detector.calibration_.groups)
    assert again.threshold == detector.calibration_.threshold
    assert detector.recalibrate(0.25).calibration_.n_groups == 4
    with pytest.raises(CalibrationError, match="at least 19 held-out groups of normal images, there are 4"):
        detector.recalibrate(0.05)
    with pytest.raises(CalibrationError, match="at least 4 held-out groups of normal images, there are 0"):
        Detector(**SETTINGS, group_by=lambda path: path[0]).fit(from_arrays(NORMAL, names=names))


def test_paths_are_seen_from_the_folder_of_the_data_set(tmp_path):
    for i, array in enumerate(NORMAL):
        write(tmp_path, f"train/good/{i // 2}/{i}.png", array)
    seen = []
    Detector(**SETTINGS, group_by=lambda path: seen.append(path) or path.split("/")[2]).fit(tmp_path)
    assert seen[:2] == ["train/good/0/0.png", "train/good/0/1.png"]


def test_copies_of_a_picture_are_on_one_side():
    """Each picture twice: without groups 6 or 7 of 8 held-out ones would have been learned as well."""
    detector = Detector(**SETTINGS).fit([*NORMAL, *NORMAL])
    assert detector.calibration_.n_groups == 8
    assert len(detector.calibration_.scores) == 16
    assert not detector.learned_ & detector.calibrated_on_
    assert (len(detector.learned_), len(detector.calibrated_on_)) == (32, 8)


def test_copies_in_files_of_another_kind_do_not_count(tmp_path, caplog):
    for i, array in enumerate(NORMAL):
        write(tmp_path, f"{i}.png", array)
        write(tmp_path, f"{i} again.bmp", array)
    detector = Detector(**SETTINGS, held_out=0.5).fit(tmp_path)
    assert not detector.learned_ & detector.calibrated_on_
    kept = len(detector.calibration_.scores)
    assert detector.calibration_.n_groups == len(detector.calibrated_on_) == kept / 2
    assert f"{40 - kept} held-out pictures were learned as well" in caplog.text


def test_equal_scores_make_no_threshold(tmp_path):
    class Blind(PaDiM):
        def score(self, batch):
            scores = super().score(batch)
            return type(scores)(scores.images * 0 + 3, scores.maps)

    with pytest.raises(CalibrationError, match=r"all 8 held-out normal images have the score 3"):
        Detector(**SETTINGS | {"method": Blind(backbone="filters")}).fit(NORMAL)


def test_excluded_images_are_not_learned_and_are_counted(tmp_path):
    for i, array in enumerate(NORMAL):
        write(tmp_path, f"train/good/{i}.png", array)
    detector = Detector(**SETTINGS).fit(tmp_path, exclude=["train/good/3.png", str(tmp_path / "train/good/5.png")])
    assert (detector.excluded_, detector.images_, len(detector.calibration_.scores)) == (2, 30, 8)
    assert pixel_digest(as_source(NORMAL[3]).load(0)) not in detector.learned_ | detector.calibrated_on_
    detector.save(tmp_path / "m.blemish")
    assert Detector.load(tmp_path / "m.blemish").excluded_ == 2
    with pytest.raises(ArgumentError, match=r"exclude: expected names of normal training images, got train/good/99"):
        detector.fit(tmp_path, exclude=["train/good/99.png"])


@pytest.fixture(scope="module")
def leaky(tmp_path_factory):
    """One test image was learned, another one set the threshold."""
    root = tmp_path_factory.mktemp("leaky")
    for i, array in enumerate(NORMAL):
        write(root, f"train/good/{i:02}.png", array)
    for i, array in enumerate(TEST):
        write(root, f"test/{'good' if i < 3 else 'bad'}/{i}.png", array)
    _, held_out = as_source(NORMAL).split(0.2, seed=0)
    second = int(held_out.names[0].split()[1])
    first = next(i for i in range(40) if f"image {i}" not in held_out.names)
    write(root, "test/good/8.bmp", NORMAL[first])
    write(root, "test/good/9.bmp", NORMAL[second])
    return root


def test_evaluate_refuses_what_was_learned(leaky, tmp_path):
    detector = Detector(**SETTINGS).fit(leaky)
    detector.save(tmp_path / "m.blemish")
    detector, dataset = Detector.load(tmp_path / "m.blemish"), open_dataset(leaky)
    with pytest.raises(DatasetError, match=r"8\.bmp: the model learned from this picture, or has its threshold"):
        evaluate(detector, dataset)
    evaluation = evaluate(detector, dataset, allow_overlap=True)
    assert [name[-5:] for name in evaluation.overlap] == ["8.bmp", "9.bmp"]
    assert evaluation_json(evaluation)["overlap"] == 2
    page = write_report(evaluation, tmp_path / "r.html", title="t").read_text("utf-8")
    assert "The model had seen 2 test images of 7 when it was fitted" in page


def test_a_pattern_is_checked_before_anything_is_opened():
    with pytest.raises(ArgumentError, match=r"group_by: expected a regular expression, got '\('"):
        Detector(**SETTINGS, group_by="(").check()


def test_update_compares_held_out_pictures_before_it_learns(caplog):
    detector = Detector(**SETTINGS).fit(NORMAL[:30])
    scores = [decision.score for decision in detector.predict(TEST)]
    with pytest.raises(CalibrationError, match="there are 3"):
        detector.update(NORMAL[30:35], held_out=NORMAL[32:38])
    assert [decision.score for decision in detector.predict(TEST)] == scores
    detector.update(NORMAL[30:33], held_out=NORMAL[32:])
    assert "1 held-out pictures are learned as well: they do not count." in caplog.text
    assert detector.calibration_.n_groups == 7
    assert not detector.learned_ & detector.calibrated_on_


def test_update_forgets_the_held_out_pictures_and_keeps_the_learned_ones():
    detector = Detector(**SETTINGS).fit(NORMAL[:30])
    learned = detector.learned_
    more = arrays(normal_pixels(8, 11))
    detector.update(more, held_out=NORMAL[30:])
    assert detector.learned_ == learned | {pixel_digest(as_source(array).load(0)) for array in more}
    assert detector.calibrated_on_ == {pixel_digest(as_source(array).load(0)) for array in NORMAL[30:]}
