"""Where the shared models and photos are: `../shared` beside the repository, which may be absent.

Every test that needs one of them asks here, and is skipped, saying so, where there are none.
"""

from __future__ import annotations

from pathlib import Path

import pytest

_BESIDE = Path(__file__).resolve().parents[2] / "shared"

SHARED: Path | None = _BESIDE if (_BESIDE / "testdata").is_dir() else None
"""The shared folder, or None on a machine that has none."""

ABSENT = "shared data is absent (no ../shared/testdata beside the repository): tests that need it are SKIPPED"
"""What the test report says once, and each skipped test again."""


def _file(folder: str, name: str) -> Path:
    """A file of `testdata/<folder>`; skips the test where there is no shared data, fails on a misspelt name."""
    if SHARED is None:
        pytest.skip(ABSENT)
    path = SHARED / "testdata" / folder / name
    assert path.exists(), f"no {name} in ../shared/testdata/{folder}"
    return path


def model(name: str) -> Path:
    """The path of a shared model, named with or without `.tflite`; skips the test where there is no shared data."""
    return _file("models", name if name.endswith(".tflite") else f"{name}.tflite")


def photo(name: str) -> Path:
    """The path of a shared photo by its file name; skips the test where there is no shared data."""
    return _file("images", name)


def models() -> list[Path]:
    """Every shared model in order of name; empty where there is no shared data (for parametrisation)."""
    return sorted((SHARED / "testdata" / "models").glob("*.tflite")) if SHARED else []
