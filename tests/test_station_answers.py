"""What a station says beside a verdict: why, of the part as a whole, and whether a period is a complete sample."""

from __future__ import annotations

import base64
import io
import time

import numpy as np
import pytest
from PIL import Image

from blemish.detector import Detector
from blemish.images.preprocess import Preprocess
from blemish.images.source import from_arrays
from blemish.methods import KNN, PaDiM
from blemish.parts import Parts
from blemish.report.lines import judged_part
from blemish.station.logbook import Logbook, Verdict
from blemish.station.together import judge_together
from blemish.types import Decision
from stations import defect, fitted, form, pictures, png, serving

GOOD = [png(array) for array in pictures(12, seed=50)]
PATTERN = r"(p\d+)_(c\d)"
KIND = "multipart/form-data; boundary=bound"


@pytest.fixture(scope="module")
def viewed():
    """A detector of parts with two views."""
    names = [f"p{number // 2}_c{number % 2}.png" for number in range(60)]
    detector = Detector(
        method=PaDiM(backbone="filters"), preprocess=Preprocess(32), false_alarm_rate=0.2, part_by=PATTERN,
        calibration="split",
    )  # fmt: skip
    return detector.fit(from_arrays(pictures(60), names=names))


@pytest.fixture(scope="module")
def running(viewed, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    fitted().save(folder / "small.blemish")
    viewed.save(folder / "viewed.blemish")
    plain = Detector(method=KNN(backbone="filters"), preprocess=Preprocess(32), false_alarm_rate=0.2)
    plain.fit(pictures(30)).save(folder / "plain.blemish")
    files = {name: folder / f"{name}.blemish" for name in ("small", "viewed", "plain")}
    with serving(files, tmp_path_factory.mktemp("store")) as found:
        yield found


def post(ask, *files, query="", name="viewed"):
    body = form(*((f"f{number}", *file) for number, file in enumerate(files)))
    return ask("POST", f"/v1/models/{name}/predict{query}", body, content_type=KIND)[1]


# Why


def crop(url):
    head, _, data = url.partition(",")
    assert head == "data:image/png;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))


@pytest.fixture
def fresh(tmp_path):
    """A station that nothing was asked of."""
    fitted().save(tmp_path / "small.blemish")
    with serving({"small": tmp_path / "small.blemish"}, tmp_path / "store") as found:
        yield found


def test_a_region_has_its_reason_and_the_nearest_normal_places(fresh):
    ask, _ = fresh
    (line,) = ask.predict(defect())[1]["results"]
    status, answer = ask("GET", f"/v1/verdicts/{line['id']}/reasons")
    assert (status, answer["error"][:10]) == (409, "No picture")  # there is nothing to compare with
    good = [ask.predict(content)[1]["results"][0] for content in GOOD]
    fine = next((one for one in good if one["anomalous"]), good[0])
    ask("POST", f"/v1/verdicts/{good[1]['id']}/feedback?said=defect")
    ask("POST", f"/v1/verdicts/{fine['id']}/feedback?said=fine")
    status, answer = ask("GET", f"/v1/verdicts/{line['id']}/reasons")
    assert status == 200
    (reason, *_) = answer["reasons"]
    assert reason["box"] == line["regions"][0]["box"]
    assert reason["p_value"] == line["regions"][0]["p_value"]
    places = reason["nearest"]
    assert len(places) == 3
    compared = {one["picture"] for one in good if one is fine or (one is not good[1] and not one["anomalous"])}
    assert answer["compared"] == len(compared)
    assert {place["picture"] for place in places} <= compared
    distances = [place["distance"] for place in places]
    assert distances == sorted(distances)
    assert {crop(place["crop"]).shape for place in places} == {crop(reason["crop"]).shape}
    assert {one["kind"] for one in reason["differences"]} & {"brighter", "darker", "rougher", "coarser"}
    assert all(one["words"] for one in reason["differences"])


def test_what_cannot_be_explained_says_why(running):
    ask, _ = running
    (line,) = ask.predict(GOOD[0], name="plain")[1]["results"]
    assert ask("GET", f"/v1/verdicts/{line['id']}/reasons")[1] == {"reasons": [], "compared": 0}
    assert ask("GET", "/v1/verdicts/99999/reasons")[0] == 404


# Parts


def test_a_model_of_parts_finds_them_in_the_names(running, viewed):
    ask, station = running
    answer = post(ask, ("p7_c0.png", GOOD[0]), ("p8_c0.png", GOOD[1]), ("p7_c1.png", defect()))
    decisions = list(viewed.predict(from_arrays([np.asarray(Image.open(io.BytesIO(one))) for one in
                                                 (GOOD[0], GOOD[1], defect())],
                                                names=["p7_c0.png", "p8_c0.png", "p7_c1.png"])))  # fmt: skip
    wanted = [judged_part(one) for one in viewed.judge_parts(decisions, [one.name for one in decisions])]
    assert [part["part"] for part in answer["parts"]] == ["p7", "p8"]
    for part, expected in zip(answer["parts"], wanted, strict=True):
        assert part["score"] == pytest.approx(expected["score"], rel=1e-4)
        assert {**part, "score": 0} == {**expected, "score": 0, "images": list(expected["images"])}
    first, second, third = answer["results"]
    assert (first["part"], second["part"], third["part"]) == ("p7", "p8", "p7")
    assert first["part_anomalous"] is third["part_anomalous"] is True
    assert second["part_anomalous"] is False
    assert station.logbook.verdict(first["id"])["part_p_value"] == answer["parts"][0]["p_value"]
    rows = ask("GET", "/v1/verdicts?part=p7")[1]["verdicts"]
    assert [row["image"] for row in rows] == ["p7_c1.png", "p7_c0.png"]


def test_the_caller_may_say_the_part(running):
    ask, _ = running
    (part,) = post(ask, ("p1_c0.png", GOOD[0]), ("p2_c1.png", GOOD[1]), query="?part=A-7")["parts"]
    assert (part["part"], part["images"]) == ("A-7", ["p1_c0.png", "p2_c1.png"])
    assert part["threshold"] is not None
    (other,) = post(ask, ("left.png", GOOD[0]), ("right.png", GOOD[1]), query="?part=A-7")["parts"]
    assert other["threshold"] is None  # of no view that it knows: Bonferroni
    assert "parts" not in post(ask, ("left.png", GOOD[0]), ("p2_c1.png", GOOD[1]))


def test_any_model_takes_the_least_p_value_times_the_number_of_pictures(running):
    ask, _ = running
    answer = post(ask, ("a", GOOD[0]), ("a", defect()), ("b", b"no picture"), query="?part=7", name="small")
    (part,) = answer["parts"]
    good = [row["p_value"] for row in answer["results"] if "error" not in row]
    assert part["p_value"] == pytest.approx(min(1, 2 * min(good)))
    assert part["images"] == ["a", "a"]
    assert part["threshold"] is None
    assert part["anomalous"] is (part["p_value"] <= part["false_alarm_rate"])
    assert "parts" not in post(ask, ("a", GOOD[0]), ("b", GOOD[1]), name="small")


def test_without_a_calibration_there_is_no_part():
    detector = fitted()
    detector.calibration_ = None
    assert judge_together(detector, [("a", Decision("a", 1.0, None, None, None))], part="7") == [None]
    assert judge_together(fitted(), [], part="7") == []


def test_bonferroni_is_that_of_parts():
    detector = fitted()
    calibration = detector.calibration_
    decisions = [("a", Decision("a", score, None, p, None)) for score, p in ((1.0, 0.3), (2.0, 0.05), (0.5, 0.9))]
    found = judge_together(detector, decisions, part="7")
    assert len({id(one) for one in found}) == 1
    assert (found[0].p_value, found[0].worst, found[0].score) == (pytest.approx(0.15), "a", 2.0)
    assert Parts({}, {}, calibration).most == {}


@pytest.mark.parametrize("calibration", ["split", "loo", "cross", "full"])
def test_every_calibration_judges_several_pictures_and_says_what_is_proven(calibration):
    detector = Detector(
        method=KNN(backbone="filters"),
        preprocess=Preprocess(32),
        false_alarm_rate=0.2,
        calibration=calibration,
        folds=4,
    ).fit(pictures(32))
    decisions = list(detector.predict(pictures(2, seed=7)))
    part, _ = judge_together(detector, [(one.name, one) for one in decisions], part="7")
    assert part.p_value == pytest.approx(min(1, 2 * min(one.p_value for one in decisions)))
    assert (part.threshold, part.promise.certain) == (None, None)
    n = len(detector.calibration_.scores)
    a = 0.2 * (n + 1) / 2  # of each picture
    proven = {"cross": (2 * (a - 1) + 8) / (n + 8), "loo": (2 * a - 1) / (n + 1)}.get(calibration, a / (n + 1))
    assert part.promise.guaranteed_rate == pytest.approx(2 * proven)


def test_a_rate_that_is_certain_of_one_picture_is_none_of_several():
    detector = fitted(count=100).recalibrate(certain=0.95)
    (decision,) = detector.predict(pictures(1, seed=7))
    part, _ = judge_together(detector, [("a", decision), ("b", decision)], part="7")
    assert (decision.promise.certain, part.promise.certain, part.promise.guaranteed_rate) == (0.95, None, 0.2)


# A complete sample


def test_a_period_says_whether_it_is_a_complete_sample(tmp_path):
    def verdict(digest, anomalous, content=b"x"):
        return Verdict("m", digest, None, 1.0, 0.5, anomalous, {}, content)

    with Logbook(tmp_path) as book:
        rows = [
            *[verdict(f"good{number}", False) for number in range(5)],
            verdict("good0", True),  # the latest verdict of a picture counts
            verdict("fine", True),
            verdict("defect", True),
            verdict("open", True),
            verdict("gone", False, None),
            Verdict("other", "z", None, 1.0, 0.5, True, {}, b"z"),
        ]
        lines = book.add(rows).result()
        for line in lines:
            if line["picture"] in ("fine", "defect"):
                book.say(line["id"], line["picture"]).result()
        since = time.time() - 60
        assert book.sample("m", since=since) == {
            "pictures": 9, "fine": 1, "defects": 1, "unanswered": 2, "gone": 1,
        }  # fmt: skip
        assert book.sample("m", since=time.time() + 60)["pictures"] == 0
        assert [row["picture"] for row in book.history(model="m", anomalous=True, said="nothing")] == ["open", "good0"]


def test_the_sample_is_asked_for_over_http(running):
    ask, _ = running
    ask.predict(GOOD[0], name="plain")
    answer = ask("GET", "/v1/models/plain/sample?days=1")[1]
    assert answer["pictures"] >= 1
    assert answer["rates"] == {"0.05": 19, "0.1": 9, "0.2": 4}
    assert ask("GET", "/v1/models/none/sample")[0] == 404
