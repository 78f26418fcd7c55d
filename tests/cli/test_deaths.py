"""Deaths in words: covered, or what it takes and for how long nothing is answered."""

from __future__ import annotations

import pytest

from meshnn.cli.deaths import told


@pytest.mark.parametrize(
    ("state", "fetch_bytes", "reroute_ms", "wanted"),
    [
        ("prepared", 0, 0, "pi: prepared"),
        ("on disk", 0, 2300, "pi: on disk, answers again after about 2.3 s"),
        ("fetch", 1_500_000, 3100, "pi: needs a fetch of 1.5 MB, answers again after about 3.1 s"),
        ("none", 0, 0, "pi: nothing can take its place"),
        ("unknown", 0, 0, "pi: not known yet"),
    ],
)
def test_every_state_has_its_words(state: str, fetch_bytes: int, reroute_ms: int, wanted: str) -> None:
    """One line each, with the device's name where it is known."""
    row = {"device": "x" * 26, "state": state, "fetch_bytes": fetch_bytes, "reroute_ms": reroute_ms}
    assert told(row, {"x" * 26: "pi"}) == wanted
    assert told(row, {}).startswith("x" * 12 + ":")
