"""What a study compares: data sets x methods x backbones x taps x dimensions x seeds.

A plan is a few lists; a cell is one combination of their items, one row of the result. Cells that read the same
features form a group.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields, replace
from itertools import combinations, product
from pathlib import Path
from typing import Any, Literal

from ..errors import ArgumentError, DatasetError
from ..files import read_text
from ..images.groups import grouped
from ..images.preprocess import Preprocess
from ..parameters import (
    Parameter,
    as_plain,
    check_parameters,
    parameter,
    parameters_of,
    read_plain,
    read_texts,
    split_spec,
)  # fmt: skip

DEFAULT_TAPS, ALL_SUBSETS = "default", "all-subsets"
_THESIS = "thesis"
"""Stands for the rows of the thesis on backbone layers."""
_WEIGHTS = ("pretrained", "random", "available")
PresetName = Literal["default", "paper"]

Value = str | int | float | bool | tuple[Any, ...] | None


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One combination: everything that decides its figures, and nothing else."""

    dataset: str
    """Absolute path of the folder."""
    method: str
    parameters: tuple[tuple[str, Value], ...]
    """Those that differ from the method's defaults, sorted by name; taps and seed apart."""
    backbone: str
    weights: str
    """`pretrained`, `random`, or a file."""
    taps: tuple[str, ...] | None
    """None: those that the method recommends."""
    seed: int
    """Of the method, of the images held out, and of random weights."""
    resize: int | tuple[int, int] | str
    """Numbers, or `auto`: what the training images of the data set say."""
    crop: int | None
    held_out: float
    """Share of the normal images that fix the threshold; 0: no threshold."""
    false_alarm_rate: float
    intervals: bool
    repetitions: int
    white_level: float | Literal["auto"] | None = None
    """Of the data set's 16-bit files."""

    @property
    def key(self) -> str:
        """The same for the same cell, on any machine that has the data in the same place."""
        values = asdict(self)
        if self.white_level is None:  # cells of studies from before there was one keep their keys
            del values["white_level"]
        text = json.dumps(values, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def spec(self) -> str:
        """Method and parameters as a plan writes them."""
        return ",".join([self.method, *(f"{name}={_text(value)}" for name, value in self.parameters)])

    def __str__(self) -> str:
        taps = "+".join(self.taps) if self.taps else DEFAULT_TAPS
        return f"{Path(self.dataset).name} {self.spec} {self.backbone} {taps} seed {self.seed}"


@dataclass(frozen=True)
class Group:
    """Cells that read the features of the same images, made by the same network."""

    cells: tuple[Cell, ...]


def groups(cells: Iterable[Cell]) -> tuple[Group, ...]:
    """Bundle cells by what their features depend on, in the order of each bundle's first cell."""

    def same(cell: Cell) -> tuple[object, ...]:
        initialisation = cell.seed if cell.weights == "random" else None
        precision = dict(cell.parameters).get("precision")
        pixels = (cell.resize, cell.crop, cell.white_level)
        return cell.dataset, cell.backbone, cell.weights, initialisation, pixels, precision

    return tuple(Group(tuple(bundle)) for bundle in grouped(cells, same).values())


@dataclass(frozen=True, kw_only=True)
class StudyPlan:
    """The lists whose product is the study, and the settings that all cells share.

    Parameters
    ----------
    data: dataset folders; `*` stands for any part of a name. Relative to the plan's file, or to the working
        folder. `FOLDER:one-class=CLASS` and `FOLDER:all-but=CLASS` too, where `*` stands for each class.
    methods: each `NAME,KEY=VALUE,...`; `taps=layer1+layer2` and `preset=paper` may stand there as well.
    backbones: see `blemish list backbones`; or `timm:NAME`; `thesis` stands for the 71 rows of the thesis
        (docs/backbones.md).
    taps: layers joined by `+`; `default`, what each method recommends; `all-subsets` of the backbone's layers.
    dimensions: for the methods that leave the number of dimensions open (padim); empty: the backbone's own. Those that
        exceed the channels of the chosen layers are left out.
    seeds: of the method, of the images held out for the threshold, and of random weights.
    weights: `pretrained`; `random`; `available`, which is `pretrained` for the backbones whose weights lie in
        `$BLEMISH_WEIGHTS` or ship with the package, and `random` for the others, as each cell then says; or a file that
        fits all backbones.
    preset: `default` (the images' own aspect ratio at the area of 256 x 256, nothing cropped, a fifth of the normal
        images held out) or `paper` (256, crop 224, none held out, each method's parameters of its paper).
    resize: another input size in pixels: a side, height and width, `auto`, or `auto:SIDE`.
    white_level: of 16-bit files: 1023 for a camera of 10 bits, 4095 for 12; `auto`; None: 65535.
    held_out: share of the normal images that fix the threshold, or as many as the rate takes where that is more, and as
        many remain; 0: no threshold; None: the preset's.
    false_alarm_rate: the share of normal images that may be called anomalous.
    intervals: 95 % bootstrap intervals of the image figures.
    repetitions: of the bootstrap for pixel figures, each as long as the figures themselves; 0: no such intervals.
    """

    data: tuple[str, ...] = parameter(least=1)
    methods: tuple[str, ...] = parameter(least=1)
    backbones: tuple[str, ...] = parameter(("compact",), least=1)
    taps: tuple[str, ...] = parameter((DEFAULT_TAPS,), least=1)
    dimensions: tuple[int, ...] = ()
    seeds: tuple[int, ...] = parameter((0,), least=1)
    weights: str = "pretrained"
    preset: PresetName = "default"
    resize: int | tuple[int, int] | str | None = None
    white_level: float | Literal["auto"] | None = parameter(None, above=0, at_most=65535)
    held_out: float | None = parameter(None, at_least=0, below=1)
    false_alarm_rate: float = parameter(0.05, above=0, below=1)
    intervals: bool = True
    repetitions: int = parameter(0, at_least=0)

    def __post_init__(self) -> None:
        check_parameters(self)
        if self.resize is not None:
            Preprocess(self.resize)

    @classmethod
    def load(cls, path: str | Path) -> StudyPlan:
        """Read a plan from a TOML file; dataset paths in it are relative to it."""
        path = Path(path)
        plan = cls(**read_plain(cls, _read_toml(path), of=str(path)))
        here = path.resolve().parent
        weights = plan.weights if plan.weights in _WEIGHTS else str(here / plan.weights)
        return replace(plan, data=tuple(str(here / folder) for folder in plan.data), weights=weights)

    def text(self) -> str:
        """The plan as TOML, which `load` reads back."""
        chosen = {field.name: getattr(self, field.name) for field in fields(self)}
        # The strings, numbers and lists of JSON are TOML too; nothing stands for None.
        lines = (
            f"{name} = {json.dumps(value, ensure_ascii=False)}\n" for name, value in chosen.items() if value is not None
        )
        return "".join(lines)

    def cells(self) -> tuple[Cell, ...]:
        """All combinations, each once, in the order of the lists: data sets outside, then backbones, methods ...

        Raises `ArgumentError` for a name that is wrong, and for a method that cannot be fitted with its parameters.
        """
        from ..features.backbones import find_backbone

        backbones = self._backbones()
        for backbone in backbones:
            if not backbone.startswith("timm:"):  # to look those up is to build them
                find_backbone(backbone)
        found: dict[Cell, None] = {}
        alone = {spec for spec in self.methods if not self._reads_backbone(spec)}
        for dataset, backbone, spec in product(self._folders(), backbones, self.methods):
            # A method without a backbone is the same for all of them.
            if backbone == backbones[0] or spec not in alone:
                for cell in self._cells(dataset, backbone, spec, alone=spec in alone):
                    found.setdefault(cell)
        return tuple(found)

    def _cells(self, dataset: str, backbone: str, spec: str, *, alone: bool) -> Iterator[Cell]:
        from ..presets import find_preset

        method, parameters = parse_method(spec, preset=self.preset)
        preset = find_preset(parameters.pop("preset", self.preset))
        pixels = preset.resized(self.resize)
        own_taps = parameters.pop("taps", None)
        taps = [own_taps] if own_taps else [None] if alone else _tap_sets(self.taps, backbone)
        defaults = {name: known.default for name, known in _own_parameters(method).items()}
        for chosen, dimensions, seed in product(taps, self._dimensions(method, parameters), self.seeds):
            if dimensions.get("dimensions", 0) > _channels(backbone, chosen):
                continue
            values = sorted((parameters | dimensions).items())
            yield Cell(
                dataset=dataset,
                method=method,
                parameters=tuple((name, value) for name, value in values if value != defaults[name]),
                backbone=backbone,
                weights="pretrained" if alone else self._weights(backbone),
                taps=chosen,
                seed=seed,
                resize=pixels.resize,
                crop=pixels.crop,
                held_out=(0.0 if preset.calibration == "none" else 0.2)
                if self.held_out is None
                else float(self.held_out),
                false_alarm_rate=float(self.false_alarm_rate),
                intervals=self.intervals,
                repetitions=self.repetitions,
                white_level=self.white_level,
            )

    def _folders(self) -> list[str]:
        from ..datasets.layouts import OneClass

        folders: list[str] = []
        for text in self.data:
            spelled = OneClass.spelled(text)
            folder = text if spelled is None else str(spelled.folder)
            path = Path(os.path.abspath(folder))  # links stay: where they lead to may change
            found = sorted(p for p in Path(path.anchor).glob(str(path.relative_to(path.anchor))) if p.is_dir())
            if "*" in folder and not found:
                raise DatasetError.about(text, expected="folders of that name", got="none")
            for p in found or [path]:
                folders += [str(p)] if spelled is None else map(str, spelled._replace(folder=p).each())
        return list(dict.fromkeys(folders))

    def _dimensions(self, method: str, parameters: Mapping[str, Value]) -> list[dict[str, int]]:
        known = _own_parameters(method).get("dimensions")
        open_ = known is not None and known.default is None and "dimensions" not in parameters
        open_ = open_ and parameters.get("reduction") != "none"  # which keeps all
        return [{"dimensions": d} for d in self.dimensions] if open_ and self.dimensions else [{}]

    def _backbones(self) -> list[str]:
        from ..features.backbones import THESIS

        named = [THESIS if name == _THESIS else (name,) for name in self.backbones]
        return list(dict.fromkeys(name for names in named for name in names))

    def _reads_backbone(self, spec: str) -> bool:
        """Whether the plan's backbones mean anything to a method; refuses one that could not be fitted."""
        from ..methods import FeatureMethod
        from ..methods.registry import METHODS

        name, parameters = parse_method(spec, preset=self.preset)
        values = {key: value for key, value in parameters.items() if key != "preset"}
        method = METHODS[name](**values)
        try:
            method.check()
        except ArgumentError as error:
            raise ArgumentError(f"method {spec}: {error}") from None
        return isinstance(method, FeatureMethod) and not method.brings_network

    def _weights(self, backbone: str) -> str:
        """What a cell's `weights` say."""
        from ..features.backbones import find_backbone
        from ..features.weights import at_hand

        if self.weights == "available":
            return "pretrained" if at_hand(find_backbone(backbone)) else "random"
        return self.weights if self.weights in _WEIGHTS else os.path.abspath(self.weights)


def parse_method(spec: str, *, preset: str = "default") -> tuple[str, dict[str, Any]]:
    """The name and the parameters of `NAME,KEY=VALUE,...`, those of its paper included with the preset `paper`.

    >>> parse_method("padim,dimensions=50,sigma=2")
    ('padim', {'dimensions': 50, 'sigma': 2.0})
    """
    from ..methods.registry import find_method
    from ..presets import find_preset

    name, settings = split_spec(spec, of="methods")
    kind = find_method(name)
    set_by_plan = [key for key, known in parameters_of(kind).items() if known.option and key != "taps"]
    values = read_texts(kind, settings, of=f"method {name}", without=set_by_plan, more=("preset",))
    chosen = _PRESET.of_text(settings.get("preset", preset), of=f"method {name}, ")
    if "preset" in settings:
        values["preset"] = chosen
    return name, find_preset(chosen).choose(name)[1] | values


_PRESET = Parameter("preset", PresetName, "default", "")


def split_methods(text: str) -> tuple[str, ...]:
    """Cut a list of methods at the commas before names, not at those before parameters.

    >>> split_methods("knn,padim,dimensions=50,seed=1,spade")
    ('knn', 'padim,dimensions=50,seed=1', 'spade')
    """
    specs: list[str] = []
    for part in text.split(","):
        if "=" in part and specs:
            specs[-1] += f",{part}"
        else:
            specs.append(part)
    return tuple(specs)


def _own_parameters(method: str) -> dict[str, Parameter]:
    """What a plan may say of a method: all but what it has lists of its own for, and where a fit runs."""
    from ..methods.registry import METHODS

    return {name: known for name, known in parameters_of(METHODS[method]).items() if not known.option}


def _channels(backbone: str, taps: tuple[str, ...] | None) -> float:
    """Of these layers together; infinite where the table does not know one, and only the network could tell."""
    from ..features.backbones import BACKBONES

    row = BACKBONES.get(backbone)
    if row is None or not set(taps or ()) <= set(row.taps):
        return float("inf")
    return sum(count for tap, count in zip(row.taps, row.channels, strict=True) if taps is None or tap in taps)


def _tap_sets(taps: Iterable[str], backbone: str) -> list[tuple[str, ...] | None]:
    sets: list[tuple[str, ...] | None] = []
    for text in taps:
        if text == DEFAULT_TAPS:
            sets.append(None)
        elif text == ALL_SUBSETS:
            from ..features.backbones import find_backbone

            names = find_backbone(backbone).taps
            sets += [some for count in range(1, len(names) + 1) for some in combinations(names, count)]
        else:
            sets.append(_split(text))
    return sets


def _split(taps: str) -> tuple[str, ...]:
    return tuple(taps.split("+"))


def _text(value: Value) -> str:
    plain = as_plain(value)
    if isinstance(plain, list):
        return "+".join(map(str, plain))
    return plain if isinstance(plain, str) else json.dumps(plain)


def _read_toml(path: Path) -> dict[str, Any]:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    text = read_text(path, expected="a plan in TOML")
    try:
        table: dict[str, Any] = tomllib.loads(text)
        return table
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        reason = "nested too deep" if isinstance(error, RecursionError) else error
        raise ArgumentError(f"{path}: not a TOML file ({reason}).") from None
