"""Logs: structured, on standard error only, and silent below a warning until the command line configures them.

Every module takes `logger(__name__)`. Records go through the standard library's logging, so a program that
embeds meshnn keeps its own handlers, and the logs of aiohttp and zeroconf take the same form as ours.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from typing import IO, Any

import structlog
from structlog.testing import LogCapture
from structlog.typing import Processor

LEVELS = ("debug", "info", "warning", "error")
"""The log levels a person may ask for, most talkative first."""

Logger = structlog.stdlib.BoundLogger
"""What `logger` returns, for annotations: modules need not import structlog."""

_SHARED: list[Processor] = [
    structlog.contextvars.merge_contextvars,
    structlog.stdlib.add_logger_name,
    structlog.stdlib.add_log_level,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
    structlog.processors.StackInfoRenderer(),
]

# Before `configure`, a line is plain text for whatever handlers the embedding program has.
# The list is changed in place, so that loggers made before `configure` or `captured` follow too.
_processors: list[Processor] = [
    structlog.stdlib.filter_by_level,
    structlog.processors.format_exc_info,
    structlog.processors.KeyValueRenderer(key_order=["event"]),
]


class _OurHandler(logging.StreamHandler[IO[str]]):
    """The handler `configure` installs; its type is how a second call finds and replaces it."""


def logger(name: str) -> Logger:
    """The logger of one module; `name` is its `__name__`. Events are short verbs, facts are keyword arguments."""
    return structlog.wrap_logger(  # type: ignore[no-any-return]  # typed as Any by structlog
        logging.getLogger(name), processors=_processors, wrapper_class=Logger, cache_logger_on_first_use=False
    )


def configure(stream: IO[str], level: str = "info", *, json: bool = False) -> None:
    """Send all logs to `stream`: one JSON object a line, or text for a person.

    Our own modules log from `level` on (one of LEVELS), the libraries beneath from warnings on.
    A second call replaces the first. Raises ValueError for an unknown level.
    """
    if level not in LEVELS:
        raise ValueError(f"unknown log level {level!r}: choose from {', '.join(LEVELS)}")
    renderers: list[Processor] = [structlog.stdlib.ProcessorFormatter.remove_processors_meta]
    if json:
        renderers += [structlog.processors.dict_tracebacks, structlog.processors.JSONRenderer(sort_keys=True)]
    else:
        renderers.append(structlog.dev.ConsoleRenderer(colors=stream.isatty()))
    handler = _OurHandler(stream)
    handler.setFormatter(structlog.stdlib.ProcessorFormatter(processors=renderers, foreign_pre_chain=_SHARED))
    root = logging.getLogger()
    for old in [one for one in root.handlers if isinstance(one, _OurHandler)]:
        root.removeHandler(old)
    root.addHandler(handler)
    logging.getLogger("meshnn").setLevel(level.upper())
    wrap = structlog.stdlib.ProcessorFormatter.wrap_for_formatter
    _processors[:] = [structlog.stdlib.filter_by_level, *_SHARED, wrap]


@contextmanager
def captured() -> Iterator[list[MutableMapping[str, Any]]]:
    """Collect log events of every level instead of writing them; each is a mapping with `event` and `log_level`."""
    capture = LogCapture()
    before = list(_processors)
    _processors[:] = [structlog.contextvars.merge_contextvars, capture]
    try:
        yield capture.entries
    finally:
        _processors[:] = before
