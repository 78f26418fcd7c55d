"""A cloned disk among real processes: the clone finds out, takes a new key, and everybody is there."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tools.processes import Mesh, until

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]

WAIT_S = 90.0
LINE = "device_key_duplicated"


def test_the_clone_takes_a_new_key_and_says_so(tmp_path: Path) -> None:
    """The elder keeps its id, the clone gets another one in the same process, and only the clone says a word."""
    with Mesh(tmp_path) as mesh:
        elder, other = mesh.start("elder", "other")
        until(lambda: elder.sees("elder", "other"), WAIT_S, "the two find each other")
        own = elder.status()["self"]
        clone = mesh.device("clone")
        shutil.copytree(
            elder.folder, clone.folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("lock", "node.json")
        )
        clone.start()
        names = ("elder", "other", "clone")
        until(lambda: all(device.sees(*names) for device in (elder, other, clone)), WAIT_S, "all three see each other")
        assert elder.status()["self"] == own
        assert clone.status()["self"] != own
        assert (clone.folder / "device.key.cloned").read_bytes() == (elder.folder / "device.key").read_bytes()
        assert [device.log.count(LINE) for device in (elder, other, clone)] == [0, 0, 1]
        assert clone.stop() == 143
