"""Parameters: one description, one parser, one check and one error, for methods, detectors, plans and recipes.

A keyword-only dataclass says everything about a parameter once: its type and its choices in the annotation, bounds and
role in `parameter(...)`, its meaning in the section *Parameters* of the docstring. Values in Python, KEY=VALUE on the
command line and in a plan, and the JSON of a model file are all read and checked here, and `blemish list` and the
tables of the docs show the same.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from functools import cache
from inspect import getdoc, isclass
from numbers import Integral, Real
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from .errors import ArgumentError, log

Role = Literal["model", "place"]
"""`model`: a part of what a fitted object is, so of its file; `place`: where, how long and with what it is fitted."""
_P = TypeVar("_P", bound="Parameterised")


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """Limits of a number, or of each number of a list; None where there is none."""

    above: float | None = None
    at_least: float | None = None
    below: float | None = None
    at_most: float | None = None
    multiple_of: int | None = None
    least: int = 0
    """How many items a list has at least."""

    def allow(self, value: Any) -> bool:
        """Whether a number lies within."""
        return (
            (self.above is None or value > self.above)
            and (self.at_least is None or value >= self.at_least)
            and (self.below is None or value < self.below)
            and (self.at_most is None or value <= self.at_most)
            and (self.multiple_of is None or value % self.multiple_of == 0)
        )

    def __str__(self) -> str:
        low = self.above if self.at_least is None else self.at_least
        high = self.below if self.at_most is None else self.at_most
        words = "" if self.multiple_of is None else f", a multiple of {self.multiple_of}"
        if low is not None and high is not None:
            left, right = "(" if self.at_least is None else "[", ")" if self.at_most is None else "]"
            return f" in {left}{low:g}, {high:g}{right}{words}"
        if low is not None:
            return (f" above {low:g}" if self.at_least is None else f" of at least {low:g}") + words
        if high is not None:
            return (f" below {high:g}" if self.at_most is None else f" of at most {high:g}") + words
        return words.replace(", a", ", a", 1)


def parameter(
    default: Any = MISSING,
    *,
    above: float | None = None,
    at_least: float | None = None,
    below: float | None = None,
    at_most: float | None = None,
    multiple_of: int | None = None,
    least: int = 0,
    role: Role = "model",
    option: bool = False,
) -> Any:
    """Make a dataclass field with bounds and a role; `option`: it has an option, or a list of a plan, of its own."""
    bounds = Bounds(above=above, at_least=at_least, below=below, at_most=at_most, multiple_of=multiple_of, least=least)
    return field(default=default, metadata={"bounds": bounds, "role": role, "option": option})


@dataclass(frozen=True)
class Parameter:
    """One parameter of a class, as its annotation, `parameter(...)` and docstring describe it."""

    name: str
    kind: Any
    """The annotation, resolved."""
    default: Any
    """`dataclasses.MISSING` where a value must be given."""
    meaning: str
    bounds: Bounds = Bounds()
    role: Role = "model"
    option: bool = False

    @property
    def expected(self) -> str:
        """What it takes, in words."""
        return " or ".join(dict.fromkeys(_words(kind, self.bounds) for kind in _members(self.kind)))

    def check(self, value: object, *, of: str = "") -> None:
        """Raise `ArgumentError` where it does not take the value; `of` says whose parameter it is."""
        if not any(_takes(kind, value, self.bounds) for kind in _members(self.kind)):
            is_list = any(get_origin(kind) is tuple for kind in _members(self.kind))
            raise self._wrong(value, of, f"Write {(value,)!r}." if is_list and isinstance(value, str) else "")

    def of_text(self, text: str, *, of: str = "") -> Any:
        """Read what stands behind KEY= on a command line or in a plan; + or commas part the items of a list."""
        # A text is what nothing else could read.
        for kind in sorted(_members(self.kind), key=lambda kind: {str: 1, Path: 2}.get(kind, 0)):
            try:
                value = _read(kind, text)
            except ValueError:
                continue
            if _takes(kind, value, self.bounds):
                return value
        raise self._wrong(text, of)

    def of_plain(self, value: Any, *, of: str = "") -> Any:
        """Read a value of JSON or TOML, which know no tuples."""
        found = tuple(value) if isinstance(value, list) else value
        if float in _members(self.kind) and type(found) is int:
            found = float(found)
        self.check(found, of=of)
        return found

    def as_json(self) -> dict[str, object]:
        """For `blemish list --json`."""
        limits = {name: limit for name, limit in vars(self.bounds).items() if limit}
        return {
            "name": self.name,
            "type": self.expected,
            "default": None if self.default is MISSING else as_plain(self.default),
            "bounds": limits,
            "role": self.role,
            "meaning": self.meaning,
        }

    def _wrong(self, value: object, of: str, instead: str = "") -> ArgumentError:
        if not instead and self.default is not MISSING:
            instead = f"The default is {_spelled(self.default)}."
        got = "an empty text" if isinstance(value, str) and not value else value
        return ArgumentError.about(f"{of}{self.name}", expected=self.expected, got=got, instead=instead)


def parameters_of(kind: Any) -> Mapping[str, Parameter]:
    """The parameters of a dataclass by name, in the order of its fields; none of another class."""
    return _described(kind)


@cache
def _described(kind: Any) -> Mapping[str, Parameter]:
    types, meanings = get_type_hints(kind), _meanings(kind)
    return {
        f.name: Parameter(f.name, types[f.name], f.default, meanings.get(f.name, ""), **f.metadata)
        for f in (fields(kind) if is_dataclass(kind) else ())
        if f.init
    }


def check_parameters(made: Any, *, of: str = "") -> None:
    """Refuse the first value of a dataclass instance that its parameter does not take."""
    for name, known in parameters_of(type(made)).items():
        known.check(getattr(made, name), of=of)


def split_settings(settings: Iterable[str], *, of: str) -> dict[str, str]:
    """Split KEY=VALUE texts; `of` says where they stand.

    >>> split_settings(["sigma=2", "reduction=none"], of="--set")
    {'sigma': '2', 'reduction': 'none'}
    """
    found: dict[str, str] = {}
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals or not key:
            raise ArgumentError.about(of, expected="KEY=VALUE", got=setting or "an empty text")
        if key in found:
            raise ArgumentError.about(of, expected=f"{key} once", got=f"{key}={found[key]} and {setting}")
        found[key] = text
    return found


def split_spec(spec: str, *, of: str) -> tuple[str, dict[str, str]]:
    """Split `NAME,KEY=VALUE,...` into the name and the settings.

    >>> split_spec("padim,dimensions=50", of="methods")
    ('padim', {'dimensions': '50'})
    """
    name, *settings = spec.split(",")
    return name, split_settings(settings, of=f"{of} {name}")


def read_texts(
    kind: type, settings: Mapping[str, str], *, of: str, without: Collection[str] = (), more: Collection[str] = ()
) -> dict[str, Any]:
    """Read texts by name into values for `kind(...)`; refuses unknown names, and those in `without`.

    Texts of names in `more` are not the class's, and left out.
    """
    known = {name: p for name, p in parameters_of(kind).items() if name not in without}
    for key in settings:
        if key not in known and key not in more:
            names = ", ".join([*known, *more])
            raise ArgumentError.about(of, expected=f"a parameter out of {names}" if names else "no parameter", got=key)
    return {key: known[key].of_text(text, of=f"{of}, ") for key, text in settings.items() if key not in more}


def read_plain(
    kind: type, values: Mapping[str, Any], *, of: str, complete: bool = False, without: Collection[str] = ()
) -> dict[str, Any]:
    """Read JSON or TOML values by name into values for `kind(...)`; refuses unknown names, and what is missing.

    `complete`: every parameter of the role `model` must be there, as in what `plain_parameters` gives; else those
    without a default. Names in `without` are read elsewhere.
    """
    known = {name: p for name, p in parameters_of(kind).items() if name not in without}
    for key in values:
        if key not in known and key not in without:
            raise ArgumentError.about(of, expected=f"the keys {', '.join(known)}", got=key)
    for name, p in known.items():
        needed = p.default is MISSING or (complete and p.role == "model")
        if needed and name not in values:
            raise ArgumentError.about(of, expected=f"{name}: {p.expected}", got="none")
    return {key: known[key].of_plain(value, of=f"{of}: ") for key, value in values.items() if key in known}


def as_plain(value: Any) -> Any:
    """A parameter's value in JSON types; an object, such as a backbone, by its name."""
    if isinstance(value, tuple | list):
        return [as_plain(item) for item in value]
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        return float(value)
    return str(value) if isinstance(value, Path) else getattr(value, "name", repr(value))


def plain_parameters(made: Any) -> dict[str, Any]:
    """What a fitted object is, in JSON types: its parameters but for those of the role `place`."""
    known = parameters_of(type(made)).items()
    return {name: as_plain(getattr(made, name)) for name, p in known if p.role == "model"}


def count_of(made: Any, name: str, there: int, of: str) -> int:
    """How many of what there is a parameter asks for. More is refused; a default then takes all, and a line says so."""
    known, wanted = parameters_of(type(made))[name], getattr(made, name)
    if wanted <= there:
        return int(wanted)
    if wanted != known.default:
        raise ArgumentError.about(name, expected=f"at most {there}, {of}", got=wanted)
    log.warning("%s: all %d, %s; its default %s is more.", name, there, of, wanted)
    return there


class Parameterised:
    """A keyword-only dataclass that stores its parameters unchanged, as scikit-learn's estimators do."""

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Parameters by name; `deep` adds those of parameters that have some themselves, as `method__sigma`."""
        own = {name: getattr(self, name) for name in parameters_of(type(self))}
        if not deep:
            return own
        inner = ((name, value.get_params()) for name, value in own.items() if isinstance(value, Parameterised))
        return own | {f"{name}__{key}": value for name, found in inner for key, value in found.items()}

    def set_params(self: _P, **parameters: Any) -> _P:
        """Change parameters by name; what was learned stays until the next `fit`. Raises `ArgumentError`."""
        known = parameters_of(type(self))
        for key, value in parameters.items():
            name, inner, rest = key.partition("__")
            if name not in known:
                raise ArgumentError.about("set_params", expected=f"a parameter out of {', '.join(known)}", got=key)
            if inner:
                getattr(self, name).set_params(**{rest: value})
            else:
                setattr(self, name, value)
        return self


def _members(kind: Any) -> tuple[Any, ...]:
    """The types of a union, or the type itself."""
    return get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)


def _takes(kind: Any, value: Any, bounds: Bounds) -> bool:  # noqa: PLR0911 - a table of types
    if kind is Any:
        return True
    if get_origin(kind) is Literal:
        return any(type(value) is type(choice) and value == choice for choice in get_args(kind))
    if get_origin(kind) in (tuple, dict):
        return _takes_items(kind, value, bounds)
    if kind is bool or isinstance(value, bool):
        return kind is bool and isinstance(value, bool)
    if kind is int:
        return isinstance(value, Integral) and bounds.allow(value)
    if kind is float:
        return isinstance(value, Real) and math.isfinite(value) and bounds.allow(value)
    if getattr(kind, "_is_protocol", False):
        return all(hasattr(value, part) for part in vars(kind) if not part.startswith("_"))
    return isinstance(value, get_origin(kind) or kind)


def _takes_items(kind: Any, value: Any, bounds: Bounds) -> bool:
    """Whether a list or a table holds what its annotation says."""
    kinds = get_args(kind)
    if get_origin(kind) is dict:
        return isinstance(value, dict) and all(
            isinstance(key, str) and _takes(kinds[1], item, bounds) for key, item in value.items()
        )
    if not isinstance(value, tuple | list):
        return False
    if kinds[-1] is ...:
        return len(value) >= bounds.least and all(_takes(kinds[0], item, bounds) for item in value)
    return len(value) == len(kinds) and all(_takes(k, item, bounds) for k, item in zip(kinds, value, strict=True))


def _word_of(known: Mapping[str, Any], text: str) -> Any:
    if text not in known:
        raise ValueError(text)
    return known[text]


def _whole_number(text: str) -> int:
    if not re.fullmatch(r"[+-]?\d+", text, re.ASCII):
        raise ValueError(text)
    return int(text)


_READERS: dict[Any, Callable[[str], Any]] = {
    NoneType: lambda text: _word_of({"none": None, "null": None}, text.lower()),
    bool: lambda text: _word_of({"true": True, "false": False}, text.lower()),
    int: _whole_number, float: float, str: str, Path: Path,
}  # fmt: skip


def _read(kind: Any, text: str) -> Any:
    """Raises ValueError where the text is none of this type."""
    if kind in _READERS:
        return _READERS[kind](text)
    if get_origin(kind) is Literal:
        return _word_of({str(choice): choice for choice in get_args(kind)}, text)
    if get_origin(kind) is not tuple:
        raise ValueError(text)
    if not text.startswith("["):
        return tuple(_read(get_args(kind)[0], part) for part in re.split("[+,]", text))
    try:
        return tuple(json.loads(text))
    except RecursionError:  # nested too deep
        raise ValueError(text) from None


def _words(kind: Any, bounds: Bounds) -> str:
    if get_origin(kind) is Literal:
        *most, last = map(str, get_args(kind))
        return f"{', '.join(most)} or {last}" if most else last
    if get_origin(kind) is tuple:
        inner, *rest = get_args(kind)
        if get_origin(inner) is Literal:
            return f"some of {', '.join(map(str, get_args(inner)))}"
        plural = {int: "whole numbers", float: "numbers", str: "texts"}.get(inner, "values")
        if rest != [...]:
            return f"{1 + len(rest)} {plural if rest else plural.removesuffix('s')}{bounds}"
        items = f"a list of {plural}{bounds}"
        return f"{items}, {bounds.least} or more" if bounds.least else items
    known: dict[Any, str] = {dict[str, str]: "a table of texts", dict[str, Any]: "a table"}
    known |= {bool: "true or false", str: "a text", Path: "a path", NoneType: "None"}
    known |= {int: f"a whole number{bounds}", float: f"a number{bounds}"}
    if kind in known:
        return known[kind]
    name = getattr(get_origin(kind) or kind, "__name__", str(kind))
    return f"{'an' if name[0] in 'AEIOU' else 'a'} {name}"


def _spelled(value: Any) -> str:
    plain = as_plain(value)
    if isinstance(plain, list):
        return "+".join(map(str, plain))
    return str(plain).lower() if isinstance(plain, bool) else str(plain)


@cache
def _meanings(kind: type) -> dict[str, str]:
    """What the sections *Parameters* of a class and its bases say, by name."""
    found: dict[str, str] = {}
    for base in kind.__mro__:
        if not isclass(base) or not base.__doc__:
            continue
        _, _, section = (getdoc(base) or "").partition("Parameters\n----------\n")
        entries = re.findall(r"^(\w[\w, ]*): (.*(?:\n +.*)*)", section.partition("\n\n")[0], re.MULTILINE)
        for names, text in entries:
            for name in names.split(", "):
                found.setdefault(name, " ".join(text.split()))
    return found
