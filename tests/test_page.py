"""The page of a station in a real browser, by keyboard alone; its words in both languages."""

from __future__ import annotations

import json
import re
import shutil
from contextlib import contextmanager
from functools import partial
from importlib import resources
from importlib.util import find_spec

import pytest
from typer.testing import CliRunner

from blemish.cli import app
from blemish.detector import Detector
from blemish.explain import DIFFERENCE_KINDS
from blemish.images.preprocess import Preprocess
from blemish.methods import PaDiM
from blemish.station.learning import FEWEST_NORMALS
from stations import TOKEN, defect, fitted, pictures, png, serving

PAGE = resources.files("blemish.station").joinpath("page")
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
in_browser = pytest.mark.skipif(
    BROWSER is None or find_spec("playwright") is None,
    reason="needs Chromium and Playwright's client: apt-get install chromium, pip install playwright",
)


def read(name):
    return PAGE.joinpath(name).read_text("utf-8")


def test_both_languages_have_all_words_and_the_same_gaps():
    texts = json.loads(read("texts.json"))
    assert texts["en"].keys() == texts["de"].keys()
    for key, english in texts["en"].items():
        assert sorted(re.findall(r"\{\w+\}", english)) == sorted(re.findall(r"\{\w+\}", texts["de"][key])), key


def test_every_word_of_the_page_is_in_the_table_and_none_is_left_over():
    html, script = read("index.html"), read("station.js")
    used = set(re.findall(r'data-(?:text|label)="(\w+)"', html)) | set(re.findall(r'\bt\("(\w+)"', script))
    used |= {f"was_{said}" for said in ("fine", "defect")} | {f"tried_{said}" for said in ("fine", "defect")}
    used |= set(["ok", "check", "ready", "no_model", "about", "about_part", "region", "regions", "saved", "undone"])
    used |= {f"stage_{stage}" for stage in ("inspect", "fit", "calibrate")} | {"count", "count_few"}
    used |= {f"why_{kind}" for kind in DIFFERENCE_KINDS} | set(re.findall(r'"(way_\w+)"', script))
    used |= {f"find_{kind}" for kind in ("identical", "nearly_identical", "constant", "exposure", "unlike")}
    assert used == json.loads(read("texts.json"))["en"].keys()
    known = set(re.findall(r'\bid="([\w-]+)"', html))
    assert set(re.findall(r'\$\("([\w-]+)"\)', script)) <= known


def test_the_page_needs_nothing_from_elsewhere():
    for name in ("index.html", "station.css", "station.js"):
        assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)|src=\"//|style=|onclick=", read(name)), name


@contextmanager
def opened(ask, *, token=None, **options):
    """A page at the station; every error in it fails the test."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as player:
        browser = player.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        page = browser.new_context(**options).new_page()
        errors = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(f"http://127.0.0.1:{ask.port}/")
        if token is not None:
            page.fill("#token", token)
            page.keyboard.press("Enter")
        page.wait_for_selector("body[data-ready]")
        yield page
        browser.close()
        assert errors == []


def given(name, *contents):
    return [{"name": f"{name}{i}.png", "mimeType": "image/png", "buffer": data} for i, data in enumerate(contents)]


@in_browser
def test_learn_judge_and_say_by_keyboard_alone(tmp_path, monkeypatch):
    small = partial(Detector, method=PaDiM(backbone="filters"), preprocess=Preprocess(32))
    monkeypatch.setattr("blemish.station.learning.Detector", small)
    with serving({}, tmp_path) as (ask, _), opened(ask, locale="en-GB") as page:
        assert page.locator("#learn").is_visible()  # without a model there is nothing else to do
        page.set_input_files("#normals", given("good", *map(png, pictures(FEWEST_NORMALS + 2))))
        page.wait_for_selector("#findings.card", timeout=60_000)
        page.wait_for_selector("#working", state="hidden")
        assert page.locator("#tray li").count() == FEWEST_NORMALS + 2
        page.focus("#name")
        page.keyboard.type("washer")
        page.keyboard.press("Enter")
        page.wait_for_selector("#judge:not([hidden])", timeout=60_000)
        page.set_input_files("#files", given("bad", defect()))  # what the O key opens is the browser's own window
        page.wait_for_selector("#verdict.check")
        assert page.inner_text("#word") == "CHECK"
        assert "unusual" in page.inner_text("#why")
        page.wait_for_selector("#overlay[src]")
        page.wait_for_selector("#reasons li figure:nth-of-type(2) img")  # of the pictures that it has learned
        assert "Compared with" in page.inner_text("#reasons")
        page.keyboard.press("d")
        page.wait_for_selector("#defect[aria-pressed=true]")
        page.keyboard.press("2")
        page.wait_for_selector("#rows button")
        page.keyboard.press("j")
        page.keyboard.press("f")
        page.wait_for_selector("#rows .said:has-text('This was fine')")
        page.keyboard.press("Enter")
        page.wait_for_selector("#fine[aria-pressed=true]")
        page.keyboard.press("3")
        page.wait_for_selector("#rate-words:has-text('1 of the 1 pictures')")
        page.focus("#rate")
        page.keyboard.press("End")
        page.focus("#try-rate")
        page.keyboard.press("Enter")
        page.wait_for_selector("#preview-rows:has-text('Of 1 that were fine')")
        page.keyboard.press("Enter")  # save has the focus
        page.wait_for_selector(".note.good")
        page.wait_for_selector("#undo:not([disabled])")
        for kind in ("good:has-text('version before answers')", "bad:has-text('no version before')"):
            page.focus("#undo")
            page.keyboard.press("Enter")
            page.wait_for_selector(f".note.{kind}")
    (line,) = [json.loads(row) for row in export(tmp_path)]
    assert (line["model_name"], line["feedback"], line["image"]) == ("washer", "fine", "bad0.png")


def export(folder):
    out = folder / "lines.jsonl"
    done = CliRunner().invoke(app, ["store", "export", str(folder), "--out", str(out), "--pictures", str(folder / "p")])
    assert done.exit_code == 0, done.output
    assert len(list((folder / "p").glob("*.png"))) == 1
    return out.read_text("utf-8").splitlines()


@in_browser
def test_pictures_of_a_part_have_one_verdict_and_what_is_open_is_gone_through(tmp_path):
    detector = fitted(rate=0.3)
    detector.save(tmp_path / "small.blemish")
    good = next(png(one) for one in pictures(9, seed=50) if not next(detector.predict([one])).is_anomalous)
    with (
        serving({"small": tmp_path / "small.blemish"}, tmp_path / "s") as (ask, _),
        opened(ask, locale="en-GB") as page,
    ):
        page.keyboard.press("p")
        page.keyboard.type("A-17")
        page.set_input_files("#files", given("view", good, defect()))
        page.wait_for_selector("#verdict.check")
        assert page.inner_text("#about") == "Part A-17, 2 pictures; the least usual is view1.png"
        page.wait_for_selector("#strip li:nth-child(2)")
        page.click("nav [data-view=model]")
        page.wait_for_selector("#sample-words:has-text('1 were flagged and have no answer yet')")
        page.focus("#answer")
        page.keyboard.press("Enter")
        page.wait_for_selector("#rows button:focus")
        assert page.locator("#rows button").count() == 1
        page.keyboard.press("d")
        page.wait_for_selector("#rows .said:has-text('This was a defect')")
        page.keyboard.press("Enter")
        page.wait_for_selector("#about:has-text('the part: CHECK')")
        page.wait_for_selector("#reasons:has-text('similar good place')")
        page.keyboard.press("3")
        page.wait_for_selector("#sample-words:has-text('2 pictures, 1 of them defects')")
        assert not page.is_visible("#answer")


@in_browser
def test_a_phone_in_german_with_a_token(tmp_path):
    fitted().save(tmp_path / "small.blemish")
    phone = {"locale": "de-DE", "viewport": {"width": 390, "height": 844}, "is_mobile": True, "color_scheme": "dark"}
    with (
        serving({"small": tmp_path / "small.blemish"}, tmp_path / "s", token=TOKEN) as (ask, _),
        opened(ask, token=TOKEN, **phone) as page,
    ):
        page.set_input_files("#files", given("schlecht", defect()))
        page.wait_for_selector("#verdict.check")
        assert page.inner_text("#word") == "PRÜFEN"
        for view in "1234":
            page.keyboard.press(view)
            assert page.evaluate("document.documentElement.scrollWidth") <= 390


@in_browser
@pytest.mark.skipif(find_spec("axe_playwright_python") is None, reason="needs: pip install axe-playwright-python")
def test_an_accessibility_checker_finds_nothing(tmp_path):
    from axe_playwright_python.sync_playwright import Axe

    fitted().save(tmp_path / "small.blemish")
    with (
        serving({"small": tmp_path / "small.blemish"}, tmp_path / "s") as (ask, _),
        opened(ask, locale="en-GB", bypass_csp=True) as page,
    ):
        page.set_input_files("#files", given("a", defect(), png(pictures(1, seed=50)[0])))
        page.wait_for_selector("#strip li:nth-child(2)")
        for view in ("judge", "history", "model", "learn"):
            page.click(f"nav [data-view={view}]")
            page.wait_for_selector({"history": "#rows button", "model": "#facts tr"}.get(view, f"#{view}"))
            for scheme in ("light", "dark"):
                page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
                found = Axe().run(page).response["violations"]
                assert [(row["id"], row["nodes"][0]["html"]) for row in found] == [], (view, scheme)
