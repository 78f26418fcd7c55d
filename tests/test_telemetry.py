"""Logs: their form, their level, and that they go nowhere but where they were sent."""

from __future__ import annotations

import io
import json
import logging
import subprocess
import sys
from collections.abc import Iterator

import pytest

from meshnn import telemetry


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    """Whatever a test configures is undone after it."""
    root, ours = logging.getLogger(), logging.getLogger("meshnn")
    handlers, level, processors = list(root.handlers), ours.level, list(telemetry._processors)
    yield
    root.handlers[:] = handlers
    ours.setLevel(level)
    telemetry._processors[:] = processors


def test_json_is_one_object_a_line() -> None:
    """With `json`, each event is one object with its facts, its level, its module and the time in UTC."""
    stream = io.StringIO()
    telemetry.configure(stream, "info", json=True)
    telemetry.logger("meshnn.somewhere").info("joined", peers=3, name="attic")
    telemetry.logger("meshnn.somewhere").warning("left")
    first, second = (json.loads(line) for line in stream.getvalue().splitlines())
    assert {key: first[key] for key in ("event", "level", "logger", "peers", "name")} == {
        "event": "joined",
        "level": "info",
        "logger": "meshnn.somewhere",
        "peers": 3,
        "name": "attic",
    }
    assert first["timestamp"].endswith("Z")
    assert second["level"] == "warning"


def test_text_is_for_people() -> None:
    """Without `json`, a line holds the event and its facts, with no colour codes where there is no terminal."""
    stream = io.StringIO()
    telemetry.configure(stream)
    telemetry.logger("meshnn.somewhere").info("joined", peers=3)
    assert "joined" in stream.getvalue()
    assert "peers=3" in stream.getvalue()
    assert "\x1b" not in stream.getvalue()


@pytest.mark.parametrize("level", telemetry.LEVELS)
def test_a_level_hides_what_is_below_it(level: str) -> None:
    """Each level shows itself and what is graver."""
    stream = io.StringIO()
    telemetry.configure(stream, level, json=True)
    log = telemetry.logger("meshnn.somewhere")
    for one in telemetry.LEVELS:
        getattr(log, one)("happened")
    shown = [json.loads(line)["level"] for line in stream.getvalue().splitlines()]
    assert shown == list(telemetry.LEVELS[telemetry.LEVELS.index(level) :])


def test_an_unknown_level_is_refused() -> None:
    """A level that is none is a ValueError that lists those that are."""
    with pytest.raises(ValueError, match="debug, info, warning, error"):
        telemetry.configure(io.StringIO(), "loud")


def test_configuring_again_replaces() -> None:
    """A second `configure` writes each event once, to its own stream; loggers made before it follow."""
    first, second = io.StringIO(), io.StringIO()
    log = telemetry.logger("meshnn.early")
    telemetry.configure(first, json=True)
    telemetry.configure(second, json=True)
    log.info("happened")
    assert first.getvalue() == ""
    assert len(second.getvalue().splitlines()) == 1


def test_libraries_take_our_form() -> None:
    """A warning of a library becomes an object like ours; its chatter stays out."""
    stream = io.StringIO()
    telemetry.configure(stream, "debug", json=True)
    logging.getLogger("some.library").info("chatter")
    logging.getLogger("some.library").warning("trouble with %s", "a socket")
    (line,) = stream.getvalue().splitlines()
    assert {key: json.loads(line)[key] for key in ("event", "level", "logger")} == {
        "event": "trouble with a socket",
        "level": "warning",
        "logger": "some.library",
    }


def test_an_exception_is_told_whole() -> None:
    """`exception` puts type and message of what was raised into the object."""
    stream = io.StringIO()
    telemetry.configure(stream, json=True)
    try:
        raise OSError("the disk is full")
    except OSError:
        telemetry.logger("meshnn.somewhere").exception("failed")
    (told,) = json.loads(stream.getvalue())["exception"]
    assert (told["exc_type"], told["exc_value"]) == ("OSError", "the disk is full")


def test_captured_keeps_events_from_the_stream() -> None:
    """Inside `captured` events of every level are collected and not written; after it they are written again."""
    stream = io.StringIO()
    log = telemetry.logger("meshnn.somewhere")
    telemetry.configure(stream, "warning", json=True)
    with telemetry.captured() as events:
        log.debug("seen", peers=2)
    log.warning("after")
    assert events == [{"event": "seen", "log_level": "debug", "peers": 2}]
    assert [json.loads(line)["event"] for line in stream.getvalue().splitlines()] == ["after"]


def test_a_program_that_configures_nothing_stays_quiet() -> None:
    """Unconfigured, nothing reaches standard output, and only warnings reach standard error, as text."""
    program = (
        "from meshnn.telemetry import logger; log = logger('meshnn.x');"
        "log.debug('a'); log.info('b'); log.warning('trouble', name='attic', args=1)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == ""
    assert done.stderr == "event='trouble' name='attic' args=1\n"
