"""Frames of a video file, a camera or a network stream, by OpenCV without windows (extra `video`).

OpenCV was taken and not PyAV: both bring FFmpeg, but the wheels of PyAV contain libx264 and libx265 too, whose
licence is the GPL; OpenCV's contain FFmpeg under the LGPL.
"""

from __future__ import annotations

import math
import os
import re
from contextlib import AbstractContextManager
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray

from ..errors import ArgumentError, ImageError, MissingPackageError

_NETWORK = ("http", "https", "rtmp", "rtmps", "rtp", "rtsp", "rtsps", "srt", "tcp", "udp")
_SECONDS = 10
"""That a stream may take to open, and to bring its next frame."""


def import_cv2() -> Any:
    """The package, which says nothing on stderr by itself. Raises `MissingPackageError`."""
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # FFmpeg's own lines, before its first use
    try:
        import cv2
    except ImportError as error:
        raise MissingPackageError("Videos need one more package. Run: pip install 'blemish[video]'.") from error
    if hasattr(cv2, "setLogLevel"):  # OpenCV 4
        cv2.setLogLevel(0)
    else:
        cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    return cv2


class Video(AbstractContextManager["Video"]):
    """The frames of one source, in their order. Use it in a `with` statement.

    Parameters
    ----------
    source: a file; a number for a camera of this machine; else an address, such as `rtsp://camera/1`.
    max_pixels: larger frames are refused before one is read.

    Raises `MissingPackageError`, `ArgumentError` where it cannot be opened, `ImageError` for frames that are too large.
    """

    def __init__(self, source: str, *, max_pixels: int) -> None:
        cv2 = import_cv2()
        self.name, self.is_live = spell_source(source), is_live(source)
        is_there = int(source) < 1 << 31 if _is_number(source) else self.is_live or os.path.isfile(source)
        if not is_there:
            raise ArgumentError.about(
                "SOURCE", expected="a video file, the number of a camera, or an address such as rtsp://...", got=source
            )
        limits = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, 1000 * _SECONDS, cv2.CAP_PROP_READ_TIMEOUT_MSEC, 1000 * _SECONDS]
        if _is_number(source):
            self._capture = cv2.VideoCapture(int(source))
        else:
            self._capture = cv2.VideoCapture(source, cv2.CAP_FFMPEG, limits)
        if not self._capture.isOpened():
            self._capture.release()
            expected = "one that answers" if self.is_live else "a video that can be read"
            raise ArgumentError.about(self.name, expected=expected, got="none")
        self.rate = _positive(self._capture.get(cv2.CAP_PROP_FPS))
        """Frames a second, as the source states it; None where it does not."""
        stated = _positive(self._capture.get(cv2.CAP_PROP_FRAME_COUNT))
        self.stated = None if stated is None or self.is_live else int(stated)
        """How many frames a file states to have, which may be an estimate."""
        width, height = (int(self._capture.get(p)) for p in (cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT))
        if width * height > max_pixels:
            self.close()
            raise ImageError(
                f"{self.name}: {width} x {height} pixels a frame are above the limit of {max_pixels:,}. "
                "Allow more with --max-pixels."
            )

    def __exit__(self, *_error: object) -> None:
        self.close()

    def close(self) -> None:
        """Let the source go."""
        self._capture.release()

    def skip(self) -> bool:
        """Pass over the next frame; gives whether there was one."""
        return bool(self._capture.grab())

    def read(self) -> NDArray[np.uint8] | None:
        """The next frame, `(height, width, 3)`, RGB; None at the end, or where the source has broken off."""
        done, frame = self._capture.read()
        return np.ascontiguousarray(frame[..., ::-1]) if done else None


def is_live(source: str) -> bool:
    """Whether a source goes on whether or not somebody takes its frames: a camera, an address in a network.

    Of what else FFmpeg takes for an address, such as `file://` or `concat://`, nothing is read.

    >>> [is_live(source) for source in ("clip.avi", "0", "rtsp://camera/1", "file:///clip.avi")]
    [False, True, True, False]
    """
    return _is_number(source) or source.partition("://")[0].lower() in _NETWORK


def _is_number(source: str) -> bool:
    return source.isascii() and source.isdecimal()


def spell_source(source: str) -> str:
    """A source as it may be written down: without the name, password and query of an address.

    >>> [spell_source(source) for source in ("clip.avi", "0", "rtsp://me:secret@camera:554/1?key=2")]
    ['clip.avi', 'camera 0', 'rtsp://camera:554/1']
    """
    if _is_number(source):
        return f"camera {source}"
    if "://" not in source:
        return source
    found = urlsplit(re.sub(r"[\x00-\x20]", "", source))
    return f"{found.scheme}://{found.netloc.rpartition('@')[2]}{found.path}"


def _positive(value: float) -> float | None:
    return float(value) if math.isfinite(value) and 0 < value < 1e9 else None
