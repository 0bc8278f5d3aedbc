"""Frames of a video or a camera: each judged once or counted, never more of them in memory than said."""

from __future__ import annotations

import json
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

from blemish.cli import app
from blemish.edges.video import Video, is_live, spell_source
from blemish.errors import ArgumentError, ImageError, MissingPackageError
from blemish.station.stream import Buffer, Stream, VideoFrame
from receivers import broker, http_receiver
from stations import fitted, pictures

FRAMES = pictures(10, seed=3)


@pytest.fixture(scope="module")
def detector():
    found = fitted()
    found.on_error, found.batch_size = "skip", 4
    return found


@pytest.fixture(scope="module")
def model(detector, tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "m.blemish"
    detector.save(path)
    return path


def write_video(path, frames, rate=10):
    height, width = frames[0].shape[:2]
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), rate, (width, height))
    for frame in frames:
        writer.write(np.ascontiguousarray(frame[..., ::-1]))
    writer.release()
    return path


@pytest.fixture
def video(tmp_path):
    return write_video(tmp_path / "clip.avi", FRAMES)


class Frames:
    """A source in memory; `before(number)` is called before each frame is read, and says whether there is one."""

    def __init__(self, count, *, live=False, rate=None, before=lambda _: True):
        self.name, self.is_live, self.rate = "source", live, rate
        self.left, self.before, self.at, self.closed = count, before, 0, False

    def skip(self):
        return self.read() is not None

    def read(self):
        if not self.before(self.at) or self.left == 0:
            return None
        self.left -= 1
        self.at += 1
        return FRAMES[(self.at - 1) % 10]

    def close(self):
        self.closed = True


# Reading


def test_frames_of_a_file_are_those_that_were_written(video):
    with Video(str(video), max_pixels=10**6) as source:
        assert (source.name, source.is_live, source.rate, source.stated) == (str(video), False, 10, 10)
        for number, frame in enumerate(FRAMES):
            if number == 5:
                assert source.skip()
                continue
            found = source.read()
            assert (found.shape, found.dtype) == (frame.shape, np.uint8)
            assert np.abs(found.astype(int) - frame).mean() < 12  # a lossy format
        assert source.read() is None
        assert not source.skip()


def test_red_stays_red(tmp_path):
    red = np.zeros((16, 16, 3), np.uint8)
    red[..., 0] = 200
    with Video(str(write_video(tmp_path / "red.avi", [red])), max_pixels=10**6) as source:
        assert np.abs(source.read().astype(int) - red).max() < 20


def test_what_cannot_be_opened_is_named(tmp_path, video):
    (tmp_path / "text.avi").write_bytes(b"no video" * 1000)
    for source, expected in (
        (str(tmp_path / "none.avi"), "SOURCE: expected a video file"),
        (str(tmp_path), "SOURCE: expected a video file"),
        (str(tmp_path / "text.avi"), r"text\.avi: expected a video that can be read"),
        ("rtsp://me:secret@127.0.0.1:9/1", r"^rtsp://127\.0\.0\.1:9/1: expected one that answers"),
        ("99", "camera 99: expected one that answers"),
    ):
        with pytest.raises(ArgumentError, match=expected):
            Video(source, max_pixels=10**6)
    with pytest.raises(ImageError, match="32 x 32 pixels a frame are above the limit of 1,000"):
        Video(str(video), max_pixels=1000)


def test_without_opencv_it_is_named(monkeypatch, video):
    monkeypatch.setitem(__import__("sys").modules, "cv2", None)
    with pytest.raises(MissingPackageError, match=r"blemish\[video\]"):
        Video(str(video), max_pixels=1000)


# The buffer


def frame(number):
    return VideoFrame(number, 0.0, FRAMES[0])


def test_a_buffer_of_a_live_source_drops_the_oldest():
    buffer = Buffer(2, drops=True)
    assert [buffer.put(frame(number)) for number in range(5)] == [0, 0, 1, 1, 1]
    taken, lost = buffer.take(9)
    assert ([one.number for one in taken], lost) == ([3, 4], 3)
    buffer.end()
    assert buffer.take(9) == ([], 0)


def test_a_buffer_of_a_file_waits_and_what_is_there_at_the_end_is_given():
    buffer, taken = Buffer(2, drops=False), []

    def fill():
        for number in range(50):
            assert buffer.put(frame(number)) == 0
            assert len(buffer._frames) <= 2
        buffer.end()

    filler = threading.Thread(target=fill)
    filler.start()
    while some := buffer.take(3)[0]:
        taken += [one.number for one in some]
    filler.join()
    assert taken == list(range(50))


# Judging


def test_every_frame_of_a_file_has_a_line_of_predict(detector, video):
    with Video(str(video), max_pixels=10**6) as source:
        frames = [source.read() for _ in range(10)]
    stream = Stream(detector, Video(str(video), max_pixels=10**6))
    lines = list(stream.lines())
    decisions = list(detector.predict(frames))
    assert [(line["frame"], line["image"]) for line in lines] == [(n, f"{video}#{n}") for n in range(10)]
    assert [line["score"] for line in lines] == pytest.approx([one.score for one in decisions], rel=1e-5)
    counts = stream.counts
    assert (counts.came, counts.judged, counts.dropped, counts.passed_over, counts.breaks) == (10, 10, 0, 0, 0)


def test_frames_that_were_judged_before_are_passed_over(detector):
    stream = Stream(detector, Frames(10), done={0, 1, 2, 7})
    assert [line["frame"] for line in stream.lines()] == [3, 4, 5, 6, 8, 9]
    assert (stream.counts.came, stream.counts.passed_over) == (10, 4)


@pytest.mark.parametrize(
    ("stated", "rate", "expected"),
    [
        (10, 5, [0, 2, 4, 6, 8]),
        (10, 10, list(range(10))),
        (10, 99, list(range(10))),
        (10, 4, [0, 3, 5, 8]),
        (10, 0.5, [0]),
    ],
)
def test_a_wanted_rate_passes_frames_over_evenly(detector, stated, rate, expected):
    stream = Stream(detector, Frames(10, rate=stated), rate=rate)
    assert [line["frame"] for line in stream.lines()] == expected


def test_a_live_source_does_not_wait_and_what_is_lost_is_counted(detector, monkeypatch):
    """Twenty frames come while the first ones are judged: the buffer holds the latest four."""
    all_came, first_taken = threading.Event(), threading.Event()

    def before(number):
        if number == 1:
            assert first_taken.wait(30)
        if number == 21:
            all_came.set()
        return True

    predict = detector.predict

    def slow(source, *, maps):
        first_taken.set()
        assert all_came.wait(30)
        return predict(source, maps=maps)

    monkeypatch.setattr(detector, "predict", slow, raising=False)
    seconds = iter(range(1000))
    stream = Stream(detector, Frames(21, live=True, before=before), clock=lambda: next(seconds) / 10)
    lines = list(stream.lines())
    assert [(line["frame"], line["dropped"]) for line in lines] == [(0, 0), (17, 16), (18, 0), (19, 0), (20, 0)]
    assert (stream.counts.came, stream.counts.judged, stream.counts.dropped) == (21, 5, 16)
    assert lines[0]["image"] == f"source#0@{lines[0]['time']}"
    assert lines[0]["time"].startswith("1970-01-01T00:00:00.")


def test_a_live_source_that_breaks_off_is_opened_again(detector, monkeypatch):
    monkeypatch.setattr("blemish.station.stream._WAITS", (0.0,))
    second, said = Frames(2, live=True), []
    outcomes = [ArgumentError("source: no answer."), second, ArgumentError("source: no answer.")]

    def reopen():
        if not outcomes:
            stream._stops.set()  # as at Ctrl-C
            raise ArgumentError("source: no answer.")
        outcome = outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    first = Frames(3, live=True)
    stream = Stream(detector, first, reopen=reopen, say=said.append)
    came = sum(1 for _ in stream.lines())
    assert came + stream.counts.dropped == stream.counts.came == 5
    assert stream.counts.breaks == 2
    assert first.closed
    assert second.closed
    assert said == [
        "source: broke off after frame 2; it is opened again.",
        "source: no answer. It is tried again and again.",
        "source: broke off after frame 4; it is opened again.",
        "source: no answer. It is tried again and again.",
    ]


def test_faults_of_reading_and_judging_reach_the_caller_and_leave_no_thread(detector, monkeypatch):
    def fail(_number):
        raise OSError("no camera")

    with pytest.raises(OSError, match="no camera"):
        list(Stream(detector, Frames(3, before=fail)).lines())
    monkeypatch.setattr(detector, "predict", lambda _, maps: 1 / 0, raising=False)
    with pytest.raises(ZeroDivisionError):
        list(Stream(detector, Frames(10**9)).lines())
    assert not [thread for thread in threading.enumerate() if thread.name == "blemish-frames"]


# The command


def run(*arguments):
    done = CliRunner().invoke(app, [*map(str, arguments)])
    assert done.exit_code == 0, done.output
    return done


def test_a_run_goes_on_where_the_lines_end_and_another_video_is_judged_anew(model, video, tmp_path):
    out = tmp_path / "lines.jsonl"
    on_screen = [json.loads(line) for line in run("stream", model, video).stdout.splitlines()]
    run("stream", model, video, "--out", out)
    lines = out.read_text().splitlines()
    # How many frames a batch has depends on how busy the machine is, and last digits on that.
    scores = [row["score"] for row in on_screen]
    assert [json.loads(line)["score"] for line in lines] == pytest.approx(scores, rel=1e-5)
    out.write_text("\n".join([*lines[:4], lines[4][:50]]))  # killed
    done = run("stream", model, video, "--out", out)
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["frame"] for row in rows] == list(range(10))
    assert "10 frames a second stated" in done.stderr
    assert "10 frames came, 6 judged" in done.stderr
    assert "4 passed over" in done.stderr
    write_video(video, FRAMES[:3])
    run("stream", model, video, "--out", out)
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["frame"] for row in rows[10:]] == [0, 1, 2]
    assert len({row["model"] for row in rows}) == 1


def test_a_video_that_ends_too_early_is_said(model, video):
    whole = video.read_bytes()
    video.write_bytes(whole[: whole.rindex(b"00dc", 0, len(whole) * 8 // 10)])  # before one of the last frames
    done = run("stream", model, video)
    assert "It states 10 frames; what was read ends before." in done.stderr
    assert 0 < len(done.stdout.splitlines()) < 10


def test_lines_are_sent_where_they_are_wanted(model, video, tmp_path):
    out = tmp_path / "lines.jsonl"
    (tmp_path / "token").write_text("secret")
    with http_receiver([503]) as (address, posted), broker() as (port, published):
        run(
            "stream", model, video, "--out", out, "--webhook", address, "--webhook-token-file", tmp_path / "token",
            "--mqtt", f"127.0.0.1:{port}/line",
        )  # fmt: skip
        posted.wait(11)
    lines = out.read_bytes().splitlines()
    assert published.lines == lines
    assert posted.lines == [lines[0], *lines]
    assert posted.about[0]["Authorization"] == "Bearer secret"


def test_without_a_file_nothing_can_wait(model, video):
    done = CliRunner().invoke(app, ["stream", str(model), str(video), "--webhook", "http://127.0.0.1:9/"])
    assert done.exit_code == 1
    assert done.stderr.startswith("error: --webhook and --mqtt: expected --out FILE too")


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_about):
        pass


def test_an_address_is_a_live_source(model, video):
    """A video that a server gives stands for a camera; it ends, and is opened again."""
    handler = partial(_Quiet, directory=str(video.parent))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            done = run("stream", model, f"http://127.0.0.1:{server.server_address[1]}/clip.avi", "--frames", "12")
        finally:
            server.shutdown()
            thread.join()
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    numbers = [row["frame"] for row in rows]
    assert len(numbers) == len(set(numbers)) == 12
    assert numbers == sorted(numbers)
    assert all("time" in row and "file" not in row for row in rows)
    assert "clip.avi: broke off after frame 9; it is opened again." in done.stderr


@pytest.mark.parametrize(
    ("source", "live", "name"),
    [
        ("0", True, "camera 0"),
        ("clip.avi", False, "clip.avi"),
        ("rtsp://me:secret@camera/1?key=2", True, "rtsp://camera/1"),
        ("http://camera:80/a b", True, "http://camera:80/ab"),
    ],
)
def test_sources_are_told_apart_and_named_without_secrets(source, live, name):
    assert (is_live(source), spell_source(source)) == (live, name)


def test_a_secret_without_a_receiver_is_refused(model, video, tmp_path):
    (tmp_path / "secret").write_text("a" * 20, encoding="utf-8")
    for option, wanted in (("--webhook-token-file", "--webhook URL"), ("--mqtt-password-file", "--mqtt NAME@HOST")):
        words = ["stream", str(model), str(video), "--out", str(tmp_path / "o.jsonl"), option, str(tmp_path / "secret")]
        done = CliRunner().invoke(app, words)
        assert done.exit_code == 1
        assert f"{option}: expected {wanted}" in done.stderr
