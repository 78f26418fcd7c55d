"""What `import meshnn` gives, and what it costs."""

from __future__ import annotations

import subprocess
import sys

import pytest

import meshnn


def test_every_public_name_is_there() -> None:
    """Each name of `__all__` can be had, and `dir` lists it before it was."""
    for name in meshnn.__all__:
        assert name in dir(meshnn)
        assert getattr(meshnn, name)


def test_other_names_are_not() -> None:
    """A misspelt name is an AttributeError that says so, as for any module."""
    with pytest.raises(AttributeError, match="no attribute 'Confgi'"):
        meshnn.Confgi  # noqa: B018  # the look-up is the test


def test_the_package_alone_is_light() -> None:
    """`import meshnn` brings none of the large libraries: every command pays for it."""
    program = (
        "import sys, meshnn; print(meshnn.__version__);"
        "print(*{'aiohttp', 'click', 'cryptography', 'numpy', 'structlog', 'zeroconf'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert (done.stdout, done.stderr) == (f"{meshnn.__version__}\n\n", "")
