"""What the device says of itself: a speed from the real runtime, cores, quotas."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from meshnn.device import probe, runtime


def test_capability_is_measured_through_the_runtime() -> None:
    """Speeds are positive and of a sane size, the one figure lies between the two, budgets are passed on."""
    measured = probe.capability(123, 456)
    assert (measured.memory_bytes, measured.disk_bytes) == (123, 456)
    low, high = sorted((measured.float_speed, measured.integer_speed))
    assert 1e-4 < low <= measured.speed <= high < 1e3
    assert measured.cores >= 1
    assert measured.numeric_class == runtime.numeric_class()


@pytest.mark.parametrize(("packed", "dtype"), [(probe._FLOAT32, "float32"), (probe._INT8, "int8")])
def test_the_probe_models_compute_what_is_counted(packed: str, dtype: str) -> None:
    """Each is a 1x1 convolution of 64 to 64 channels on 32 x 32 pixels, and its answer depends on its input."""
    import base64
    import zlib

    interpreter = runtime.find().make(model_content=zlib.decompress(base64.b85decode(packed)), num_threads=1)
    interpreter.allocate_tensors()
    (given,), (made,) = interpreter.get_input_details(), interpreter.get_output_details()
    assert tuple(given["shape"]) == tuple(made["shape"]) == (1, 32, 32, 64)
    assert np.dtype(given["dtype"]).name == dtype
    assert probe._MACS == 32 * 32 * 64 * 64
    answers = []
    for value in (1, 3):
        interpreter.set_tensor(given["index"], np.full((1, 32, 32, 64), value, dtype))
        interpreter.invoke()
        answers.append(interpreter.get_tensor(made["index"]))
    assert not np.array_equal(answers[0], answers[1])


def test_load_says_how_busy_the_device_is() -> None:
    """Free memory and processor use are those of this machine."""
    busy = probe.load()
    assert busy.free_bytes > 1_000_000
    assert 0 <= busy.cpu_percent <= 100
    assert busy.quota_cores == probe.cpu_quota_cores() > 0


def groups(tmp_path: Path, own: str, files: dict[str, str]) -> float:
    """The quota that a made-up tree of control groups gives."""
    root = tmp_path / "cgroup"
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="ascii")
    (tmp_path / "own").write_text(own, encoding="ascii")
    return probe.cpu_quota_cores(root, tmp_path / "own")


def test_a_quota_of_version_2_is_seen(tmp_path: Path) -> None:
    """The tightest group on the way to the root counts."""
    files = {"a/cpu.max": "150000 100000\n", "a/b/cpu.max": "max 100000\n", "cpu.max": "max 100000\n"}
    assert groups(tmp_path, "0::/a/b\n", files) == 1.5


def test_a_quota_of_version_1_is_seen(tmp_path: Path) -> None:
    """A fifth of a core by quota and period; -1 is no quota; other controllers say nothing."""
    files = {
        "cpu/rack/d1/cpu.cfs_quota_us": "2000\n",
        "cpu/rack/d1/cpu.cfs_period_us": "10000\n",
        "cpu/rack/cpu.cfs_quota_us": "-1\n",
        "cpu/rack/cpu.cfs_period_us": "100000\n",
    }
    assert groups(tmp_path, "9:memory:/m\n1:cpu:/rack/d1\n0::/\n", files) == pytest.approx(0.2)


def test_without_groups_there_is_no_quota(tmp_path: Path) -> None:
    """No control groups, no bound."""
    assert groups(tmp_path, "0::/\n", {}) == math.inf
    assert probe.cpu_quota_cores(tmp_path, tmp_path / "absent") == math.inf


def test_a_quota_lowers_the_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A quarter of a core makes a quarter of the speed, for its short runs go at full speed."""
    monkeypatch.setattr(probe, "_speed", lambda packed, threads, value_bytes: 8.0)
    monkeypatch.setattr(probe, "cpu_quota_cores", lambda: 0.25)
    assert probe.capability(1, 1).speed == 2.0
    monkeypatch.setattr(probe, "cpu_quota_cores", lambda: math.inf)
    assert probe.capability(1, 1).speed == 8.0


@pytest.mark.parametrize(("plugged", "mains"), [(None, True), (True, True), (False, False)])
def test_a_battery_that_is_not_charged_is_no_mains(
    monkeypatch: pytest.MonkeyPatch, plugged: bool | None, mains: bool
) -> None:
    """A device without a battery, or whose system does not know, counts as one on the mains."""
    battery = None if plugged is None else SimpleNamespace(percent=50, power_plugged=plugged)
    monkeypatch.setattr("psutil.sensors_battery", lambda: battery, raising=False)
    assert probe.on_mains() is mains
