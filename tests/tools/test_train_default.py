"""The training of the default model: its pure parts, and where PyTorch is, its network and its checkpoints."""

from __future__ import annotations

import io
import tarfile
import zipfile
from pathlib import Path
from types import ModuleType
from typing import Any

import flatbuffers.number_types
import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from click.testing import CliRunner
from flatbuffers.table import Table
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from tools.train_default import evaluation, exporting, layers, metadata, quantise, schedule, teacher, writer
from tools.train_default.photos import PhotoSet, read_photos

_STAGES = ((4, 1, 1), (6, 2, 2))
_SIDE = 16


def _torch() -> ModuleType:
    """PyTorch; skips the test, saying so, where it is not installed."""
    module: ModuleType = pytest.importorskip("torch", reason="PyTorch is not here (dependency group `train`)")
    return module


def _weights(seed: int = 0, stem: int = 3, classes: int = 5) -> dict[str, NDArray[np.float32]]:
    """Named weights of a small network of `_STAGES`, as PyTorch would name them."""
    draw = np.random.default_rng(seed)
    made: dict[str, NDArray[np.float32]] = {}

    def conv(name: str, entry: int, channels: int, kernel: int) -> None:
        """One convolution with its normalisation."""
        made[f"{name}.conv.weight"] = (draw.normal(size=(channels, entry, kernel, kernel)) / kernel).astype(np.float32)
        made[f"{name}.norm.weight"] = draw.uniform(0.5, 1.5, channels).astype(np.float32)
        made[f"{name}.norm.bias"] = draw.normal(0, 0.3, channels).astype(np.float32)
        made[f"{name}.norm.running_mean"] = draw.normal(0, 0.3, channels).astype(np.float32)
        made[f"{name}.norm.running_var"] = draw.uniform(0.5, 2.0, channels).astype(np.float32)

    conv("stem", 3, stem, 3)
    entry, index = stem, 0
    for channels, count, stride in _STAGES:
        for position in range(count):
            conv(f"blocks.{index}.first", entry, channels, 3)
            conv(f"blocks.{index}.second", channels, channels, 3)
            if entry != channels or (position == 0 and stride == 2):
                conv(f"blocks.{index}.shortcut", entry, channels, 1)
            entry, index = channels, index + 1
    made["dense.weight"] = draw.normal(size=(classes, entry)).astype(np.float32)
    made["dense.bias"] = draw.normal(size=classes).astype(np.float32)
    return made


def _photos(count: int, seed: int = 1, side: int = _SIDE) -> PhotoSet:
    """Random photos of five classes; class c is brighter the higher c is."""
    draw = np.random.default_rng(seed)
    classes = np.arange(count) % 5
    noise = draw.integers(0, 60, (count, side, side, 3))
    pixels = (noise + classes[:, None, None, None] * 45).astype(np.uint8)
    return PhotoSet(pixels, classes.astype(np.int64), ("a", "b", "c", "d", "e"))


def _reference(made: tuple[layers.Layer, ...], image: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
    """The layers' outputs for one image [1, side, side, 3], worked out in numpy."""
    values = {layers.ENTRY: image.astype(np.float64)}
    for layer in made:
        entry = values[layer.entries[0]]
        if layer.kind == "conv":
            assert layer.weights is not None
            assert layer.bias is not None
            value = _convolved(entry[0], layer.weights.astype(np.float64), layer.stride)[None] + layer.bias
        elif layer.kind == "pool":
            _, rows, columns, channels = entry.shape
            value = entry.reshape(1, rows // 2, 2, columns // 2, 2, channels).mean(axis=(2, 4))
        elif layer.kind == "add":
            value = entry + values[layer.entries[1]]
        elif layer.kind == "mean":
            value = entry.mean(axis=(1, 2))
        elif layer.kind == "dense":
            assert layer.weights is not None
            assert layer.bias is not None
            value = entry @ layer.weights.T.astype(np.float64) + layer.bias
        else:
            value = teacher.softmax(entry.astype(np.float32)).astype(np.float64)
        values[layer.name] = np.maximum(value, 0) if layer.relu else value
        assert values[layer.name].shape == layer.shape
    return {name: value.astype(np.float32) for name, value in values.items()}


def _convolved(image: NDArray[np.float64], kernel: NDArray[np.float64], stride: int) -> NDArray[np.float64]:
    """SAME convolution of [h, w, in] with [out, k, k, in], padding as TFLite: the odd row at the end."""
    size, (height, width, _) = kernel.shape[1], image.shape
    total = max((-(-height // stride) - 1) * stride + size - height, 0)
    padded = np.pad(image, ((total // 2, total - total // 2),) * 2 + ((0, 0),))
    rows, columns = -(-height // stride), -(-width // stride)
    made = np.zeros((rows, columns, len(kernel)))
    for down in range(size):
        for across in range(size):
            part = padded[down : down + rows * stride : stride, across : across + columns * stride : stride]
            made += part @ kernel[:, down, across].T
    return made


def _archive(path: Path, names: dict[str, Image.Image]) -> Path:
    """A tar with photos under the given names."""
    with tarfile.open(path, "w") as tar:
        for name, image in names.items():
            stream = io.BytesIO()
            image.save(stream, "PNG")
            entry = tarfile.TarInfo(name)
            entry.size = len(stream.getvalue())
            tar.addfile(entry, io.BytesIO(stream.getvalue()))
    return path


def test_photos_are_read_in_order_of_name_and_grey_becomes_rgb(tmp_path: Path) -> None:
    """The order in the archive does not matter, classes are numbered by name, one channel becomes three."""
    grey, red = Image.new("L", (64, 64), 7), Image.new("RGB", (64, 64), (200, 0, 0))
    names = {"t/train/dog/b_2.JPEG": red, "t/train/cat/a_1.JPEG": grey, "t/val/cat/v_1.JPEG": red}
    photos = read_photos(_archive(tmp_path / "set.tar", names), "train")
    assert photos.labels == ("cat", "dog")
    assert photos.classes.tolist() == [0, 1]
    assert photos.pixels[:, 0, 0].tolist() == [[7, 7, 7], [200, 0, 0]]


def test_photos_refuse_an_empty_part_and_a_wrong_size(tmp_path: Path) -> None:
    """A part without photos, or a photo that is not 64x64, is an error with its name."""
    archive = _archive(tmp_path / "set.tar", {"t/train/dog/b_2.JPEG": Image.new("RGB", (32, 64))})
    with pytest.raises(ValueError, match="'val'"):
        read_photos(archive, "val")
    with pytest.raises(ValueError, match=r"dog/b_2\.JPEG"):
        read_photos(archive, "train")


def test_rate_rises_to_its_peak_and_falls_to_nothing() -> None:
    """The schedule starts low, peaks at the end of the warm-up, never rises after it and ends at zero."""
    rates = [schedule.learning_rate(step / 1000, 0.1) for step in range(1001)]
    top = rates.index(max(rates))
    assert top == round(schedule.WARM_UP * 1000)
    assert rates[top] == pytest.approx(0.1)
    assert rates[0] < 0.01
    assert all(later <= earlier for earlier, later in zip(rates[top:], rates[top + 1 :], strict=False))
    assert rates[-1] == pytest.approx(0.0, abs=1e-9)


def test_progress_without_a_limit_counts_steps() -> None:
    """Every step adds the same, and the last one ends at 1."""
    progress = [0.0]
    for done in range(40):
        progress.append(progress[-1] + schedule.advance(progress[-1], 40 - done, 7.0, None))
    assert np.diff(progress) == pytest.approx([1 / 40] * 40)


@given(
    durations=st.lists(st.floats(0.01, 30), min_size=1, max_size=50),
    limit=st.floats(1, 500),
    planned=st.integers(1, 400),
)
def test_progress_keeps_to_the_clock_whatever_the_speed(durations: list[float], limit: float, planned: int) -> None:
    """With steps of any changing length, progress never passes 1, is never behind the clock, and ends by the limit."""
    progress, clock, done = 0.0, 0.0, 0
    while progress < 1 - 1e-9:
        step_s = durations[done % len(durations)]
        clock += step_s
        progress += schedule.advance(progress, planned - done, step_s, limit - clock)
        done += 1
        assert progress <= 1 + 1e-9
        assert progress >= min(clock / limit, 1.0) - 1e-6
    assert done <= planned
    assert clock - step_s < limit


def test_linear_head_learns_what_can_be_separated() -> None:
    """Three clouds of points are told apart, also by a head that never saw the point's fold."""
    draw = np.random.default_rng(0)
    classes = np.arange(300) % 3
    features = (draw.normal(size=(300, 8)) + 4 * np.eye(8)[classes]).astype(np.float32)
    head = teacher.fit_head(features, classes, 3)
    assert (head.logits(features).argmax(axis=1) == classes).mean() > 0.97
    assert (teacher.cross_fit(features, classes, 3, 5, 0).argmax(axis=1) == classes).mean() > 0.95


def test_soft_targets_never_come_from_the_photo_itself() -> None:
    """With classes that cannot be learned, held-out scores are no better than chance; fitted ones are."""
    draw = np.random.default_rng(0)
    features, classes = draw.normal(size=(120, 200)).astype(np.float32), draw.integers(0, 2, 120)
    fitted = teacher.fit_head(features, classes, 2).logits(features).argmax(axis=1)
    held_out = teacher.cross_fit(features, classes, 2, 5, 0).argmax(axis=1)
    assert (fitted == classes).mean() > 0.95
    assert (held_out == classes).mean() < 0.7


def test_float_file_computes_the_layers() -> None:
    """The float32 file gives the layers' values as worked out in numpy, strides, pooling and shortcuts included."""
    made = layers.layers_of(_weights(), _STAGES, _SIDE)
    image = np.random.default_rng(2).uniform(-1, 1, (1, _SIDE, _SIDE, 3)).astype(np.float32)
    interpreter = evaluation.interpreter_of(writer.float_model(made, _SIDE, b"none"))
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], image)
    interpreter.invoke()
    got = interpreter.get_tensor(interpreter.get_output_details()[0]["index"])
    np.testing.assert_allclose(got, _reference(made, image)["probability"], rtol=1e-4, atol=1e-6)


def test_layers_have_shortcuts_only_where_the_shape_changes() -> None:
    """Block by block: a projection where channels change, a pool before it where the size does, an addition always."""
    kinds = [layer.kind for layer in layers.layers_of(_weights(), _STAGES, _SIDE)]
    block, identity = ["conv", "conv", "conv", "add"], ["conv", "conv", "add"]
    halving = ["conv", "conv", "pool", "conv", "add"]
    assert kinds == ["conv", *block, *halving, *identity, "mean", "dense", "softmax"]


def test_integer_file_stays_close_to_its_float_twin() -> None:
    """Calibrated on the photos it is asked about, the integer file's probabilities are near the twin's."""
    photos = _photos(40)
    made = layers.layers_of(_weights(), _STAGES, _SIDE)
    twin = writer.float_model(made, _SIDE, b"none")
    ranges = evaluation.measured_ranges(twin, photos.pixels, 0.0, lambda count: None)
    model = writer.integer_model(made, _SIDE, quantise.activation_scales(made, ranges), b"none")
    wanted, got = evaluation.answers(twin, photos.pixels), evaluation.answers(model, photos.pixels)
    assert np.abs(wanted - got).max() < 0.08
    assert (wanted.argmax(axis=1) == got.argmax(axis=1)).mean() > 0.9


def test_measured_ranges_are_those_of_the_layers() -> None:
    """The range of every computed tensor holds what numpy works out for the same photos."""
    photos = _photos(3)
    made = layers.layers_of(_weights(), _STAGES, _SIDE)
    ranges = evaluation.measured_ranges(
        writer.float_model(made, _SIDE, b"none"), photos.pixels, 0.0, lambda count: None
    )
    values = [_reference(made, evaluation.fed(pixels, np.float32).astype(np.float32)) for pixels in photos.pixels]
    for layer in made:
        seen = np.concatenate([value[layer.name].reshape(-1) for value in values])
        assert ranges[layer.name].low == pytest.approx(min(float(seen.min()), 0.0), abs=1e-4)
        assert ranges[layer.name].high == pytest.approx(max(float(seen.max()), 0.0), abs=1e-4)


def test_buffers_of_a_written_file_are_aligned() -> None:
    """Every buffer lies on 16 bytes, as the schema asks; buffer 0 is empty."""
    data = writer.float_model(layers.layers_of(_weights(), _STAGES, _SIDE), _SIDE, b"none")
    model = schema.Model.GetRootAs(data, 0)
    assert model.Buffers(0).DataLength() == 0
    for index in range(1, model.BuffersLength()):
        buffer = model.Buffers(index)
        offset = buffer._tab.Vector(buffer._tab.Offset(4))
        assert offset % writer.ALIGNMENT == 0, index


@given(
    low=st.floats(-50, 0),
    high=st.floats(0, 50),
)
def test_scale_covers_its_range_and_zero_is_exact(low: float, high: float) -> None:
    """Both ends of the range lie within half a step of an int8 value, and zero on one."""
    scale = quantise.activation_scale(quantise.Range(low, high))
    step = float(scale.scale[0])
    assert -128 <= scale.zero_point <= 127
    assert step * (-128 - scale.zero_point) <= low + step
    assert step * (127 - scale.zero_point) >= high - step


def test_range_leaves_out_the_tails_and_holds_zero() -> None:
    """A part of the samples at each end does not count; a range that lies above zero is drawn down to it."""
    samples = np.arange(1, 1002, dtype=np.float32)
    assert quantise.range_of(samples, 0.0) == quantise.Range(0.0, 1001.0)
    assert quantise.range_of(samples, 0.1).high == pytest.approx(901, abs=1)


def test_weights_use_the_whole_of_int8_per_channel() -> None:
    """Each output channel's largest weight becomes 127, and no weight is off by more than half a step."""
    weights = np.random.default_rng(0).normal(size=(4, 3, 3, 2)).astype(np.float32) * np.array(
        [1, 10, 0.1, 5], np.float32
    ).reshape(4, 1, 1, 1)
    small, scale = quantise.quantised_weights(weights, per_channel=True)
    assert np.abs(small).reshape(4, -1).max(axis=1).tolist() == [127] * 4
    spread = scale.scale.reshape(4, 1, 1, 1)
    assert (np.abs(small * spread - weights) <= spread * 0.5001).all()


def test_bias_is_in_steps_of_the_accumulator() -> None:
    """One step of the bias is one step of input times one step of weights."""
    entry, weights = quantise.Scale(np.array([0.5], np.float32), 3), quantise.Scale(np.array([0.25, 0.5], np.float32))
    bias, scale = quantise.quantised_bias(np.array([1.0, -2.0], np.float32), entry, weights)
    assert bias.tolist() == [8, -8]
    assert scale.scale.tolist() == [0.125, 0.25]


def _text(table: Table, slot: int) -> str:
    """The string in a slot of a flatbuffer table."""
    return bytes(table.String(table.Offset(4 + 2 * slot) + table.Pos)).decode()


def _child(table: Table, slot: int, *, in_vector: bool) -> Table:
    """The table in a slot, or the first of the vector there."""
    field = table.Offset(4 + 2 * slot)
    place = table.Vector(field) if in_vector else field + table.Pos
    return Table(table.Bytes, table.Indirect(place))


def _root(data: bytes) -> Table:
    """The root table of a flatbuffer."""
    return Table(data, int.from_bytes(data[:4], "little"))


def test_metadata_says_what_to_feed_and_where_the_labels_are() -> None:
    """Read slot by slot as the format states them: identifier, normalisation, colours, label file and its kind."""
    data = metadata.metadata_buffer(exporting.described("7"))
    assert data[4:8] == b"M001"
    root = _root(data)
    assert (_text(root, 0), _text(root, 2)) == ("meshnn default", "7")
    part = _child(root, 3, in_vector=True)
    entry, answer = _child(part, 2, in_vector=True), _child(part, 3, in_vector=True)
    content = _child(entry, 3, in_vector=False)
    assert content.Get(flatbuffers.number_types.Uint8Flags, content.Offset(4) + content.Pos) == 2
    unit = _child(entry, 4, in_vector=True)
    assert unit.Get(flatbuffers.number_types.Uint8Flags, unit.Offset(4) + unit.Pos) == 1
    options = _child(unit, 1, in_vector=False)
    for slot in (0, 1):
        value = options.Get(flatbuffers.number_types.Float32Flags, options.Vector(options.Offset(4 + 2 * slot)))
        assert value == 128.0
    label = _child(answer, 6, in_vector=True)
    assert _text(label, 0) == metadata.LABEL_FILE
    assert label.Get(flatbuffers.number_types.Int8Flags, label.Offset(8) + label.Pos) == 2


def test_labels_ride_behind_the_model_and_it_still_loads() -> None:
    """The zip is found at the end, the interpreter ignores it, and the same labels give the same bytes."""
    model = writer.float_model(layers.layers_of(_weights(), _STAGES, _SIDE), _SIDE, b"none")
    whole = metadata.with_labels(model, ("a", "b c"))
    assert whole == metadata.with_labels(model, ("a", "b c"))
    assert zipfile.ZipFile(io.BytesIO(whole)).read(metadata.LABEL_FILE) == b"a\nb c\n"
    pixels = _photos(2).pixels
    np.testing.assert_array_equal(evaluation.answers(whole, pixels), evaluation.answers(model, pixels))


def test_verdict_counts_first_and_first_five() -> None:
    """Top-1, top-5 and who was taken for whom; of equal scores the lower class ranks first."""
    scores = np.array(
        [[0.6, 0.1, 0.1, 0.1, 0.1, 0.0], [0.3, 0.3, 0.2, 0.1, 0.1, 0.0], [0.5, 0.1, 0.1, 0.1, 0.1, 0.1]], np.float32
    )
    verdict = evaluation.verdict(scores, np.array([0, 1, 5]))
    assert verdict.top_1 == pytest.approx(1 / 3)
    assert verdict.top_5 == pytest.approx(2 / 3)
    assert (verdict.confusion[0, 0], verdict.confusion[1, 0], verdict.confusion[5, 0]) == (1, 1, 1)


def test_weakest_classes_come_first_with_their_rivals() -> None:
    """The table starts with the class that is right least often and names what it is taken for."""
    confusion = np.array([[9, 1, 0], [3, 5, 2], [0, 0, 10]], np.int64)
    rows = exporting.weakest(evaluation.Verdict(0.8, 1.0, confusion), ("x", "y", "z"), 2)
    assert rows == ["| y | 0.50 | 10 | x 3, z 2 |", "| x | 0.90 | 10 | y 1 |"]


def test_command_says_what_is_missing_without_pytorch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without PyTorch the command ends with one line that names the dependency group."""
    import sys

    from tools.train_default.__main__ import main

    monkeypatch.setitem(sys.modules, "torch", None)
    done = CliRunner().invoke(main, [str(tmp_path), "--shared", str(tmp_path)])
    assert done.exit_code == 1
    assert "PyTorch is not here (dependency group `train`)" in done.output


def test_network_and_float_file_agree() -> None:
    """The exported file computes what PyTorch computes, for the network as it ships (random weights)."""
    torch = _torch()
    from tools.train_default import network, training

    state = training.fresh(training.Recipe(), network.Architecture())
    for module in state.network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.uniform_(module.running_var, 0.5, 1.5)
            torch.nn.init.normal_(module.running_mean, 0, 0.1)
    weights = {name: value.numpy() for name, value in state.network.state_dict().items()}
    photos = _photos(3, side=64)
    model = writer.float_model(layers.layers_of(weights, network.Architecture().stages), 64, b"none")
    with torch.no_grad():
        pixels = torch.from_numpy(np.ascontiguousarray(photos.pixels.transpose(0, 3, 1, 2)))
        wanted = torch.softmax(state.network.eval()(network.normalised(pixels)), 1).numpy()
    np.testing.assert_allclose(evaluation.answers(model, photos.pixels), wanted, rtol=1e-3, atol=1e-5)


def test_training_goes_on_from_its_checkpoint_as_if_never_stopped(tmp_path: Path) -> None:
    """Two epochs in one go and one epoch, a reload, another: the same weights and the same history."""
    torch = _torch()
    from tools.train_default import training

    recipe, (through, first, second) = training.Recipe(epochs=3, batch=10), _trainings(tmp_path)
    for name, value in through.averaged.state_dict().items():
        assert torch.equal(value, second.averaged.state_dict()[name]), name
    assert first.progress < second.progress == through.progress == 1.0
    assert len(second.history) == recipe.epochs


def _trainings(folder: Path) -> tuple[Any, Any, Any]:
    """A small training straight through; one stopped after its first epoch; and that one taken up again."""
    from tools.train_default import network, training

    recipe = training.Recipe(epochs=3, batch=10)
    shape = network.Architecture(stem=4, stages=((4, 1, 1), (6, 1, 2)), classes=5)
    photos = _photos(40, side=16)
    material = training.material_of(photos, np.eye(5, dtype=np.float32)[photos.classes] * 3)
    through = training.fresh(recipe, shape)
    training.train(through, recipe, material, material, folder, None, lambda *_: None)
    first = training.fresh(recipe, shape)
    training.run_epoch(first, recipe, material, None, lambda step: None)
    first.history.append({"epoch": 1.0, "seconds": 1.0})
    training.save(first, folder / "checkpoint.pt")
    second = training.load(folder / "checkpoint.pt", recipe)
    training.train(second, recipe, material, material, folder, None, lambda *_: None)
    return through, first, second


def test_small_training_learns(tmp_path: Path) -> None:
    """Brightness alone tells the five classes apart: a short training finds that out."""
    _torch()
    from tools.train_default import network, training

    recipe = training.Recipe(epochs=12, batch=20, average=0.9)
    photos = _photos(200, side=16)
    material = training.material_of(photos, np.eye(5, dtype=np.float32)[photos.classes] * 4)
    state = training.fresh(recipe, network.Architecture(stem=8, stages=((8, 1, 1), (16, 1, 2)), classes=5))
    lines: list[dict[str, float]] = []
    training.train(
        state, recipe, material, material, tmp_path, None, lambda epoch, progress, step, line: lines.append(line or {})
    )
    assert state.history[-1]["top_1"] > 0.5
    assert state.history[-1]["loss"] < state.history[0]["loss"]
    assert [line["epoch"] for line in lines if line] == list(range(1, 13))


def test_training_ends_when_the_time_is_over(tmp_path: Path) -> None:
    """A training whose time is over takes one step, not an epoch, and is then complete and saved."""
    _torch()
    from tools.train_default import network, training

    recipe = training.Recipe(epochs=50, batch=10)
    photos = _photos(40, side=16)
    material = training.material_of(photos, np.eye(5, dtype=np.float32)[photos.classes])
    state = training.fresh(recipe, network.Architecture(stem=4, stages=((4, 1, 1),), classes=5))
    steps: list[int] = []
    training.train(state, recipe, material, material, tmp_path, 0.0, lambda *told: steps.append(told[2]))
    assert steps == [0, -1]
    assert training.load(tmp_path / "checkpoint.pt", recipe).progress == 1.0


def test_changed_photos_keep_their_shape_and_range() -> None:
    """Augmentation gives finite images of the same shape within -1..1, repeatable from the seed, not the same ones."""
    torch = _torch()
    from tools.train_default import augment, network

    pixels = torch.from_numpy(np.ascontiguousarray(_photos(16).pixels.transpose(0, 3, 1, 2)))
    images = network.normalised(pixels)
    once, again = (augment.augmented(images, torch.Generator().manual_seed(5)) for _ in range(2))
    assert torch.equal(once, again)
    assert once.shape == images.shape
    assert bool(torch.isfinite(once).all())
    assert float(once.abs().max()) <= 1.0
    assert float((once - images).abs().mean()) > 0.01


def test_mixing_keeps_targets_that_add_up() -> None:
    """Blended targets are still shares of one; without a share nothing is blended."""
    torch = _torch()
    from tools.train_default import augment

    images, targets = torch.rand(12, 3, 8, 8), torch.eye(12)
    mixed_images, mixed_targets = augment.mixed(images, targets, 1.0, torch.Generator().manual_seed(1))
    assert torch.allclose(mixed_targets.sum(dim=1), torch.ones(12))
    assert not torch.equal(mixed_images, images)
    same_images, same_targets = augment.mixed(images, targets, 0.0, torch.Generator().manual_seed(1))
    assert torch.allclose(same_images, images)
    assert torch.allclose(same_targets, targets)
