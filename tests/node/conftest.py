"""What several tests of whole nodes begin with."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.node import nodes


@pytest.fixture(scope="session")
def stock(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A state folder that holds the model already; `Mesh.start` copies it for its first device."""
    return nodes.stocked(tmp_path_factory.mktemp("stock") / "state")
