"""Every error that blemish raises on purpose.

    BlemishError
    ├── ArgumentError        an argument has a wrong value, type or shape  (also a ValueError)
    ├── ImageError           one image or mask file cannot be used         (also a ValueError)
    ├── DatasetError         a folder does not have a known layout         (also a ValueError)
    ├── WeightsError         pretrained weights are missing or do not fit
    ├── NotFittedError       `score` or `save` before `fit`
    ├── NotEnoughMemoryError a fit would not fit into the memory there is  (also a MemoryError)
    ├── CalibrationError     a false-alarm rate that the held-out images cannot support
    ├── TrainingError        a training run met NaN or an infinity
    ├── ExportError          an exported file would not say what its detector says
    ├── OutputError          a file or folder cannot be written            (also an OSError)
    ├── ModelFileError       a model file or checkpoint is damaged, foreign or from another version
    └── MissingPackageError  an optional package is not installed          (also an ImportError)

A message says which argument or file, what was expected, what came, and what to do instead. What is no error, and yet
worth a line, goes to `log`.
"""

from __future__ import annotations

import logging
from typing import TypeVar

log = logging.getLogger("blemish")
"""The command line writes it to stderr."""
_E = TypeVar("_E", bound="BlemishError")


class BlemishError(Exception):
    """Base class: `except blemish.BlemishError` catches everything that blemish raises on purpose."""

    @classmethod
    def about(cls: type[_E], what: str, *, expected: str, got: object, instead: str = "") -> _E:
        """Build the four-part message.

        >>> ArgumentError.about("false_alarm_rate", expected="a number in (0, 1)", got=1.5, instead="Write 0.05.")
        ArgumentError('false_alarm_rate: expected a number in (0, 1), got 1.5. Write 0.05.')
        """
        return cls(f"{what}: expected {expected}, got {_describe(got)}. {instead}".rstrip())


class ArgumentError(BlemishError, ValueError):
    """An argument has a wrong value, type or shape."""


class ImageError(BlemishError, ValueError):
    """One image or mask file cannot be used; the message starts with its path."""


class DatasetError(BlemishError, ValueError):
    """A folder does not have a known layout, or lacks a part that the command needs."""


class WeightsError(BlemishError):
    """Pretrained weights are missing, or lack parameters that the tapped layers need."""


class NotFittedError(BlemishError):
    """A method or detector was used before `fit`."""


class NotEnoughMemoryError(BlemishError, MemoryError):
    """A fit, as planned from its shapes, would not fit into the memory there is; nothing was computed yet."""


class CalibrationError(BlemishError):
    """The held-out normal images cannot support the wanted false-alarm rate."""


class TrainingError(BlemishError):
    """A loss, gradient, parameter or criterion became NaN or infinite; the message names the step and the cause."""


class ExportError(BlemishError):
    """An exported file would not say what its detector says; it was not written."""


class OutputError(BlemishError, OSError):
    """A file or folder that shall be written cannot be; the message starts with its path."""


class ModelFileError(BlemishError):
    """A model file is damaged, foreign, or written by an incompatible version."""


class MissingPackageError(BlemishError, ImportError):
    """An optional package is not installed; the message names the extra that brings it."""


def _describe(value: object) -> str:
    """Name a value by shape and dtype where it has them, else by its repr, cut to one line.

    >>> import numpy
    >>> _describe(numpy.zeros((2, 3)))
    'an array of shape (2, 3) and dtype float64'
    """
    if isinstance(value, str):
        return value
    shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", None)
    if shape is not None and dtype is not None:
        return f"an array of shape {tuple(shape)} and dtype {dtype}"
    text = repr(value)
    return text if len(text) <= 120 else f"{text[:117]}..."
