"""Photos to inputs: upright, in the model's size and scale, and one clear line where they are spoilt."""

from __future__ import annotations

import io
import random
import struct
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from meshnn import input_file, vision
from meshnn.device import runtime
from meshnn.errors import InputError
from meshnn.graph.card import CARD_VERSION, Card, CardQuantization, CardTensor, Normalisation
from tests import shared_data

Pixels = npt.NDArray[np.uint8]


def tensor(
    shape: tuple[int, ...], dtype: str = "uint8", name: str = "in", quantization: CardQuantization | None = None
) -> CardTensor:
    """One input or output of a card."""
    return CardTensor(0, name, shape, dtype, int(np.prod(shape)) * np.dtype(dtype).itemsize, quantization=quantization)


def card(*inputs: CardTensor, normalisation: Normalisation | None = None) -> Card:
    """A card with these inputs."""
    return Card(CARD_VERSION, "d", "model", 1, inputs, (), (), (), normalisation=normalisation)


def photo_bytes(pixels: Pixels, kind: str = "PNG", **options: object) -> bytes:
    """An image file."""
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, kind, **options)
    return out.getvalue()


def gradient(height: int = 20, width: int = 30) -> Pixels:
    """A photo whose every corner is another colour."""
    rows, columns = np.mgrid[0:height, 0:width]
    return np.stack([rows * 255 // height, columns * 255 // width, np.full_like(rows, 60)], axis=-1).astype(np.uint8)


def refusal(data: bytes, name: str = "photo.jpg") -> str:
    """The one line of a refused photo."""
    with pytest.raises(InputError) as error:
        vision.read_photo(data, name)
    line = str(error.value)
    assert line.startswith(name)
    assert "\n" not in line
    return line


def test_uint8_is_fed_as_it_is() -> None:
    """A photo of the model's own size reaches it byte for byte, with the batch before it."""
    made = vision.read_inputs(photo_bytes(gradient()), "p.png", card(tensor((1, 20, 30, 3))))
    np.testing.assert_array_equal(made["in"], gradient()[np.newaxis])


def test_resizing_stretches_the_whole_photo() -> None:
    """No crop and no border: the corners of a wide photo are the corners of a square input."""
    made = vision.read_inputs(photo_bytes(gradient(100, 400)), "p.png", card(tensor((1, 50, 50, 3))))["in"][0]
    assert made[0, 0, 0] < 10
    assert made[0, -1, 1] > 245
    assert made[-1, 0, 0] > 245
    expected = Image.fromarray(gradient(100, 400)).resize((50, 50), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(made, np.asarray(expected))


def test_shrinking_is_antialiased() -> None:
    """Fine stripes become grey, not the stripe that happened to be hit."""
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255
    made = vision.read_inputs(photo_bytes(stripes), "p.png", card(tensor((1, 8, 8, 3))))["in"]
    assert 110 < made.min() <= made.max() < 145


@pytest.mark.parametrize(
    ("normalisation", "low", "high"),
    [
        (None, -1.0, 1.0),
        (Normalisation((0.0,), (255.0,)), 0.0, 1.0),
        (Normalisation((0.0,), (1.0,)), 0.0, 255.0),
        (Normalisation((127.5,), (127.5,)), -1.0, 1.0),
    ],
)
def test_floats_are_normalised_by_the_metadata(normalisation: Normalisation | None, low: float, high: float) -> None:
    """Black and white become what the metadata says, -1 and 1 without any."""
    pixels = np.zeros((2, 2, 3), np.uint8)
    pixels[0] = 255
    made = vision.read_inputs(
        photo_bytes(pixels), "p.png", card(tensor((1, 2, 2, 3), "float32"), normalisation=normalisation)
    )["in"]
    assert made.dtype == np.float32
    assert made[0, 1, 0, 0] == low
    assert made[0, 0, 0, 0] == high


def test_each_channel_may_have_its_own_normalisation() -> None:
    """Means and deviations per channel, as some networks were trained."""
    wanted = Normalisation((10.0, 20.0, 30.0), (1.0, 2.0, 4.0))
    pixels = np.full((1, 1, 3), 50, np.uint8)
    made = vision.read_inputs(photo_bytes(pixels), "p.png", card(tensor((1, 1, 1, 3), "float32"), normalisation=wanted))
    assert made["in"].reshape(-1).tolist() == [40.0, 15.0, 5.0]
    with pytest.raises(InputError, match="normalisation"):
        vision.read_inputs(
            photo_bytes(pixels),
            "p.png",
            card(tensor((1, 1, 1, 3), "float32"), normalisation=Normalisation((1.0,), (0.0,))),
        )


@pytest.mark.parametrize("scale", [(1 / 255, -128), (1.0, -128), (1 / 127.5, -1)], ids=["01", "raw", "m1"])
@pytest.mark.parametrize("normalised", [False, True])
def test_int8_is_the_photo_less_128(scale: tuple[float, int], normalised: bool) -> None:
    """Whatever its scale, an int8 model's full range is the photo's full range."""
    pixels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    by_scale = {1 / 255: (0.0, 255.0), 1.0: (0.0, 1.0), 1 / 127.5: (127.5, 127.5)}
    mean, std = by_scale[scale[0]]
    wanted = Normalisation((mean,), (std,)) if normalised else None
    described = tensor((1, 16, 16, 1), "int8", quantization=CardQuantization(*scale))
    made = vision.read_inputs(photo_bytes(pixels), "p.png", card(described, normalisation=wanted))["in"]
    assert made.dtype == np.int8
    np.testing.assert_array_equal(made.reshape(-1), np.arange(256) - 128)


def test_unusual_int8_follows_the_formula() -> None:
    """Where metadata and quantisation say something else together, they are followed, and clipped."""
    described = tensor((1, 1, 2, 1), "int8", quantization=CardQuantization(1.0, 0))
    made = vision.read_inputs(
        photo_bytes(np.array([[10, 250]], np.uint8)),
        "p.png",
        card(described, normalisation=Normalisation((0.0,), (1.0,))),
    )["in"]
    assert made.reshape(-1).tolist() == [10, 127]


def test_int16_follows_the_formula() -> None:
    """A 16-bit model gets the normalised value in its own steps."""
    described = tensor((1, 1, 2, 1), "int16", quantization=CardQuantization(1 / 32767, 0))
    made = vision.read_inputs(photo_bytes(np.array([[0, 255]], np.uint8)), "p.png", card(described))["in"]
    assert made.reshape(-1).tolist() == [-32767, 32767]


def test_channels_follow_the_model() -> None:
    """Grey for one, RGB for three, RGBA for four, channels first where the model has them first."""
    rgb = gradient(5, 6)
    rgba = np.dstack([rgb, np.full((5, 6), 9, np.uint8)])
    data = photo_bytes(rgba)
    grey = vision.read_inputs(data, "p.png", card(tensor((1, 5, 6, 1))))["in"]
    np.testing.assert_array_equal(grey[0, :, :, 0], np.asarray(Image.fromarray(rgb).convert("L")))
    np.testing.assert_array_equal(vision.read_inputs(data, "p", card(tensor((1, 5, 6, 3))))["in"][0], rgb)
    np.testing.assert_array_equal(vision.read_inputs(data, "p", card(tensor((1, 5, 6, 4))))["in"][0], rgba)
    planes = vision.read_inputs(data, "p", card(tensor((1, 3, 5, 6))))["in"]
    np.testing.assert_array_equal(planes[0], rgb.transpose(2, 0, 1))
    lifted = vision.read_inputs(photo_bytes(grey[0, :, :, 0].astype(np.uint8)), "p", card(tensor((1, 5, 6, 3))))["in"]
    np.testing.assert_array_equal(lifted, np.repeat(grey, 3, axis=3))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photo_is_turned_as_its_exif_says(orientation: int) -> None:
    """All eight ways a camera may have been held: the model sees the photo upright."""
    upright = gradient(16, 24)
    undoes: dict[int, Callable[[Pixels], Pixels]] = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a, 1),
        7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
        8: lambda a: np.rot90(a, -1),
    }
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = photo_bytes(np.ascontiguousarray(undoes[orientation](upright)), "PNG", exif=exif.tobytes())
    np.testing.assert_array_equal(np.asarray(vision.read_photo(data, "p.png")), upright)


def test_spoilt_exif_does_not_spoil_the_photo() -> None:
    """A photo whose EXIF is garbage is taken as it lies."""
    data = photo_bytes(gradient(), "PNG", exif=b"Exif\x00\x00II*\x00\xff\xff\xff\xff garbage")
    np.testing.assert_array_equal(np.asarray(vision.read_photo(data, "p.png")), gradient())


@pytest.mark.parametrize(
    "kind", ["PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM", "TGA", "ICO", "PCX", "SGI", "JPEG2000", "AVIF"]
)
def test_every_format_is_read(kind: str) -> None:
    """What Pillow here can write is read back as a photo of that size."""
    Image.init()
    if kind not in Image.SAVE:
        pytest.skip(f"this Pillow was built without {kind}")
    try:
        data = photo_bytes(gradient(32, 32), kind)
    except (OSError, KeyError) as error:
        pytest.skip(f"this Pillow cannot write {kind}: {error}")
    made = vision.read_inputs(data, "p", card(tensor((1, 32, 32, 3))))["in"]
    assert np.abs(made[0].astype(int) - gradient(32, 32)).mean() < 25


@pytest.mark.parametrize(
    "mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "I", "F", "I;16", "RGBa", "La"]
)
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_every_mode_becomes_eight_bits(mode: str, channels: int) -> None:
    """Palettes, alpha, print colours and deep grey all become what the model takes: white stays white."""
    white = Image.fromarray(np.full((4, 4, 3), 255, np.uint8))
    if mode == "I;16":
        photo = Image.fromarray(np.full((4, 4), 65535, np.uint16))
    elif mode in ("RGBa", "La"):
        photo = white.convert("RGBA" if mode == "RGBa" else "LA").convert(mode)
    else:
        photo = white.convert(mode)
    made = vision.to_tensor(photo, card(tensor((1, 4, 4, channels))))["in"]
    assert made.min() >= 254


def test_a_palette_with_transparency_is_read() -> None:
    """A palette photo with alpha per colour is read without a warning and without its alpha."""
    photo = Image.fromarray(np.zeros((4, 4), np.uint8)).convert("P")
    photo.putpalette([200, 100, 50] * 256)
    out = io.BytesIO()
    photo.save(out, "PNG", transparency=bytes([128] * 256))
    made = vision.read_inputs(out.getvalue(), "p.png", card(tensor((1, 4, 4, 3))))["in"]
    assert made.reshape(-1, 3)[0].tolist() == [200, 100, 50]


def test_an_animation_is_its_first_frame() -> None:
    """The first frame counts, whatever comes after."""
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue", "green")]
    out = io.BytesIO()
    frames[0].save(out, "GIF", save_all=True, append_images=frames[1:])
    made = vision.read_inputs(out.getvalue(), "p.gif", card(tensor((1, 8, 8, 3))))["in"]
    assert made[0, 0, 0].tolist() == [255, 0, 0]


def test_deep_grey_is_scaled_not_cut_off() -> None:
    """A 16-bit photo keeps its middle greys: Pillow alone would make all of them white."""
    out = io.BytesIO()
    Image.fromarray(np.full((4, 4), 32896, np.uint16)).save(out, "PNG")
    assert vision.read_inputs(out.getvalue(), "p.png", card(tensor((1, 4, 4, 3))))["in"].max() == 128


def png(width: int, height: int) -> bytes:
    """A PNG that states a size and carries next to nothing."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )


def test_a_bomb_is_refused_before_it_is_decoded() -> None:
    """A PNG of 30,000 x 30,000 (2.7 GB) costs one line and next to no memory; so does one inside an icon."""
    tracemalloc.start()
    try:
        assert "too many pixels: at most 100 megapixels" in refusal(png(30_000, 30_000))
        inner = png(30_000, 30_000)
        icon = struct.pack("<HHH", 0, 1, 1) + struct.pack("<BBBBHHII", 16, 16, 0, 0, 1, 32, len(inner), 22) + inner
        refusal(icon, "icon.ico")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 20_000_000


def test_what_is_no_photo_is_one_line() -> None:
    """Nothing, text, and a program in PostScript."""
    assert "is empty" in refusal(b"")
    assert refusal(b"this is no photo at all" * 10) == "photo.jpg is not an image that can be read"
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n"
    assert "a program and not a photo" in refusal(eps)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP", "WEBP", "TIFF"])
def test_a_truncated_photo_is_one_line(kind: str) -> None:
    """Half a photo of any kind is refused, not answered."""
    noise = np.random.default_rng(1).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    whole = photo_bytes(noise, kind)
    refusal(whole[: len(whole) // 2])


def test_no_spoilt_byte_escapes_as_another_error() -> None:
    """Whatever is flipped or cut in files of several kinds: a photo or an InputError, never anything else."""
    chance = random.Random(5)
    noise = np.random.default_rng(1).integers(0, 255, (24, 24, 3), dtype=np.uint8)
    wanted = card(tensor((1, 8, 8, 3)))
    lines: list[str] = []
    for kind in ("PNG", "JPEG", "GIF", "TIFF", "WEBP", "ICO", "TGA", "PCX", "BMP"):
        whole = photo_bytes(noise, kind)
        for _ in range(40):
            spoilt = bytearray(whole[: chance.randrange(4, len(whole) + 1)])
            for _ in range(chance.randrange(4)):
                spoilt[chance.randrange(len(spoilt))] = chance.randrange(256)
            try:
                vision.read_inputs(bytes(spoilt), "photo", wanted)
            except InputError as error:
                lines.append(str(error))
    assert len(lines) > 100
    assert not [line for line in lines if "\n" in line]


def test_a_photo_for_a_model_of_vectors_says_what_it_takes() -> None:
    """The line names the model, its inputs, and the way to give them."""
    for wanted in (card(tensor((1, 640), "int8")), card(tensor((1, 8, 8, 3)), tensor((1, 8, 8, 1), name="b")), card()):
        with pytest.raises(InputError, match=r"photo, but model takes .*npz"):
            vision.read_inputs(photo_bytes(gradient()), "p.png", wanted)


def test_files_are_read_with_clear_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder, a missing, an empty and an over-large file."""
    photo = tmp_path / "p.png"
    photo.write_bytes(b"12345")
    assert input_file.read_file(photo) == b"12345"
    with pytest.raises(InputError, match="is a folder"):
        input_file.read_file(tmp_path)
    with pytest.raises(InputError, match="No such file"):
        input_file.read_file(tmp_path / "none.png")
    monkeypatch.setattr(input_file, "INPUT_BYTES_MAX", 4)
    with pytest.raises(InputError, match="at most"):
        input_file.read_file(photo)
    photo.write_bytes(b"")
    with pytest.raises(InputError, match="is empty"):
        input_file.read_file(photo)


M1, UNIT, RAW = Normalisation((127.5,), (127.5,)), Normalisation((0.0,), (255.0,)), Normalisation((0.0,), (1.0,))
IMAGENET, CIFAR, VWW = (
    "imagenet",
    ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"],
    ["no person", "person"],
)


@pytest.mark.parametrize(
    ("model", "normalisation", "labels", "photo", "label", "score"),
    [
        ("coral__mobilenet_v2_1.0_224_quant", None, IMAGENET, "coral_parrot.jpg", "macaw", 1.00),
        ("coral__mobilenet_v2_1.0_224_quant", None, IMAGENET, "nnstreamer_orange.png", "orange", 0.96),
        ("coral__mobilenet_v1_0.5_160_quant", None, IMAGENET, "tfls_burger.jpg", "cheeseburger", 1.00),
        ("coral__mobilenet_v1_0.25_128_quant", None, IMAGENET, "coral_bird.bmp", "chickadee", 0.41),
        ("tflite_support__mobilenet_v1_0.25_224_1_metadata_1", M1, IMAGENET, "coral_parrot.jpg", "macaw", 0.94),
        ("tflite_support__mobilenet_v1_0.25_224_quant", M1, IMAGENET, "coral_kite_and_cold.jpg", "sandbar", 0.53),
        ("tinymaix__mbnet128_0.25_f", None, IMAGENET, "coral_parrot.jpg", "macaw", 0.96),
        ("tinymaix__mbnet128_0.25_q", None, IMAGENET, "coral_parrot.jpg", "macaw", 0.88),
        ("mlperf_tiny__pretrainedResnet", RAW, CIFAR, "coral_cat.bmp", "cat", 0.94),
        ("mlperf_tiny__pretrainedResnet_quant", None, CIFAR, "coral_cat.bmp", "cat", 0.93),
        ("mlperf_tiny__vww_96_float", UNIT, VWW, "coral_grace_hopper.bmp", "person", 0.89),
        ("mlperf_tiny__vww_96_int8", None, VWW, "coral_grace_hopper.bmp", "person", 0.89),
        ("mlperf_tiny__vww_96_int8", UNIT, VWW, "tflm_person.bmp", "no person", 0.67),
    ],
)
def test_real_photos_get_the_known_answers(
    model: str, normalisation: Normalisation | None, labels: str | list[str], photo: str, label: str, score: float
) -> None:
    """The published answers of the shared models on the shared photos, label and score, through all of this module."""
    path, source = shared_data.model(model), shared_data.photo(photo)
    if labels == IMAGENET:
        words = (source.parent.parent / "labels" / "imagenet_labels_1001.txt").read_text(encoding="utf-8").splitlines()
    else:
        words = list(labels)
    interpreter = runtime.find().interpreter(path)
    interpreter.allocate_tensors()
    given, made = ([_described(d) for d in details] for details in (
        interpreter.get_input_details(), interpreter.get_output_details()
    ))  # fmt: skip
    described = Card(
        CARD_VERSION, "d", model, 1, tuple(given), tuple(made), (), (), labels=tuple(words), normalisation=normalisation
    )
    values = vision.read_inputs(input_file.read_file(source), photo, described)
    interpreter.set_tensor(given[0].index, values[given[0].name])
    interpreter.invoke()
    best, second = vision.predictions({made[0].name: interpreter.get_tensor(made[0].index)}, described, 2)
    assert best.label == label
    assert best.score == pytest.approx(score, abs=0.015)
    assert second.score <= best.score


def _described(detail: dict[str, npt.NDArray[np.generic]]) -> CardTensor:
    """A port of the runtime as the card has it."""
    scale, zero_point = detail["quantization"]
    return CardTensor(
        index=int(detail["index"]),
        name=str(detail["name"]),
        shape=tuple(int(size) for size in detail["shape"]),
        dtype=np.dtype(detail["dtype"]).name,
        size_bytes=0,
        quantization=CardQuantization(float(scale), int(zero_point)) if scale else None,
    )


@pytest.mark.parametrize(("kind", "refused"), [("WEBP", True), ("PNG", False)])
def test_a_few_bytes_that_claim_many_megapixels_are_not_decoded(kind: str, refused: bool) -> None:
    """A file of one colour that compresses beyond what any photo does is refused by its header; a PNG of one is not."""
    file = io.BytesIO()
    options = {"lossless": True} if kind == "WEBP" else {}
    Image.new("RGB", (4000, 3000), "white").save(file, kind, **options)
    if not refused:
        assert vision.read_photo(file.getvalue(), "white").size == (4000, 3000)
        return
    with pytest.raises(InputError, match="claims 4000 x 3000 pixels in"):
        vision.read_photo(file.getvalue(), "white")
