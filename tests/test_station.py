"""A station: verdicts as `predict` gives them, kept before they are answered; what is wrong hurts nobody."""

from __future__ import annotations

import http.client
import os
import re
import socket
import sqlite3
import struct
import subprocess
import sys
import threading
import time
import zlib
from contextlib import closing, suppress
from dataclasses import replace
from functools import partial
from urllib.parse import quote

import numpy as np
import pytest
from typer.testing import CliRunner

import stations
from blemish.cli import app
from blemish.detector import Detector
from blemish.drift import StreamMonitor
from blemish.errors import ArgumentError, CalibrationError, ModelFileError, NotEnoughMemoryError, OutputError
from blemish.images.decode import decode_bytes
from blemish.images.preprocess import Preprocess
from blemish.images.source import from_bytes
from blemish.methods import PaDiM
from blemish.report.lines import judged, look_of, model_digest
from blemish.station.guard import Refusal
from blemish.station.judge import Busy, Judge, Sent
from blemish.station.learning import FEWEST_NORMALS, Learning, _rate_for
from blemish.station.limits import Limits
from blemish.station.logbook import FILE, Logbook, Retention, Verdict, read_lines, read_pictures
from blemish.station.models import Models
from blemish.station.revising import Revising
from blemish.station.server import bind, is_loopback, listen, read_token
from blemish.station.watching import Watching
from blemish.station.work import Work
from blemish.types import Decision, Look
from stations import TOKEN, Client, defect, fitted, form, pictures, png, serving

GOOD = png(pictures(1, seed=50)[0])


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    for name, seed in (("small", 0), ("other", 1)):
        fitted(seed).save(folder / f"{name}.blemish")
    return {name: folder / f"{name}.blemish" for name in ("small", "other")}


@pytest.fixture(scope="module")
def running(files, tmp_path_factory):
    """One station without a token, for all tests that leave it as it was."""
    with serving(files, tmp_path_factory.mktemp("store")) as (ask, station):
        yield ask, station


@pytest.fixture(scope="module")
def guarded(files, tmp_path_factory):
    with serving(files, tmp_path_factory.mktemp("guarded"), token=TOKEN, names=["line-3"]) as (ask, _):
        yield ask


# Verdicts


def test_an_answer_is_the_line_of_predict_and_is_kept(running, files):
    ask, station = running
    status, answer = ask.predict(defect(), "?image=a.png&part=A-7&draw=true")
    assert status == 200
    (line,) = answer["results"]
    detector = fitted()
    (decision,) = detector.predict(from_bytes({"a.png": defect()}))
    wanted = dict(judged(decision))
    assert line["score"] == pytest.approx(wanted["score"], rel=1e-5)
    assert [row["box"] for row in line["regions"]] == [list(row["box"]) for row in wanted["regions"]]
    assert {key: line[key] for key in wanted if key not in ("score", "regions")} == {
        key: value for key, value in wanted.items() if key not in ("score", "regions")
    }
    assert (line["model"], line["model_name"], line["part"]) == (model_digest(files["small"]), "small", "A-7")
    assert line["anomalous"] is True
    assert station.logbook.verdict(line["id"]) == line | {"feedback": None}
    assert station.logbook.picture(line["picture"]) == defect()


def test_several_pictures_come_back_in_order_and_a_bad_one_has_its_reason(running):
    body = form(("a", "1.png", GOOD), ("b", "../../2.png", b"no image"), ("c", "3.png", defect()), ("d", "4.png", GOOD))
    kind = "multipart/form-data; boundary=bound"
    status, answer = running[0]("POST", "/v1/models/small/predict", body, content_type=kind)
    names = [row["image"] for row in answer["results"]]
    assert (status, names) == (200, ["1.png", "../../2.png", "3.png", "4.png"])
    first, second, third, fourth = answer["results"]
    assert second == {
        "version": 1, "image": "../../2.png",
        "error": "../../2.png: not an image, or of a format that is not read. Read are BMP, GIF, JPEG, JPEG2000, PNG, "
        "PPM, TIFF, WEBP.",
    }  # fmt: skip
    assert (first["score"], first["picture"]) == (fourth["score"], fourth["picture"])
    assert third["anomalous"]


def test_pictures_for_eyes(running):
    ask, _ = running
    (line,) = ask.predict(defect())[1]["results"]
    assert ask("GET", f"/v1/verdicts/{line['id']}/overlay")[1].startswith(b"\x89PNG")
    status, jpeg = ask("GET", f"/v1/pictures/{line['picture']}?side=16")
    assert (status, jpeg[:2], ask.headers["content-type"]) == (200, b"\xff\xd8", "image/jpeg")
    status, heat = ask("POST", "/v1/models/small/heatmap", defect(), content_type="image/png")
    assert (status, heat[:4]) == (200, b"\x89PNG")


def test_feedback_is_kept_taken_back_and_found(running):
    ask, _ = running
    (line,) = ask.predict(GOOD, "?part=feedback")[1]["results"]
    for said in ("defect", "fine"):
        assert ask("POST", f"/v1/verdicts/{line['id']}/feedback?said={said}") == (
            200, {"id": line["id"], "feedback": said},
        )  # fmt: skip
    found = ask("GET", "/v1/verdicts?said=fine&part=feedback")[1]["verdicts"]
    assert [row["id"] for row in found] == [line["id"]]
    assert ask("GET", "/v1/verdicts?said=defect&part=feedback")[1] == {"verdicts": []}
    ask("POST", f"/v1/verdicts/{line['id']}/feedback")
    assert ask("GET", "/v1/verdicts?said=anything&part=feedback")[1] == {"verdicts": []}


def test_history_filters_and_pages(running):
    ask, _ = running
    ids = [ask.predict(content, "?part=pages")[1]["results"][0]["id"] for content in (GOOD, defect(), GOOD)]
    rows = ask("GET", "/v1/verdicts?part=pages&limit=2&days=1&model=small")[1]["verdicts"]
    assert [row["id"] for row in rows] == ids[:0:-1]
    rows = ask("GET", f"/v1/verdicts?part=pages&before={ids[1]}")[1]["verdicts"]
    assert [row["id"] for row in rows] == ids[:1]
    rows = ask("GET", "/v1/verdicts?part=pages&anomalous=true")[1]["verdicts"]
    assert [row["id"] for row in rows] == [ids[1]]
    assert len(ask("GET", "/v1/models/small/p-values?days=1")[1]["p_values"]) >= 3


def test_models_figures_and_the_page_are_there(running):
    ask, _ = running
    assert [row["name"] for row in ask("GET", "/v1/models")[1]["models"]] == ["small", "other"]
    card = ask("GET", "/v1/models/other")[1]
    assert card["facts"]["Method"] == "padim"
    assert card["lowest_rate"] == 1 / (card["held_out"] + 1)
    assert ask("GET", "/health")[1]["status"] == "alive"
    assert ask("GET", "/ready") == (200, {"status": "ready"})
    assert ask.predict(defect())[1]["results"][0]["anomalous"] is True
    text = ask("GET", "/metrics")[1].decode()
    assert 'blemish_verdicts_total{model="small",verdict="anomalous"}' in text
    example = ask("GET", "/openapi.json")[1]["paths"]["/v1/models/{name}/predict"]["post"]
    assert example["responses"]["200"]["content"]["application/json"]["example"]["results"][0]["anomalous"] is True
    for path in ("/", "/station.css", "/station.js", "/texts.json", "/icon.svg"):
        assert ask("GET", path)[0] == 200
        assert "default-src 'none'" in ask.headers["content-security-policy"]


def test_drift_is_seen_and_said_the_same_after_a_restart(files, tmp_path):
    good, changed = ([png(array) for array in pictures(12, seed=70, side=side)] for side in (32, 24))
    with serving(files, tmp_path) as (ask, _):
        lines = [ask.predict(content)[1]["results"][0] for content in good[:6]]
        before = ask("GET", "/v1/models/small")[1]["drift"]
        assert (before["images"], before["is_alarm"]) == (6, False)
        expected = StreamMonitor.of(Detector.load(files["small"]).calibration_)
        expected.extend((line["score"], look_of(line["look"])) for line in lines)
        assert before["evidence"] == expected.drift.evidence
        assert 'blemish_drift_alarm{model="small"} 0.0' in ask("GET", "/metrics")[1].decode()
        for content in changed * 4:
            ask.predict(content)
        after = ask("GET", "/v1/models/small")[1]["drift"]
        assert (after["images"], after["is_alarm"]) == (54, True)
        assert ask("GET", "/v1/models/other")[1]["drift"]["images"] == 0
    with serving(files, tmp_path) as (ask, _):
        assert ask("GET", "/v1/models/small")[1]["drift"] == after


@pytest.fixture
def streams(files, tmp_path):
    """A store with verdicts of two models, and one of these models."""
    loaded, draw = Models(files, max_bytes=10**9).get("small"), np.random.default_rng(0)
    with Logbook(tmp_path) as book:
        for model, count in (("small", 8), ("other", 5), ("small", 2)):
            for _ in range(count):
                line = {"model": loaded.digest, "look": dict(zip(Look._fields, draw.random(5).tolist(), strict=True))}
                book.add([replace(verdict(), model=model, score=draw.random(), line=line)]).result()
        yield book, loaded


def test_drift_reads_verdicts_in_pieces_and_no_old_ones_again(streams, monkeypatch):
    book, loaded = streams
    pieces, scores = [], Logbook.scores

    def some(book, name, digest, *, after, until):
        pieces.append((after, until, scores(book, name, digest, after=after, until=until)))
        return pieces[-1][-1]

    monkeypatch.setattr(Logbook, "scores", some)
    monkeypatch.setattr("blemish.station.watching._PIECE", 4)
    with closing(Watching(book, patience=60)) as watching:
        found = [watching.drift(loaded) for _ in range(2)]
        assert [(after, until, len(rows)) for after, until, rows in pieces] == [
            (0, 4, 4), (4, 8, 4), (8, 12, 0), (12, 15, 2),
        ]  # fmt: skip
        expected = StreamMonitor.of(loaded.detector.calibration_).extend(row for *_, rows in pieces for row in rows)
        assert [(one["images"], one["evidence"]) for one in found] == [(10, expected.evidence)] * 2
        asked: list[str] = []
        book._reader.set_trace_callback(asked.append)
        scores(book, "small", loaded.digest, after=14, until=15)
        book._reader.set_trace_callback(None)
        plan = book._reader.execute(f"EXPLAIN QUERY PLAN {asked[0]}").fetchall()[0][-1]
        assert plan == "SEARCH verdicts USING INTEGER PRIMARY KEY (rowid>? AND rowid<?)"


def test_nobody_waits_for_a_long_stream_and_it_is_known_later(streams, monkeypatch):
    book, loaded = streams
    goes_on, scores = threading.Event(), Logbook.scores
    monkeypatch.setattr(Logbook, "scores", lambda *one, **more: (goes_on.wait(), scores(*one, **more))[1])
    with closing(Watching(book, patience=0)) as watching:
        assert [watching.drift(loaded) for _ in range(3)] == [None] * 3
        assert len(book.history()) == 15  # nor who asks for something else
        goes_on.set()
        watching.patience = 60
        assert watching.drift(loaded)["images"] == 10


def test_the_end_does_not_wait_for_a_long_stream(streams, monkeypatch):
    book, loaded = streams
    monkeypatch.setattr("blemish.station.watching._PIECE", 1)
    begun, goes_on, scores = [], threading.Event(), Logbook.scores
    monkeypatch.setattr(Logbook, "scores", lambda *one, **more: (begun.append(goes_on.wait()), scores(*one, **more))[1])
    watching = Watching(book, patience=0)
    watching.drift(loaded)
    with closing(watching):
        watching._ends = True
        goes_on.set()
    assert len(begun) <= 1


# What is wrong is refused


def request(method, target, *headers, body=b"", host="127.0.0.1", ends=True):
    lines = [f"{method} {target} HTTP/1.1", f"Host: {host}", *headers]
    if body and not any(line.lower().startswith(("content-length", "transfer-encoding")) for line in headers):
        lines.append(f"Content-Length: {len(body)}")
    if ends:
        lines.append("Connection: close")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


def post(*headers, body=GOOD, kind="image/png", target="/v1/models/small/predict"):
    return request("POST", target, f"Content-Type: {kind}", *headers, body=body)


def chunked(*parts):
    return b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (*parts, b""))


def claims(width, height):
    """A PNG whose head claims a size."""
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + head
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk)) + GOOD[33:]


FORM = "multipart/form-data; boundary=bound"
BIG = b"\0" * (stations.LIMITS.max_bytes + 1)
CHUNKED = "Transfer-Encoding: chunked"
WRONG = {
    "no HTTP": (b"hello\r\n\r\n", 400),
    "TLS": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),
    "HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 421),
    "no host": (b"GET /health HTTP/1.1\r\n\r\n", 400),
    "two hosts": (request("GET", "/health", "Host: localhost"), 400),
    "a head without end": (b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 70_000, 400),
    "a header with a null": (request("GET", "/health", "X: a\0b"), 400),
    "foreign host": (request("GET", "/v1/models", host="evil.example"), 421),
    "foreign host with a port": (request("GET", "/v1/models", host="evil.example:8321"), 421),
    "a host that begins like ours": (request("GET", "/v1/models", host="localhost.evil.example"), 421),
    "a host with a user": (request("GET", "/v1/models", host="localhost@evil.example"), 421),
    "empty host": (request("GET", "/v1/models", host=""), 421),
    "foreign origin": (post("Origin: http://evil.example"), 403),
    "origin of a file": (post("Origin: null"), 403),
    "origin of another port": (post("Origin: http://127.0.0.1:1"), 403),
    "model up the tree": (post(target="/v1/models/../../etc/passwd/predict"), 404),
    "model up the tree, encoded": (post(target="/v1/models/..%2F..%2Fetc%2Fpasswd/predict"), 404),
    "model up the tree, twice encoded": (post(target="/v1/models/%252e%252e%252fsmall/predict"), 404),
    "model by its file": (post(target="/v1/models/small.blemish/predict"), 404),
    "model with a null": (post(target="/v1/models/small%00/predict"), 404),
    "model of no name": (post(target="/v1/models//predict"), 404),
    "model in Unicode": (post(target="/v1/models/%EF%BD%93mall/predict"), 404),
    "unknown model": (post(target="/v1/models/none/predict"), 404),
    "unknown model's card": (request("GET", "/v1/models/none"), 404),
    "unknown model's p-values": (request("GET", "/v1/models/none/p-values"), 404),
    "page up the tree": (request("GET", "/../station.py"), 404),
    "page up the tree, encoded": (request("GET", "/%2e%2e/%2e%2e/etc/passwd"), 404),
    "page by a full path": (request("GET", "//etc/passwd"), 404),
    "picture up the tree": (request("GET", "/v1/pictures/..%2F..%2Fstation.sqlite"), 404),
    "picture with SQL": (request("GET", "/v1/pictures/x'%20OR%201=1--"), 404),
    "picture that is not kept": (request("GET", f"/v1/pictures/{'0' * 64}"), 404),
    "picture of an odd size": (request("GET", f"/v1/pictures/{'0' * 64}?side=1000000"), 422),
    "wrong method": (request("DELETE", "/v1/models"), 405),
    "an own method": (request("BREW", "/v1/models"), 405),
    "GET where POST is meant": (request("GET", "/v1/models/small/predict"), 405),
    "empty body": (post(body=b""), 400),
    "text": (post(kind="text/plain"), 415),
    "JSON": (post(kind="application/json", body=b'{"image": "/etc/passwd"}'), 415),
    "form of a page": (post(kind="application/x-www-form-urlencoded", body=b"image=/etc/passwd"), 415),
    "multipart without a boundary": (post(kind="multipart/form-data"), 400),
    "multipart that is none": (post(kind=FORM), 400),
    "multipart without a file": (
        post(kind=FORM, body=b'--bound\r\nContent-Disposition: form-data; name="a"\r\n\r\nx\r\n--bound--\r\n'), 400,
    ),
    "multipart without names": (post(kind=FORM, body=b"--bound\r\n\r\nx\r\n--bound--\r\n"), 400),
    "multipart with an empty file": (post(kind=FORM, body=form(("a", "a.png", b""))), 400),
    "too many pictures": (post(kind=FORM, body=form(*[("a", "a.png", GOOD)] * 5)), 413),
    "too many bytes": (post(body=BIG), 413),
    "too many bytes, claimed": (request("POST", "/v1/models/small/predict", "Content-Length: 99999999999"), 413),
    "too many bytes in chunks": (post(CHUNKED, body=chunked(BIG)), 413),
    "negative length": (request("POST", "/v1/models/small/predict", "Content-Length: -1"), 400),
    "length that is none": (request("POST", "/v1/models/small/predict", "Content-Length: ten"), 400),
    "two lengths": (post("Content-Length: 3", "Content-Length: 5"), 400),
    "chunks that are none": (post(CHUNKED, body=b"zz\r\nxx\r\n0\r\n\r\n"), 400),
    "unknown transfer": (post("Transfer-Encoding: gzip"), 400),
    "no image": (post(body=b"no image"), 422),
    "truncated": (post(body=GOOD[:200]), 422),
    "bomb": (post(body=claims(60_000, 60_000)), 422),
    "SVG": (post(body=b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>'), 422),
    "PostScript": (post(body=b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/etc/passwd) run\n"), 422),
    "compressed": (post("Content-Encoding: gzip", body=zlib.compress(GOOD)), 422),
    "heat map of no image": (post(target="/v1/models/small/heatmap", body=b"no image"), 422),
    "heat map of several": (
        post(target="/v1/models/small/heatmap", kind=FORM, body=form(*[("a", "a.png", GOOD)] * 2)), 413,
    ),
    "a name that is too long": (post(target=f"/v1/models/small/predict?image={'a' * 300}"), 422),
    "a choice that is none": (post(target="/v1/models/small/predict?draw=perhaps"), 422),
    "verdict by a word": (request("GET", "/v1/verdicts/one"), 422),
    "verdict that is none": (request("GET", "/v1/verdicts/999999"), 404),
    "verdict beyond all numbers": (request("GET", "/v1/verdicts/99999999999999999999"), 422),
    "overlay of no verdict": (request("GET", "/v1/verdicts/999999/overlay"), 404),
    "feedback that is none": (request("POST", "/v1/verdicts/1/feedback?said=maybe"), 422),
    "feedback on nothing": (request("POST", "/v1/verdicts/999999/feedback?said=fine"), 404),
    "too much history": (request("GET", "/v1/verdicts?limit=100000"), 422),
    "history of NaN days": (request("GET", "/v1/verdicts?days=nan"), 422),
}  # fmt: skip


def raw(port, content, *, ends=False):
    """The status that some bytes get; None where the connection is closed without one."""
    with closing(socket.create_connection(("127.0.0.1", port), timeout=60)) as line:
        try:
            line.sendall(content)
            if ends:
                line.shutdown(socket.SHUT_WR)
        except ConnectionError:  # refused before all was sent
            pass
        answer = b""
        try:
            while part := line.recv(65536):
                answer += part
                if b"\r\n\r\n" in answer:
                    break
        except ConnectionError:
            pass
    return int(answer.split(b" ", 2)[1]) if answer else None


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_refused_and_hurts_nobody(running, name):
    ask, station = running
    content, status = WRONG[name]
    before = len(station.logbook.history(limit=500))
    assert raw(ask.port, content) == status
    assert len(station.logbook.history(limit=500)) == before
    assert ask("GET", "/ready")[0] == 200
    until = time.monotonic() + 60
    while station._open and time.monotonic() < until:  # it may hear a moment later that nothing more comes
        pass
    assert station._open == 0


@pytest.mark.parametrize(
    "headers",
    [
        (), ("Authorization: Bearer",), ("Authorization: Bearer wrong-token-of-some-length",),
        (f"Authorization: Basic {TOKEN}",), (f"Authorization: Bearer {TOKEN}x",),
        (f"Authorization: Bearer {TOKEN[:-1]}",),
        ("Authorization: Bearer \xe9\xff",), (f"X-Token: {TOKEN}",), (f"Cookie: token={TOKEN}",),
    ],
)  # fmt: skip
@pytest.mark.parametrize("target", ["/v1/models", "/metrics", "/openapi.json", "/v1/pictures/x", "/nothing"])
def test_without_the_token_nothing_is_told(guarded, headers, target):
    assert raw(guarded.port, request("GET", f"{target}?token={TOKEN}", *headers)) == 401


def test_with_the_token_under_another_name_all_is_well(guarded):
    assert raw(guarded.port, request("GET", "/v1/models", f"Authorization: bearer  {TOKEN}", host="Line-3:80")) == 200
    assert raw(guarded.port, request("GET", "/v1/models", f"Authorization: Bearer {TOKEN}", host="[::1]:80")) == 200
    assert raw(guarded.port, request("GET", "/", host="10.1.2.3")) == 200
    assert Client(guarded.port).predict(GOOD)[0] == 401
    assert guarded.predict(GOOD)[0] == 200


def test_who_dawdles_or_goes_away_is_dropped(files, tmp_path):
    with serving(files, tmp_path, seconds=0.3) as (ask, station):
        assert raw(ask.port, post("Content-Length: 500", body=GOOD[:9])) == 408
        assert raw(ask.port, b"GET /health HTTP/1.1\r\nHost: loc") is None  # a head that never ends
        assert raw(ask.port, b"") is None
        with closing(socket.create_connection(("127.0.0.1", ask.port))) as line:
            line.sendall(post("Content-Length: 500", body=GOOD[:9]))  # gone before it is complete
        station.limits = replace(station.limits, seconds=60)  # a busy machine judges later than that
        assert ask.predict(GOOD)[0] == 200
        assert len(station.logbook.history()) == 1


def test_who_keeps_asking_keeps_the_connection(files, tmp_path):
    with serving(files, tmp_path, seconds=60) as (ask, _):
        connection = http.client.HTTPConnection("127.0.0.1", ask.port)

        def is_open_after(seconds):
            """Whether it is, were it so long since the latest request."""
            (served,), looked = ask.server.server_state.connections, threading.Event()

            def look():
                served._begun -= seconds
                served._watch.cancel()
                served._end_if_idle()
                looked.set()

            served.loop.call_soon_threadsafe(look)
            assert looked.wait(60)
            return not served.transport.is_closing()

        for _ in range(5):  # a request may take so long to come, and so long to be judged
            connection.request("GET", "/v1/verdicts")
            assert connection.getresponse().read() == b'{"verdicts":[]}'
            assert is_open_after(90)
        assert not is_open_after(90)
        connection.close()


def test_too_many_at_a_time_come_again_later(files, tmp_path):
    with serving(files, tmp_path, requests=1, waiting=2) as (ask, _):
        body = form(*[("a", "a.png", GOOD)] * 3)
        status, _ = ask("POST", "/v1/models/small/predict", body, content_type="multipart/form-data; boundary=bound")
        assert (status, ask.headers["retry-after"]) == (429, "1")
        with closing(socket.create_connection(("127.0.0.1", ask.port))) as line:
            line.sendall(post("Expect: 100-continue", "Content-Length: 500", body=b"")[: -0 or None])
            assert line.recv(100).startswith(b"HTTP/1.1 100")  # the station reads it: its only place is taken
            assert ask.predict(GOOD)[0] == 429
            assert ask("GET", "/v1/models")[0] == 200


def test_who_waits_for_something_else_keeps_nobody_from_being_judged(files, tmp_path, monkeypatch):
    """Such as many who look at pictures on a slow disk: there are few threads for what may take long."""
    waiting, goes_on = threading.Semaphore(0), threading.Event()
    monkeypatch.setattr(Logbook, "picture", lambda *_: (waiting.release(), goes_on.wait())[0])
    with serving(files, tmp_path) as (ask, _):
        assert ask.predict(GOOD)[0] == 200  # the model is loaded from then on
        lookers = [threading.Thread(target=ask, args=("GET", "/v1/pictures/none")) for _ in range(40)]
        try:
            for looker in lookers:
                looker.start()
            threads = 4 + (getattr(os, "process_cpu_count", os.cpu_count)() or 1)  # of asyncio, 32 at most
            for _ in range(min(32, threads)):
                waiting.acquire()
            assert Client(ask.port).predict(GOOD)[0] == 200
        finally:
            goes_on.set()
            for looker in lookers:
                looker.join()


def test_many_at_a_time_are_judged_together_and_each_gets_its_own(running):
    ask, _ = running
    contents = [png(array) for array in pictures(24, seed=9)]
    alone = [ask.predict(content)[1]["results"][0] for content in contents]
    found = [None] * len(contents)

    def one(number):
        found[number] = Client(ask.port).predict(contents[number])[1]["results"][0]

    threads = [threading.Thread(target=one, args=(number,)) for number in range(len(contents))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for before, line in zip(alone, found, strict=True):
        assert line["picture"] == before["picture"]
        assert line["score"] == pytest.approx(before["score"], rel=1e-5)
    assert len({line["id"] for line in found}) == len(found)


def test_what_was_begun_is_answered_at_the_end(files, tmp_path):
    answers = []

    def one(ask):
        with suppress(ConnectionError):  # it came too late
            answers.append(ask.predict(GOOD)[0])

    with serving(files, tmp_path) as (ask, station):
        threads = [threading.Thread(target=one, args=(ask,)) for _ in range(8)]
        for thread in threads:
            thread.start()
        while not (station._open or answers):
            pass
    for thread in threads:
        thread.join()
    assert set(answers) == {200}
    assert len(list(read_lines(tmp_path))) == len(answers)


# Models


def test_models_are_loaded_when_asked_for_within_a_bound(files):
    size = files["small"].stat().st_size
    models = Models(files, max_bytes=3 * size)  # one counts twice its file
    try:
        assert models.loaded() == {}
        first = models.get("small")
        assert models.get("small") is first
        models.get("other")
        assert list(models.loaded()) == ["other"]
        assert models.get("small").digest == first.digest
        with pytest.raises(KeyError):
            models.get(str(files["small"]))
        models.put("large", files["other"])
        models._max_bytes = size
        with pytest.raises(NotEnoughMemoryError, match="Allow more with --memory"):
            models.get("large")
        assert "the bound is" in models.fault("large")
    finally:
        models.close()


def test_another_file_answers_from_the_next_request_on_unless_it_cannot_be_read(files, tmp_path):
    models = Models({"small": files["small"]}, max_bytes=10**9)
    before = models.get("small")
    models.put("small", files["other"])
    assert models.get("small").digest == model_digest(files["other"]) != before.digest
    (tmp_path / "broken.blemish").write_bytes(b"no model")
    for path in (tmp_path / "broken.blemish", tmp_path / "none.blemish"):
        models.put("small", path)
        assert models.get("small").digest == model_digest(files["other"])
        assert str(path) in models.fault("small")
    models.close()


def test_a_runtime_is_that_of_every_model(files, monkeypatch):
    asked, load = [], Detector.load

    def noted(path, *, runtime, **options):
        asked.append(runtime)
        return load(path, **options)

    monkeypatch.setattr(Detector, "load", noted)
    models = Models(files, max_bytes=10**9, runtime="onnxruntime")
    models.get("small")
    models.read("other")
    models.close()
    assert asked == ["onnxruntime"] * 2


def test_a_replaced_file_is_loaded_beside_the_old_model_and_a_broken_one_is_not(files, tmp_path):
    path = tmp_path / "part.blemish"
    path.write_bytes(files["small"].read_bytes())
    models = Models({"part": path}, max_bytes=10**9)
    try:
        old = models.get("part")
        path.write_bytes(files["other"].read_bytes() + b"")
        os.utime(path, ns=(1, 1))
        assert models.get("part") is old  # it answers until the new one is there
        models.settle()
        new = models.get("part")
        assert new.digest == model_digest(files["other"]) != old.digest
        path.write_bytes(b"torn")
        assert models.get("part") is new
        models.settle()
        assert models.get("part").detector is new.detector
        assert str(path) in models.fault("part")
        path.unlink()
        assert models.get("part").detector is new.detector
        assert "gone" in models.fault("part")
    finally:
        models.close()
    with pytest.raises(ModelFileError):
        Models({"part": tmp_path / "none"}, max_bytes=10**9).get("part")


# The judge


class Slow:
    """Stands for a loaded model whose network waits until it is let go, and remembers its batches."""

    def __init__(self, *, spoilt=()):
        self.batches, self.go, self.spoilt = [], threading.Event(), spoilt
        self.detector, self.max_pixels, self.skipped_, self.maps = self, 1, [], []

    def predict(self, source, *, maps):
        self.maps.append(maps)
        self.batches.append(source.names)
        self.go.wait(60)
        if any(name in self.spoilt for name in source.names):
            raise ArgumentError(f"method: expected finite scores, got NaN or infinity for {source.names[0]}.")
        return [Decision(name, float(len(name)), None, None, None) for name in source.names]


def test_what_comes_meanwhile_is_judged_in_one_go_and_no_more_than_fits():
    model, other, done = Slow(), Slow(), []
    other.go.set()
    judge = Judge(Limits(batch=3, waiting=7), batch_done=lambda pictures, _seconds: done.append(pictures))
    first = judge.submit(model, [Sent("0", "0", b"")])
    while not model.batches:
        pass
    answers = [judge.submit(model, [Sent(str(n), str(n), b"")], maps=n == 2) for n in range(1, 6)]
    elsewhere = judge.submit(other, [Sent("x", "x", b""), Sent("y", "y", b"")])
    assert judge.waiting == 7
    with pytest.raises(Busy):
        judge.submit(model, [Sent("9", "9", b"")])
    assert answers[4].cancel()  # who has waited too long
    model.go.set()
    judge.close()
    assert [outcome.name for answer in (first, *answers[:4]) for outcome in answer.result()] == list("01234")
    assert [outcome.name for outcome in elsewhere.result()] == ["x", "y"]
    assert model.batches == [("0",), ("1", "2", "3"), ("4",)]
    assert model.maps == [False, True, False]  # for a batch in which somebody needs them
    assert done in ([1, 3, 1, 2], [1, 3, 2, 1])
    with pytest.raises(Busy):
        judge.submit(model, [Sent("9", "9", b"")])


class Reading(Slow):
    """Reads its pictures when it is let go."""

    def __init__(self):
        super().__init__()
        self.max_pixels, self.sides = 10**6, []

    def predict(self, source, *, maps):
        found = super().predict(source, maps=maps)
        self.sides += [source.load(i).size for i in range(len(source.names))]
        return found


def test_what_waits_is_decoded_meanwhile_if_it_is_small_and_once(monkeypatch):
    decoded = []

    def decode(content, *, name, max_pixels):
        image = decode_bytes(content, name=name, max_pixels=max_pixels)
        decoded.append((name, threading.current_thread().name.rpartition("_")[0]))
        return image

    monkeypatch.setattr("blemish.station.judge.decode_bytes", decode)
    monkeypatch.setattr("blemish.station.judge.AHEAD_PIXELS", 32 * 32)
    model, large = Reading(), png(pictures(1, side=40)[0])
    judge = Judge(Limits(batch=2), batch_done=lambda *_: None)
    first = judge.submit(model, [Sent("first", "first", GOOD)])
    while not model.batches:
        pass
    contents = {"a": GOOD, "large": large, "b": GOOD, "c": GOOD, "late": GOOD}
    answers = [judge.submit(model, [Sent(name, name, content)]) for name, content in contents.items()]
    model.go.set()
    judge.close()
    assert [answer.result()[0].name for answer in (first, *answers)] == ["first", *contents]
    assert model.sides == [(32, 32), (32, 32), (40, 40), (32, 32), (32, 32), (32, 32)]
    assert sorted(name for name, _ in decoded) == sorted(["first", *contents])  # once each
    # The large one waits as it came, and the latest has no room beside two batches.
    assert {name for name, thread in decoded if thread == "blemish-ahead"} == {"first", "a", "b", "c"}


def test_one_picture_cannot_spoil_the_turn_of_others():
    model = Slow(spoilt=["bad"])
    model.go.set()
    judge = Judge(Limits(), batch_done=lambda *_: None)
    answer = judge.submit(model, [Sent(name, name, b"") for name in ("a", "bad", "b", "a")])
    judge.close()
    good, bad, fine, again = answer.result()
    assert (good.name, fine.name, again) == ("a", "b", good)
    assert bad == "method: expected finite scores, got NaN or infinity for the picture."
    assert model.batches == [("a", "bad", "b"), ("a",), ("bad",), ("b",)]


def test_a_fault_of_ours_reaches_those_who_wait_and_the_next_ones_are_judged(monkeypatch):
    judge, model = Judge(Limits(), batch_done=lambda *_: None), Slow()
    model.go.set()
    monkeypatch.setattr(model, "predict", lambda *_, **_options: 1 / 0)
    broken = judge.submit(model, [Sent("a", "a", b"")])
    assert isinstance(broken.exception(60), ZeroDivisionError)
    monkeypatch.undo()
    assert judge.submit(model, [Sent("a", "a", b"")]).result(60)[0].name == "a"
    judge.close()


# The store


def verdict(number=0, content=b"", **changes):
    line = {"image": f"{number}.png", "score": float(number)}
    return replace(Verdict("m", f"d{number}", None, float(number), 0.5, False, line, content or None), **changes)


def test_changes_that_come_together_share_a_commit(tmp_path):
    with Logbook(tmp_path) as book:
        hold = threading.Event()
        book._change(lambda _file: hold.wait(60))  # one commit is at work
        while not book._file.in_transaction:
            pass
        answers = [book.add([verdict(n)]) for n in range(20)]
        hold.set()
        numbers = [answer.result()[0]["id"] for answer in answers]
        assert (numbers, book.commits) == (list(range(1, 21)), 2)
    assert [row["score"] for row in read_lines(tmp_path)] == list(range(20))


def test_a_commit_that_fails_is_told_and_leaves_nothing(tmp_path):
    with Logbook(tmp_path) as book:
        book.add([verdict(1, b"x" * 10)]).result()
        book._file.execute("PRAGMA query_only = ON")
        with pytest.raises(OutputError, match=r"station\.sqlite: cannot be read or written"):
            book.add([verdict(2, b"x" * 10)]).result()
        book._file.execute("PRAGMA query_only = OFF")
        assert (len(book.history()), book.picture_bytes) == (1, 10)
        book.add([verdict(3)]).result()
        assert len(book.history()) == 2


def test_pictures_go_by_age_and_size_and_those_that_were_spoken_of_go_last(tmp_path):
    with Logbook(tmp_path, retention=Retention(max_bytes=35)) as book:
        for number in range(3):
            (line,) = book.add([verdict(number, b"x" * 10)]).result()
            book.add([verdict(number, b"x" * 10)]).result()  # the same picture once more
            if number == 0:
                assert book.say(line["id"], "defect").result()
        assert book.picture_bytes == 30
        book.add([verdict(3, b"x" * 10)]).result()
        kept = [book.picture(f"d{number}") is not None for number in range(4)]
        assert (kept, book.picture_bytes, len(book.history())) == ([True, False, True, True], 30, 7)
    with Logbook(tmp_path, retention=Retention(days=0)) as book:
        book.add([verdict(4)]).result()
        assert [book.picture(f"d{number}") is not None for number in range(4)] == [True, False, False, False]
        assert book.picture_bytes == 10


def test_a_full_store_is_not_looked_through_at_each_commit(tmp_path):
    """Pictures go a hundredth of the bound at a time, and by age once a minute."""
    asked: list[str] = []
    with Logbook(tmp_path, retention=Retention(max_bytes=1000)) as book:
        book._change(lambda file: file.set_trace_callback(asked.append)).result()
        for number in range(60):
            book.add([verdict(number, b"x" * 20)]).result()
        assert book.picture_bytes <= 1000
        book._change(lambda file: file.set_trace_callback(None)).result()
    looks = [sql for sql in asked if sql.startswith("SELECT digest, size FROM pictures")]
    assert [sum("time <" in sql for sql in looks), sum("ORDER BY" in sql for sql in looks)] == [1, 5]


def test_a_store_of_another_version_is_refused(tmp_path):
    with Logbook(tmp_path) as book:
        book.add([verdict(1)]).result()
    with closing(sqlite3.connect(tmp_path / FILE)) as file:
        assert file.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        file.execute("PRAGMA user_version = 99")
    for use in (Logbook, lambda folder: list(read_lines(folder))):
        with pytest.raises(ArgumentError, match="expected a store of version 1, got version 99"):
            use(tmp_path)
    (tmp_path / FILE).write_bytes(b"no database" * 100)
    with pytest.raises(ArgumentError, match="expected a store of a station"):
        Logbook(tmp_path)
    with pytest.raises(ArgumentError, match="expected the folder of a store"):
        list(read_lines(tmp_path / "none"))


@pytest.mark.parametrize(
    "damage", ["UPDATE verdicts SET line = '{'", "UPDATE verdicts SET line = CAST(x'ff' AS TEXT)", b"\xff"]
)
def test_a_damaged_store_is_refused_by_its_name(damage, tmp_path):
    with Logbook(tmp_path) as book:
        book.add([verdict(n, content=bytes([n]) * 5000) for n in range(9)]).result()
    path = tmp_path / FILE
    if isinstance(damage, str):
        with closing(sqlite3.connect(path)) as file, file:
            file.execute(damage)
    else:
        content = path.read_bytes()
        path.write_bytes(content[:8192] + damage * (len(content) - 8192))
    for read in (read_lines, read_pictures) if damage == b"\xff" else (read_lines,):
        with pytest.raises(OutputError, match=re.escape(f"{path}: ")):
            list(read(tmp_path))


_WRITER = """
import sys
from blemish.station.logbook import Logbook, Verdict
with Logbook(sys.argv[1]) as book:
    number = 0
    while True:
        adds = [book.add([Verdict("m", "d", None, 1.0, 0.5, False, {"n": number + i}, b"x" * 5000)]) for i in range(4)]
        for add in adds:
            add.result()
            print(number, flush=True)
            number += 1
"""


def test_what_was_confirmed_before_a_kill_is_there(tmp_path):
    confirmed = 0
    for kill in range(3):
        command = [sys.executable, "-c", _WRITER, str(tmp_path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
            for _ in range(20 + 7 * kill):
                writer.stdout.readline()
                confirmed += 1
            writer.kill()
            confirmed += len(writer.stdout.read().splitlines())
        with closing(sqlite3.connect(tmp_path / FILE)) as file:
            assert file.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert len(list(read_lines(tmp_path))) >= confirmed
    assert confirmed >= 81


# The process


def test_a_token_is_needed_where_others_can_ask(tmp_path):
    assert [is_loopback(host) for host in ("127.0.0.1", "::1", "localhost", "0.0.0.0", "10.0.0.1", "pc")] == [
        True, True, True, False, False, False,
    ]  # fmt: skip
    assert read_token(None, host="127.0.0.1") is None
    with pytest.raises(ArgumentError, match=r"other machines can reach 0\.0\.0\.0"):
        read_token(None, host="0.0.0.0")
    file = tmp_path / "token"
    file.write_text(f"{TOKEN}\n")
    assert read_token(file, host="0.0.0.0") == TOKEN
    for bad in ("short", "with a blank in the middle", "\N{SNOWMAN}" * 20):
        file.write_text(bad, "utf-8")
        with pytest.raises(ArgumentError, match="expected a token of at least 16"):
            read_token(file, host="127.0.0.1")
    with pytest.raises(ArgumentError, match="expected a file with a token, got a folder"):
        read_token(tmp_path, host="127.0.0.1")


def test_an_address_that_is_taken_is_one_line():
    with bind("127.0.0.1", 0) as taken:
        listen(taken)
        with pytest.raises(ArgumentError, match="that is free"):
            bind("127.0.0.1", taken.getsockname()[1])
    with pytest.raises(ArgumentError, match="an address of this machine"):
        bind("192.0.2.1", 0)


@pytest.mark.skipif(os.name == "nt", reason="there, it is refused earlier")
def test_of_two_that_start_at_a_time_one_gets_the_address():
    with bind("127.0.0.1", 0) as first, bind("127.0.0.1", first.getsockname()[1]) as second:
        listen(first)
        with pytest.raises(ArgumentError, match=r"--port: .* that is free"):
            listen(second)


def test_serve_says_what_is_wrong_before_it_listens(files, tmp_path):
    def serve(*arguments):
        options = ["--store", str(tmp_path / "s"), "--port", "0", "--check"]
        return CliRunner().invoke(app, ["serve", *map(str, arguments), *options])

    assert serve(*files.values()).exit_code == 0
    assert "2 models" in serve(*files.values()).output
    twice = serve(files["small"], files["small"])
    assert (twice.exit_code, "files of different names" in twice.output) == (1, True)
    assert serve(tmp_path / "none.blemish").exit_code == 1
    assert "--token-file" in serve(files["small"], "--host", "0.0.0.0").output


@pytest.mark.parametrize("unfit", ["port", "store", "model"])
def test_serve_loads_nothing_where_it_cannot_begin(unfit, files, tmp_path, monkeypatch):
    loaded = []
    monkeypatch.setattr(Models, "get", lambda _, name: loaded.append(name))
    (tmp_path / "file").touch()
    store = tmp_path / ("file" if unfit == "store" else "store")
    models = [files["small"], tmp_path / "none.blemish" if unfit == "model" else files["other"]]
    with bind("127.0.0.1", 0) as taken:
        listen(taken)
        port = taken.getsockname()[1] if unfit == "port" else 0
        found = CliRunner().invoke(app, ["serve", *map(str, models), "--store", str(store), "--port", str(port)])
    named = {"port": "--port", "store": f"{store}: ", "model": "none.blemish"}[unfit]
    assert (found.exit_code, found.output.count("\n"), named in found.output) == (1, 1, True), found.output
    assert not loaded


def test_nobody_is_heard_before_the_models_are_loaded(files, tmp_path, monkeypatch):
    """The port is held all the time: nobody else can take it meanwhile."""
    bound, refused = [], []

    def get(_models, name):
        with socket.socket() as caller:
            refused.append((name, caller.connect_ex(bound[0].getsockname()) != 0))

    monkeypatch.setattr("blemish.station.server.bind", lambda *where: bound.append(bind(*where)) or bound[0])
    monkeypatch.setattr(Models, "get", get)
    command = ["serve", str(files["small"]), "--store", str(tmp_path), "--port", "0", "--check"]
    assert CliRunner().invoke(app, command).exit_code == 0
    assert refused == [("small", True)]


def test_a_saved_version_answers_from_the_first_picture_after_a_restart(files, tmp_path, monkeypatch):
    with serving(files, tmp_path) as (ask, station):
        ask("POST", "/v1/models/small/revise?rate=0.4")
        station.work.settle()
        ask("POST", "/v1/revision/save")
    loaded, get = [], Models.get
    monkeypatch.setattr(Models, "get", lambda models, name: loaded.append(get(models, name)) or loaded[-1])
    command = ["serve", str(files["small"]), "--store", str(tmp_path), "--port", "0", "--check"]
    assert CliRunner().invoke(app, command).exit_code == 0
    assert [one.detector.calibration_.false_alarm_rate for one in loaded] == [0.4]


def test_serve_leaves_no_thread_where_the_store_is_unfit(files, tmp_path):
    """One that is left keeps the process alive, after it has said what is wrong."""
    before = set(threading.enumerate())
    (tmp_path / "models").write_text("no folder")
    found = CliRunner().invoke(app, ["serve", str(files["small"]), "--store", str(tmp_path), "--port", "0", "--check"])
    assert (found.exit_code, f"{tmp_path / 'models'}: cannot be written" in found.output) == (1, True)
    assert not [thread.name for thread in set(threading.enumerate()) - before if thread.name == "blemish-logbook"]


# Learning


def test_a_first_model_from_pictures(tmp_path, monkeypatch):
    small = partial(Detector, method=PaDiM(backbone="filters"), preprocess=Preprocess(32))
    monkeypatch.setattr("blemish.station.learning.Detector", small)
    with serving({}, tmp_path) as (ask, station):
        status, answer = ask("POST", "/v1/learning/fit?name=part")
        assert (status, answer["error"]) == (422, f"At least {FEWEST_NORMALS} pictures are needed, there are 0.")
        contents = [png(array) for array in pictures(FEWEST_NORMALS + 1)]
        for number, content in enumerate(contents):
            status, answer = ask("POST", f"/v1/learning/pictures?image={number}.png", content, content_type="image/png")
            assert status == 200
        assert (answer["count"], answer["pictures"][0]["name"]) == (FEWEST_NORMALS + 1, "0.png")
        assert ask("POST", "/v1/learning/pictures", b"no image", content_type="image/png")[0] == 422
        first = answer["pictures"][0]["picture"]
        assert ask("GET", f"/v1/learning/pictures/{first}?side=16")[1][:2] == b"\xff\xd8"
        assert ask("GET", "/v1/learning/pictures/..%2Fstation.sqlite")[0] == 404
        assert ask("DELETE", f"/v1/learning/pictures/{first}")[1]["count"] == FEWEST_NORMALS
        assert ask("DELETE", f"/v1/learning/pictures/{first}")[0] == 404
        assert ask("POST", "/v1/learning/inspect")[0] == 202
        station.work.settle()
        found = ask("GET", "/v1/learning")[1]
        assert (found["state"], [row["kind"] for row in found["findings"]]) == ("done", ["unlike"])
        for name in ("", "../part", ".part", "a" * 41, "a b"):
            assert ask("POST", f"/v1/learning/fit?name={quote(name, safe='')}")[0] == 422
        assert ask("POST", "/v1/learning/fit?name=part")[0] == 202
        station.work.settle()
        assert ask("GET", "/v1/learning")[1]["learned"] == "part"
        assert ask.predict(defect(), name="part")[1]["results"][0]["anomalous"]
        assert ask("POST", "/v1/learning/fit?name=part")[0] == 409
    with serving({}, tmp_path) as (ask, _):  # it is there after a restart
        assert [row["name"] for row in ask("GET", "/v1/models")[1]["models"]] == ["part"]
        assert ask("DELETE", "/v1/learning/pictures")[1]["count"] == 0


def test_a_first_model_is_learned_on_the_device_of_the_station(tmp_path, monkeypatch):
    fitted_on = []
    monkeypatch.setattr(Detector, "fit", lambda self, *_images, **_more: fitted_on.append(self.method_.device))
    work = Work()
    models = Models({}, max_bytes=10**9)
    with Logbook(tmp_path) as book:
        revising = Revising(tmp_path, models, book, work)
        monkeypatch.setattr(revising, "keep", lambda *_given, **_more: None)
        learning = Learning(tmp_path, models, revising, work, device="cpu")
        learning.add(Sent(f"{n}.png", f"{n:064x}", png(array)) for n, array in enumerate(pictures(FEWEST_NORMALS)))
        learning.learn("part")
        work.settle()
    work.close()
    models.close()
    assert fitted_on == ["cpu"]


@pytest.mark.parametrize(("bound", "kept"), [({"MOST_NORMALS": 3}, 3), ({"MOST_BYTES": 250}, 2)])
def test_the_tray_has_a_bound_and_takes_again_what_it_holds(tmp_path, monkeypatch, bound, kept):
    for name, most in bound.items():
        monkeypatch.setattr(f"blemish.station.learning.{name}", most)
    models, work = Models({}, max_bytes=10**9), Work()
    with Logbook(tmp_path) as book:
        learning = Learning(tmp_path, models, Revising(tmp_path, models, book, work), work)
        sent = [Sent(f"{n}.png", f"{n:064x}", bytes(100)) for n in range(4)]
        with pytest.raises(Refusal, match=f"The tray is full, with {kept} pictures") as refused:
            learning.add(sent)
        assert refused.value.status == 413
        assert [path.stem for path in sorted((tmp_path / "tray").iterdir())] == [one.digest for one in sent[:kept]]
        learning.add(sent[:kept])
        learning.remove(sent[0].digest)
        learning.add(sent[3:])
        assert learning.status()["count"] == kept
    work.close()
    models.close()


@pytest.mark.parametrize(("count", "rate"), [(8, 0.2), (17, 0.2), (18, 0.1), (37, 0.1), (38, 0.05), (500, 0.05)])
def test_the_rate_is_one_that_half_of_the_pictures_can_hold(count, rate):
    assert _rate_for(count) == rate


def test_one_learns_at_a_time_and_a_failure_is_told(tmp_path, monkeypatch):
    models, work = Models({}, max_bytes=10**9), Work()
    with Logbook(tmp_path) as book:
        learning = Learning(tmp_path, models, Revising(tmp_path, models, book, work), work)
        learning.add([stations_sent(n) for n in range(FEWEST_NORMALS)])
        hold = threading.Event()

        class Broken:
            method_ = PaDiM()

            def __init__(self, **_options):
                pass

            def fit(self, _images, progress):
                progress("fit", 1, 2)
                hold.wait(60)
                raise CalibrationError("too few")

        monkeypatch.setattr("blemish.station.learning.Detector", Broken)
        learning.learn("part")
        with pytest.raises(Refusal, match="just now"):
            learning.learn("other")
        with pytest.raises(Refusal, match="just now"):
            learning.remove(None)
        hold.set()
        work.settle()
        assert {"state": "failed", "error": "too few", "done": 1, "total": 2}.items() <= learning.status().items()
        assert models.names() == []
        work.close()
    models.close()


def feed(ask, contents, **said):
    """Judge pictures, and say of each what is known."""
    for content in contents:
        (line,) = ask.predict(content)[1]["results"]
        if said:
            ask("POST", f"/v1/verdicts/{line['id']}/feedback?said={said['said']}")


def test_another_rate_is_tried_saved_and_taken_back(files, tmp_path):
    with serving(files, tmp_path) as (ask, station):
        before = ask("GET", "/v1/models/small")[1]
        feed(ask, [defect()], said="defect")
        assert ask("POST", "/v1/models/small/revise?rate=0.5")[0] == 202
        station.work.settle()
        status = ask("GET", "/v1/revision")[1]
        assert (status["state"], status["promise"]["false_alarm_rate"]) == ("done", 0.5)
        assert status["tried"]["defect"] == {"pictures": 1, "flagged_before": 1, "flagged_after": 1}
        assert ask("GET", "/v1/models/small")[1]["digest"] == before["digest"]  # nothing is saved yet
        assert ask("POST", "/v1/revision/save") == (200, {"model": "small"})
        (line,) = ask.predict(GOOD)[1]["results"]  # the very next one
        after = ask("GET", "/v1/models/small")[1]
        assert (after["false_alarm_rate"], after["versions"]) == (0.5, ["rate 0.5"])
        assert (line["false_alarm_rate"], line["model"]) == (0.5, after["digest"])
        assert ask("POST", "/v1/revision/save")[0] == 409
    with serving(files, tmp_path) as (ask, station):  # it is there after a restart
        assert ask("GET", "/v1/models/small")[1]["digest"] == after["digest"]
        assert ask("POST", "/v1/models/small/undo") == (200, {"model": "small", "versions": []})
        assert ask("GET", "/v1/models/small")[1]["digest"] == before["digest"]
        assert ask("POST", "/v1/models/small/undo")[0] == 409
        assert ask("POST", "/v1/models/none/undo")[0] == 404
        for query in ("", "?rate=0.1&days=1", "?rate=2", "?days=-1"):
            assert ask("POST", f"/v1/models/small/revise{query}")[0] == 422
        ask("POST", "/v1/models/small/revise?rate=0.001")
        station.work.settle()
        assert "needs at least 999" in ask("GET", "/v1/revision")[1]["error"]
        assert ask("POST", "/v1/revision/save")[0] == 409


def test_feedback_learns_what_was_fine_and_calibrates_on_a_complete_sample(files, tmp_path):
    brighter = [png((array * 0.7 + 70).astype("uint8")) for array in pictures(24, seed=30)]
    with serving(files, tmp_path) as (ask, station):
        feed(ask, brighter[:6], said="fine")
        with closing(sqlite3.connect(tmp_path / FILE)) as file, file:
            file.execute("UPDATE verdicts SET time = time - 864000")  # before the sample's days
        feed(ask, brighter[6:])
        feed(ask, [defect()], said="defect")

        def revise():
            assert ask("POST", "/v1/models/small/revise?days=7")[0] == 202
            station.work.settle()
            return ask("GET", "/v1/revision")[1]

        flagged = ask("GET", "/v1/verdicts?anomalous=true&days=1&limit=500")[1]["verdicts"]
        assert len(flagged) > 10  # another light: the old model flags nearly all
        assert "have no answer" in revise()["error"]
        for line in flagged:
            if line["feedback"] is None:
                ask("POST", f"/v1/verdicts/{line['id']}/feedback?said=fine")
        status = revise()
        assert (status["state"], status["learned_from"], status["sample"]) == ("done", 6, 18)
        assert status["promise"]["held_out"] == 18
        fine = status["tried"]["fine"]
        assert fine["flagged_after"] < fine["flagged_before"] / 2
        assert ask("DELETE", "/v1/revision")[1]["state"] == "idle"
        assert ask("POST", "/v1/revision/save")[0] == 409
        assert revise()["state"] == "done"
        assert ask("POST", "/v1/revision/save")[0] == 200
        ask("GET", "/v1/models/small")
        station.models.settle()
        assert ask("GET", "/v1/models/small")[1]["versions"] == ["feedback: 6 learned, 18 for the threshold"]
        with closing(sqlite3.connect(tmp_path / FILE)) as file, file:
            file.execute("DELETE FROM pictures WHERE digest = ?", (flagged[-1]["picture"],))
        assert "1 pictures of this period are no longer kept" in revise()["error"]


def test_feedback_reads_pictures_in_their_turn_and_passes_over_none(files, tmp_path, monkeypatch):
    """A store may hold more than the memory does."""
    with serving(files, tmp_path, max_pixels=90_000_000) as (ask, station):
        feed(ask, [png(array) for array in pictures(24, seed=40)])
        for line in ask("GET", "/v1/verdicts?anomalous=true&limit=500")[1]["verdicts"]:
            ask("POST", f"/v1/verdicts/{line['id']}/feedback?said=fine")

        def revise():
            ask("POST", "/v1/models/small/revise?days=7")
            station.work.settle()
            return ask("GET", "/v1/revision")[1]

        at_hand, bounds, read = [0], set(), Logbook.picture

        def reading(book, digest):
            at_hand.append(at_hand[-1] + 1)
            return read(book, digest)

        def decoding(content, *, name, max_pixels):
            at_hand.append(at_hand[-1] - 1)
            bounds.add(max_pixels)
            return decode_bytes(content, name=name, max_pixels=max_pixels)

        monkeypatch.setattr(Logbook, "picture", reading)
        monkeypatch.setattr("blemish.station.revising.decode_bytes", decoding, raising=False)
        assert revise()["sample"] == 24
        assert (max(at_hand) <= 4, bounds) == (True, {90_000_000})
        monkeypatch.setattr(Logbook, "picture", lambda book, digest: b"no picture")
        assert "not an image" in revise()["error"]
        monkeypatch.setattr(Logbook, "picture", lambda *_: None)  # swept meanwhile
        assert "no longer kept" in revise()["error"]


def test_what_a_killed_station_left_is_removed_at_the_start(files, tmp_path):
    with subprocess.Popen([sys.executable, "-c", ""]) as gone:
        gone.wait()
    made, tray = tmp_path / "models", tmp_path / "tray"
    for folder in (made, tray):
        folder.mkdir()
    left = [made / f".a.blemish.{gone.pid}-7.tmp", tray / f".b.png.{gone.pid}-7.tmp", made / "old.blemish"]
    stays = [made / f".c.blemish.{os.getpid()}-7.tmp", made / "new.blemish", made / "taken-back.blemish"]
    for path in (*left, *stays):
        path.touch()
    for path in (left[2], stays[2]):
        os.utime(path, (0, 0))
    with Logbook(tmp_path) as book:
        book.add_model("small", "taken-back.blemish", how="rate 0.1", base=None).result()
        book.undo_model("small").result()
    with serving(files, tmp_path):
        assert [path.name for path in left if path.exists()] == []
        assert all(path.exists() for path in stays)


def test_versions_belong_to_the_file_that_was_given(files, tmp_path):
    given = tmp_path / "small.blemish"
    given.write_bytes(files["small"].read_bytes())
    models = Models({"small": given}, max_bytes=10**9)
    with Logbook(tmp_path / "s") as book:
        work = Work()
        Revising(tmp_path / "s", models, book, work).keep("small", models.read("small").detector, how="again")
        assert models.path("small") != given
        for content, is_given in ((files["small"], False), (files["other"], True)):
            given.write_bytes(content.read_bytes())
            table = Models({"small": given}, max_bytes=10**9)
            Revising(tmp_path / "s", table, book, work)
            assert (table.path("small") == given) is is_given
            table.close()
        work.close()
    models.close()


def stations_sent(number):
    return Sent(f"{number}.png", f"{number:064x}", png(pictures(1, seed=number)[0]))
