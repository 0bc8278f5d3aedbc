"""What one caller may ask of a station, and what all of them together may."""

from __future__ import annotations

from dataclasses import dataclass

from ..images.decode import MAX_PIXELS


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Bounds of a station; what is beyond one is refused with the status of that bound, before the work."""

    max_bytes: int = 32_000_000
    """Of one request: 413 beyond it."""
    max_pixels: int = MAX_PIXELS
    """Of one picture, as its head claims them: it gets a line with an error, as in `predict`."""
    pictures: int = 32
    """Of one request: 413."""
    requests: int = 128
    """That are read or judged at a time: 429."""
    waiting: int = 256
    """Pictures that wait for their turn: 429."""
    seconds: float = 30.0
    """To send a request (408), and to be judged after it was sent (503)."""
    connections: int = 1024
    """Open at a time, over which requests come; further ones are closed."""
    batch: int = 8
    """Pictures judged in one go: those that came while the last ones were judged. Nobody waits for others to come."""
