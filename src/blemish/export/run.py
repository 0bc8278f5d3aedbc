"""Judges pictures with an exported blemish model. It needs numpy, Pillow and a runtime; no blemish.

One JSON line a picture, as `blemish predict` prints them. A file that cannot be judged has a line with "error".
"""

import argparse
import json
import logging
import os
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

NUMBERS = ("score", "p_value", "anomalous", "predicted")
ENDINGS = "apng bmp gif j2k jfif jp2 jpe jpeg jpg mpo pbm pgm png pnm ppm tif tiff webp".split()  # noqa: SIM905
Image.MAX_IMAGE_PIXELS = 40_000_000  # Pillow refuses twice as many


def read_pixels(path: Path) -> Any:
    """A picture as (1, height, width, 3) uint8, upright, over white; ValueError for more than 8 bits a channel."""
    if path.exists() and not path.is_file():
        raise ValueError("a folder, pipe, socket or device")
    with Image.open(path, formats=("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")) as image:
        bits = max(getattr(image, "tag_v2", {}).get(258, (8,)))
        deep = image.format == "PPM" and any(isinstance(part, int) and part > 255 for part in image.tile[0][3] or ())
        if image.mode[:1] in ("I", "F") or ";16" in str(image.tile) or bits > 8 or deep:
            raise ValueError("more than 8 bits a channel; save it as 8 bits, or use blemish itself")
        upright: Any = ImageOps.exif_transpose(image)
    if upright.has_transparency_data:
        upright = upright.convert("RGBA")
        if upright.getextrema()[3][1] == 0:
            raise ValueError("transparent everywhere")
        upright = Image.alpha_composite(Image.new("RGBA", upright.size, "white"), upright)
    return np.asarray(upright.convert("RGB"))[None]


def open_model(path: str, runtime: str, threads: int) -> tuple[Any, Any]:
    """What makes all outputs by name of pixels, and the card."""
    try:
        model, text = start(path, runtime, threads)
        card = json.loads(text)
        return model, card | {"line": card["line"] | {"version": card["line"]["version"]}}
    except ImportError as error:
        raise SystemExit(f"error: {error.name} is not installed: pip install {error.name}") from None
    except Exception as error:
        reason = "it has no card" if isinstance(error, KeyError) else (str(error) or repr(error)).splitlines()[0]
        raise SystemExit(f"error: {path}: not a file that `blemish export` wrote, or damaged ({reason}).") from None


def start(path: str, runtime: str, threads: int) -> tuple[Any, str]:
    """The same, the card as text; raises whatever a runtime raises."""
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]  # it would tell its maker of each import
    package: Any = import_module(runtime)
    if runtime == "torch":
        logging.getLogger("torch.export").setLevel(logging.CRITICAL)  # it tells of damaged files at length
        package.set_num_threads(threads or package.get_num_threads())
        program = package.export.load(path, extra_files=(found := {"blemish": "{}"})).module().requires_grad_(False)
        return lambda pixels: program(package.tensor(pixels)), found["blemish"]
    if runtime == "openvino":
        model = package.Core().read_model(path)
        card = model.get_rt_info(["blemish"] if path.endswith(".xml") else ["framework", "blemish"]).value
        hints = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads}
        return package.compile_model(model, "CPU", hints), card
    package.disable_telemetry_events()
    options = package.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    session = package.InferenceSession(path, options, providers=["CPUExecutionProvider"], enable_fallback=0)
    names = [output.name for output in session.get_outputs()]
    card = session.get_modelmeta().custom_metadata_map["blemish"]
    return lambda pixels: dict(zip(names, session.run(None, {"pixels": pixels}), strict=True)), card


def judge(model: Any, line: dict[str, Any], path: Path, maps: Path | None) -> dict[str, Any]:
    """The line of one picture; `line` is what all have in common."""
    try:
        found = model(read_pixels(path))
    except Exception as error:  # Pillow's readers raise almost anything; a runtime refuses a size
        return {"version": line["version"], "image": str(path), "error": f"{path}: {error or type(error).__name__}"}
    line = line | {"image": str(path)} | {name: found[name][0].item() for name in NUMBERS if name in found}
    if maps is not None and "map" in found:
        os.makedirs(maps, exist_ok=True)
        line["heatmap"] = f"{sum(1 for _ in maps.iterdir()):06}-{path.stem}.npy"
        np.save(maps / line["heatmap"], found["map"][0])
    return line


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("pictures", nargs="+", type=Path, help="files and folders")
    parser.add_argument("--maps", type=Path, metavar="FOLDER", help="write each map there; a line names its own")
    parser.add_argument("--runtime", choices=("onnxruntime", "openvino", "torch"), help="default: by the ending")
    parser.add_argument("--threads", type=int, default=0, choices=range(257), metavar="N", help="0: all")
    parser.add_argument("--exit-code", action="store_true", help="3: one is anomalous; 4: one was not judged")
    given = parser.parse_args()
    runtime = given.runtime or {".xml": "openvino", ".pt2": "torch"}.get(Path(given.model).suffix, "onnxruntime")
    model, card = open_model(given.model, runtime, given.threads)
    status = 0
    for place in given.pictures:  # of a folder all pictures below it that are not hidden
        shown = (path for path in place.rglob("*") if "/." not in f"/{path.relative_to(place).as_posix()}")
        below = sorted(path for path in shown if path.suffix.lower()[1:] in ENDINGS and path.is_file())
        for path in below if place.is_dir() else [place]:
            print(json.dumps(line := judge(model, card["line"], path, given.maps)), flush=True)
            status = 3 if line.get("anomalous") or status == 3 else 4 if "error" in line else status
    return status if given.exit_code else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except BrokenPipeError:  # whoever read the lines has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    except (OSError, KeyboardInterrupt) as error:
        sys.exit(f"error: {error or 'stopped'}")
