"""A photo or tensor file to a model's inputs, and its outputs to predictions, the way MediaPipe does it."""

from __future__ import annotations

import functools
import io
import struct
import warnings
import zlib
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from meshnn.errors import InputError
from meshnn.graph.card import Card, CardTensor, Normalisation
from meshnn.input_file import check_size
from meshnn.predictions import Prediction, predictions
from meshnn.tensor_file import Array, is_npz, read_npz

__all__ = ["Array", "Photo", "Prediction", "predictions", "read_inputs", "read_npz", "read_photo", "to_tensor"]

Photo: TypeAlias = Image.Image

PIXELS_MAX = 100_000_000
"""The largest photo that is decoded: 100 megapixels are 300 MB."""

PIXELS_UNASKED, PIXELS_A_BYTE = 2_000_000, 500
"""Above so many pixels a file must have a byte for each so many: a PNG of one colour has one for some 350. A kilobyte
that claims 45 megapixels is no photo; it took 0.7 s to decode, and its pixels alone are 135 MB."""

DEFAULT_NORMALISATION = Normalisation((127.5,), (127.5,))
"""What a float model without metadata is given: values from -1 to 1."""

_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
# PostScript is a program, and Pillow starts another program to run it.
_REFUSED_FORMATS = frozenset(["EPS"])
# What decoders raise on spoilt bytes: nearly anything.
_DECODER_ERRORS = (
    ArithmeticError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
    Warning,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)


def read_inputs(data: bytes, name: str, card: Card) -> dict[str, Array]:
    """The input tensors of a model, by their names in the file, from a photo's or an .npz file's bytes; InputError."""
    if is_npz(data):
        return read_npz(data, card, name)
    return to_tensor(read_photo(data, name), card, name)


def read_photo(data: bytes, name: str) -> Photo:
    """Decode a photo of any format Pillow reads, upright; the first frame of an animation. InputError, one line.

    The size is checked by the header, before anything is decoded.
    """
    check_size(len(data), name)
    _bound_pillow()
    try:
        photo: Photo = Image.open(io.BytesIO(data))
    except Image.DecompressionBombError:
        raise InputError(
            f"{name} has too many pixels: at most {PIXELS_MAX // 1_000_000} megapixels are decoded"
        ) from None
    except _DECODER_ERRORS as error:
        raise InputError(f"{name} is not an image that can be read{_why(error)}") from None
    with photo:
        if photo.format in _REFUSED_FORMATS:
            raise InputError(f"{name} is {photo.format}, which is a program and not a photo: convert it to PNG or JPEG")
        pixels = photo.width * photo.height
        if pixels > max(PIXELS_UNASKED, PIXELS_A_BYTE * len(data)):
            raise InputError(
                f"{name} claims {photo.width} x {photo.height} pixels in {len(data)} bytes, which is no photo: "
                "save it at the size of what is in it"
            )
        try:
            photo.load()
            return _upright(photo)
        except _DECODER_ERRORS as error:
            raise InputError(f"{name} is damaged or cut short{_why(error)}") from None


@functools.cache
def _bound_pillow() -> None:
    """Set Pillow's own bound, which also holds for images inside images, and silence its remarks on odd files."""
    Image.MAX_IMAGE_PIXELS = PIXELS_MAX // 2
    warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
    warnings.filterwarnings("ignore", module=r"PIL\.")


def _upright(photo: Photo) -> Photo:
    """The photo as its EXIF says it was meant; as it is where the EXIF is spoilt. Always a copy in memory."""
    try:
        return ImageOps.exif_transpose(photo)
    except _DECODER_ERRORS:
        return photo.copy()


def _why(error: BaseException) -> str:
    """What the decoder said, in brackets, where it says anything a person can use."""
    text = " ".join(str(error).split())
    if not text or "cannot identify image file" in text:
        return ""
    return f" ({text[:120]})"


def to_tensor(photo: Photo, card: Card, name: str = "the photo") -> dict[str, Array]:
    """The one input of an image model, by its name: shape and dtype as the card says; InputError for other models."""
    tensor = _image_input(card, name)
    height, width, channels, planes_first = _layout(tensor)
    try:
        resized = _coloured(photo, _MODES[channels]).resize((width, height), Image.Resampling.BILINEAR)
        pixels: npt.NDArray[np.uint8] = np.asarray(resized, dtype=np.uint8).reshape(height, width, channels)
    except _DECODER_ERRORS as error:
        raise InputError(f"{name} cannot be converted{_why(error)}") from None
    values = _values(pixels, tensor, card.normalisation, name)
    if planes_first:
        values = values.transpose(2, 0, 1)
    return {tensor.name: np.ascontiguousarray(values).reshape(tensor.shape)}


def _image_input(card: Card, name: str) -> CardTensor:
    """The model's only input where that is an image."""
    if len(card.inputs) == 1 and _layout(card.inputs[0])[2] in _MODES:
        return card.inputs[0]
    wanted = ", ".join(f"{t.name} {t.dtype}{list(t.shape)}" for t in card.inputs)
    raise InputError(f"{name} is a photo, but {card.name} takes {wanted}: give these in an .npz file")


def _layout(tensor: CardTensor) -> tuple[int, int, int, bool]:
    """Height, width, channels, and whether the channels come first; 0 channels where the tensor is no image."""
    shape = tensor.shape
    if len(shape) == 4 and shape[0] == 1:
        shape = shape[1:]
    if len(shape) != 3 or min(shape) < 1 or shape[0] * shape[1] * shape[2] > PIXELS_MAX:
        return 0, 0, 0, False
    if shape[2] in _MODES:
        return shape[0], shape[1], shape[2], False
    if shape[0] in _MODES:
        return shape[1], shape[2], shape[0], True
    return 0, 0, 0, False


def _coloured(photo: Photo, mode: str) -> Photo:
    """The photo as 8-bit grey, RGB or RGBA. Transparency is dropped, as MediaPipe drops it; deep grey is scaled."""
    if photo.mode in ("RGBa", "La"):
        photo = photo.convert("RGBA" if photo.mode == "RGBa" else "LA")
    if photo.mode.startswith("I") or photo.mode == "F":
        photo = _eight_bits(photo)
    if photo.mode in ("P", "PA"):
        photo = photo.convert("RGBA")
    return photo if photo.mode == mode else photo.convert(mode)


def _eight_bits(photo: Photo) -> Photo:
    """A grey photo of 16 or 32 bits or of floats as one of 8: Pillow alone would cut all above 255 off."""
    values = np.nan_to_num(np.asarray(photo, dtype=np.float64), posinf=0.0, neginf=0.0)
    top = float(values.max(initial=0.0))
    if photo.mode == "F" and top <= 1.0:
        values = values * 255
    elif top > 65535:
        values = values * (255 / top)
    elif photo.mode.startswith("I;16") or top > 255:
        values = values / 257
    return Image.fromarray(np.clip(np.rint(values), 0, 255).astype(np.uint8))


def _values(pixels: npt.NDArray[np.uint8], tensor: CardTensor, normalisation: Normalisation | None, name: str) -> Array:
    """Pixels as the model wants them.

    uint8 as they are and int8 less 128 (the whole range of a photo on the whole range of the type), unless metadata
    and quantisation together say something else for int8; floats normalised; other integers by the formula.
    """
    if tensor.dtype == "uint8":
        return pixels
    plain = (pixels.astype(np.int16) - 128).astype(np.int8)
    if tensor.dtype == "int8" and (normalisation is None or tensor.quantization is None):
        return plain
    real = _normalised(pixels, normalisation or DEFAULT_NORMALISATION, name)
    if tensor.dtype in ("float32", "float16", "float64"):
        return real.astype(tensor.dtype)
    if tensor.dtype not in ("int8", "int16", "int32", "int64", "uint16", "uint32"):
        raise InputError(f"{name} cannot become {tensor.dtype}: give the model's input in an .npz file")
    if tensor.quantization is None:
        return pixels.astype(tensor.dtype)
    scale, zero_point = tensor.quantization.scale or 1.0, tensor.quantization.zero_point
    bounds = np.iinfo(tensor.dtype)
    exact = np.clip(np.rint(real.astype(np.float64) / scale + zero_point), bounds.min, bounds.max).astype(tensor.dtype)
    # Within a step of the usual practice, the usual practice: no rounding, and what others compare with.
    usual = tensor.dtype == "int8" and int(np.abs(exact.astype(np.int16) - plain).max(initial=0)) <= 1
    return plain if usual else exact


def _normalised(pixels: npt.NDArray[np.uint8], normalisation: Normalisation, name: str) -> npt.NDArray[np.float32]:
    """(x - mean) / std in float32, per channel or one value for all; InputError where they do not fit."""
    mean = np.asarray(normalisation.mean, dtype=np.float32)
    std = np.asarray(normalisation.std, dtype=np.float32)
    channels = pixels.shape[2]
    if mean.size not in (1, channels) or std.size not in (1, channels) or not np.all(std):
        raise InputError(f"{name}: the model's normalisation does not fit its {channels} channels")
    return np.asarray((pixels.astype(np.float32) - mean) / std, dtype=np.float32)
