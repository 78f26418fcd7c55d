"""How good a TFLite classifier is, asked photo by photo through the plain interpreter."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from ai_edge_litert.interpreter import Interpreter
from numpy.typing import NDArray
from PIL import Image, ImageOps

from tools.train_default.photos import PhotoSet
from tools.train_default.quantise import Range, range_of


@dataclass(frozen=True, slots=True)
class Verdict:
    """A model's answers to a set: parts right, and `confusion` int64 [true class, answered class] in photos."""

    top_1: float
    top_5: float
    confusion: NDArray[np.int64]


def interpreter_of(model: bytes, threads: int = 1, keep_all: bool = False) -> Interpreter:
    """An interpreter ready to run; `keep_all` keeps every tensor readable afterwards, at some cost in speed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that keeping all tensors costs memory: it is what is asked for
        interpreter = Interpreter(model_content=model, num_threads=threads, experimental_preserve_all_tensors=keep_all)
    interpreter.allocate_tensors()
    return interpreter


def fed(pixels: NDArray[np.uint8], dtype: type) -> NDArray[np.generic]:
    """Bytes [h, w, 3] as the model's input [1, h, w, 3]: unchanged for uint8, (x - 128) / 128 for float32."""
    if np.dtype(dtype) == np.uint8:
        return pixels[None]
    return ((pixels[None].astype(np.float32) - np.float32(128)) / np.float32(128)).astype(np.float32)


def answers(model: bytes, pixels: NDArray[np.uint8], threads: int = 1) -> NDArray[np.float32]:
    """Probabilities per photo, float32 [n, classes]."""
    interpreter = interpreter_of(model, threads)
    entry, exit_ = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
    scale, zero_point = exit_["quantization"]
    made = np.empty((len(pixels), int(exit_["shape"][-1])), np.float32)
    for index, photo in enumerate(pixels):
        interpreter.set_tensor(entry["index"], fed(photo, entry["dtype"]))
        interpreter.invoke()
        raw = interpreter.get_tensor(exit_["index"])[0].astype(np.float32)
        made[index] = (raw - zero_point) * scale if scale else raw
    return made


def verdict(probabilities: NDArray[np.float32], classes: NDArray[np.int64]) -> Verdict:
    """Compare answers [n, classes] with the truth; equal probabilities rank by class number, the lower first."""
    ranked = np.argsort(-probabilities, axis=1, kind="stable")
    found = ranked[:, :5] == classes[:, None]
    count = probabilities.shape[1]
    confusion = np.zeros((count, count), np.int64)
    np.add.at(confusion, (classes, ranked[:, 0]), 1)
    return Verdict(float(found[:, 0].mean()), float(found.any(axis=1).mean()), confusion)


def judged(model: bytes, photos: PhotoSet) -> Verdict:
    """What the model answers for a set of photos."""
    return verdict(answers(model, photos.pixels), photos.classes)


def measured_ranges(
    model: bytes, pixels: NDArray[np.uint8], tail: float, advance: Callable[[int], None]
) -> dict[str, Range]:
    """The range of every computed tensor of a float model over the photos, by name."""
    interpreter = interpreter_of(model, keep_all=True)
    entry = interpreter.get_input_details()[0]
    wanted = [detail for detail in interpreter.get_tensor_details() if detail["dtype"] == np.float32]
    samples: dict[str, list[NDArray[np.float32]]] = {detail["name"]: [] for detail in wanted}
    for photo in pixels:
        interpreter.set_tensor(entry["index"], fed(photo, np.float32))
        interpreter.invoke()
        for detail in wanted:
            if "/" not in detail["name"] and detail["name"]:
                samples[detail["name"]].append(interpreter.get_tensor(detail["index"]).reshape(-1).copy())
        advance(1)
    return {name: range_of(np.concatenate(values), tail) for name, values in samples.items() if values}


def stretched(path: Path, side: int) -> NDArray[np.uint8]:
    """A photo of any size as bytes [side, side, 3]: turned upright, RGB, stretched with Pillow's BILINEAR."""
    with Image.open(path) as image:
        upright = ImageOps.exif_transpose(image).convert("RGB")
        return np.asarray(upright.resize((side, side), Image.Resampling.BILINEAR), np.uint8)
