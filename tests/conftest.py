"""What every test stands on: one thread for arithmetic, a clean environment, repeatable properties."""

from __future__ import annotations

import os

import pytest
from hypothesis import HealthCheck, settings

from tests.shared_data import ABSENT, SHARED

# Before numpy is imported anywhere: threads of the arithmetic libraries only fight on a busy machine.
for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_name] = "1"

# One profile everywhere: the same examples on every run and no deadline, so that a busy machine
# cannot fail a property. `HYPOTHESIS_PROFILE=explore` looks for new examples.
_UNHURRIED = (HealthCheck.too_slow,)
settings.register_profile(
    "repeatable", derandomize=True, deadline=None, database=None, print_blob=True, suppress_health_check=_UNHURRIED
)
settings.register_profile("explore", deadline=None, max_examples=2000, suppress_health_check=_UNHURRIED)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))

NEEDS_ROOT = "needs root (network namespaces and quotas): run the tests as root for this one"


def _is_root() -> bool:
    """Whether this process may make network namespaces; never so where there is no such thing."""
    return hasattr(os, "geteuid") and os.geteuid() == 0


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs root, saying so, when we are not root."""
    if _is_root():
        return
    for item in items:
        if item.get_closest_marker("root") or item.get_closest_marker("rack"):
            item.add_marker(pytest.mark.skip(reason=NEEDS_ROOT))


def pytest_report_header() -> list[str]:
    """Say at the top of the report what this machine cannot test."""
    lines = []
    if SHARED is None:
        lines.append(f"WARNING: {ABSENT}")
    if not _is_root():
        lines.append("WARNING: not root: tests marked `root` or `rack` are SKIPPED")
    return lines


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say once more at the end that shared data was absent, where nobody scrolls past it."""
    if SHARED is None:
        terminalreporter.write_line(f"WARNING: {ABSENT}", yellow=True, bold=True)


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No setting of the person who runs the tests reaches a test."""
    for name in [one for one in os.environ if one.startswith("MESHNN_")]:
        monkeypatch.delenv(name)
