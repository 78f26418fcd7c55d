"""The settings of one device, composed from flags, environment, files and what the machine has.

Nearer wins: flags, then `MESHNN_*` variables, then `--config FILE` (else `$XDG_CONFIG_HOME/meshnn/config.toml`),
then `/etc/meshnn/config.toml`, then defaults. Only `load` looks at the machine; the rest is pure.
"""

from __future__ import annotations

import difflib
import ipaddress
import os
import re
import socket
import tomllib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import msgspec
import platformdirs
import psutil

from meshnn.device import memory
from meshnn.errors import UsageError

DEFAULT_PORT = 7766
"""Where a node listens for its peers unless that is taken: then the next free port."""

DEFAULT_HTTP_PORT = 7767
"""Where a node serves HTTP unless that is taken: then the next free port."""

SYSTEM_FILE = Path("/etc/meshnn/config.toml")
LOG_LEVELS = ("debug", "info", "warning", "error")
LONGEST_NAME = 63
"""What a HELLO and a member's row carry."""
# What a person writes is far shorter; the time and memory of reading a line of dotted keys grow with its square.
_FILE_LENGTH_MAX = 64 * 1024
_LINE_LENGTH_MAX = 2000
# In place of what is nested, perhaps so deep that printing it would fail: every setting refuses it.
_NO_VALUE = object()

HostPort = tuple[str, int]
"""A host name or address, and a TCP port."""


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """The settings of one device, all checked; `load` makes one."""

    name: str
    """What people call this device: 1 to 63 printable characters."""
    memory_bytes: int
    """The most this device spends on shards."""
    disk_bytes: int
    """The most this device spends on files of models."""
    state_dir: Path
    """Where key, models and terms are kept."""
    mesh: str = "home"
    threads: int = 1
    peers: tuple[HostPort, ...] = ()
    """Nodes to call where multicast is blocked."""
    interface: str | None = None
    """The one address to use; None is every physical interface."""
    port: int | None = None
    """The port that was asked for (in use is an error); None is DEFAULT_PORT or the next free one."""
    http_port: int | None = None
    """As `port`, of the HTTP server; None is DEFAULT_HTTP_PORT or the next free one."""
    log_level: str = "info"


def parse_size(value: object) -> int:
    """Bytes from `256MB` (10^6), `1GiB` (2^30), `1.5GB` or a plain number; raises ValueError."""
    if isinstance(value, int) and not isinstance(value, bool) and 0 < value < 2**63:
        return value
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(?:([KMGT])(i?))?B?", str(value).strip(), re.IGNORECASE | re.ASCII)
    if not match or isinstance(value, bool):
        raise ValueError("no size: say 256MB, 2GB or 1GiB")
    number, prefix, binary = match.groups()
    power = "KMGT".index(prefix.upper()) + 1 if prefix else 0
    size = float(number) * (1024 if binary else 1000) ** power
    if not 1 <= size < 2**63:
        raise ValueError("no size: it must be more than nothing, and less than any disk")
    return int(size)


def parse_host_port(value: object) -> HostPort:
    """Host and port from `pi.local:7766`, `192.168.1.5:7766` or `[fe80::1]:7766`; raises ValueError."""
    match = re.fullmatch(r"(?:\[([0-9A-Fa-f:.%\w]+)\]|([^\s:\[\]/@]+)):(\d{1,5})", str(value).strip(), re.ASCII)
    if not match or not 1 <= int(match[3]) <= 65535:
        raise ValueError("not HOST:PORT: say 192.168.1.5:7766")
    return match[1] or match[2], int(match[3])


def parse_peers(value: object) -> tuple[HostPort, ...]:
    """Peers from a list, or from text with commas between; doubles once, in order; raises ValueError."""
    if not isinstance(value, (str, list, tuple)):
        raise ValueError("not a list of HOST:PORT")
    parts: Iterable[object] = value.split(",") if isinstance(value, str) else value
    return tuple(dict.fromkeys(parse_host_port(part) for part in parts if str(part).strip()))


def parse_name(value: object) -> str:
    """A name of 1 to 63 printable characters, without blanks around it; raises ValueError."""
    name = value.strip() if isinstance(value, str) else ""
    if not name or not name.isprintable() or len(name) > LONGEST_NAME:
        raise ValueError(f"no name: it takes 1 to {LONGEST_NAME} printable characters")
    return name


def parse_count(value: object) -> int:
    """A number of threads, 1 to 1024; raises ValueError."""
    return _whole(value, 1, 1024)


def parse_port(value: object) -> int:
    """A TCP port, 0 (any free one) to 65535; raises ValueError."""
    return _whole(value, 0, 65535)


def _whole(value: object, least: int, most: int) -> int:
    """A whole number within bounds, from a number or its digits; raises ValueError."""
    digits = str(value).strip()
    if isinstance(value, bool) or not re.fullmatch(r"\d{1,6}", digits, re.ASCII) or not least <= int(digits) <= most:
        raise ValueError(f"not a whole number from {least} to {most}")
    return int(digits)


def parse_interface(value: object) -> str:
    """An IP address of this device, in its usual form; raises ValueError."""
    try:
        return str(ipaddress.ip_address(str(value).strip()))
    except ValueError:
        raise ValueError("no IP address: say 192.168.1.5, or 127.0.0.1 for this device alone") from None


def parse_folder(value: object) -> Path:
    """A folder, absolute, `~` meaning the home folder; raises ValueError."""
    if not isinstance(value, (str, os.PathLike)) or not str(value).strip() or "\0" in str(value):
        raise ValueError("not a folder")
    try:
        return Path(value).expanduser().absolute()
    except RuntimeError:
        raise ValueError("a folder in the home of nobody known here") from None


def parse_level(value: object) -> str:
    """One of LOG_LEVELS; raises ValueError."""
    level = str(value).strip().lower()
    if level not in LOG_LEVELS:
        raise ValueError(f"no log level: choose from {', '.join(LOG_LEVELS)}")
    return level


class Setting(msgspec.Struct, frozen=True):
    """One setting: the field of Config it fills, and how its text is read (raising ValueError)."""

    field: str
    parse: Callable[[object], object]


SETTINGS: Mapping[str, Setting] = {
    "name": Setting("name", parse_name),
    "mesh": Setting("mesh", parse_name),
    "memory": Setting("memory_bytes", parse_size),
    "disk": Setting("disk_bytes", parse_size),
    "threads": Setting("threads", parse_count),
    "peers": Setting("peers", parse_peers),
    "state_dir": Setting("state_dir", parse_folder),
    "interface": Setting("interface", parse_interface),
    "port": Setting("port", parse_port),
    "http_port": Setting("http_port", parse_port),
    "log": Setting("log_level", parse_level),
}
"""Every setting by its key: in a file, and with other spelling as flag (`--http-port`) and variable."""

# Where one word differs: a flag and a variable name one peer or several, the file a list.
_FLAGS = {"peers": "--peer"}
_VARIABLES = {"MESHNN_PEER": "peers"}
_ELSEWHERE = frozenset({"MESHNN_CONFIG"})


class Source(msgspec.Struct, frozen=True):
    """Settings from one place: the raw values by key, and how a person finds each there."""

    values: Mapping[str, object]
    places: Mapping[str, str]


def from_flags(flags: Mapping[str, object]) -> Source:
    """The settings that were typed; None and an empty tuple are flags that were not."""
    given = {key: value for key, value in flags.items() if key != "config" and value is not None and value != ()}
    places = {key: _FLAGS.get(key, "--" + key.replace("_", "-")) for key in given}
    return _checked(Source(given, places), {key: f"--{key.replace('_', '-')}" for key in SETTINGS})


def from_environment(environ: Mapping[str, str]) -> Source:
    """The settings among `MESHNN_*` variables; an empty one counts as not set."""
    values: dict[str, object] = {}
    places: dict[str, str] = {}
    for variable in sorted(environ):
        if variable.startswith("MESHNN_") and variable not in _ELSEWHERE and environ[variable]:
            key = _VARIABLES.get(variable, variable.removeprefix("MESHNN_").lower())
            values[key], places[key] = environ[variable], variable
    return _checked(Source(values, places), {key: f"MESHNN_{key.upper()}" for key in SETTINGS})


def from_toml(text: str, place: str) -> Source:
    """The settings of one file's text; `place` names the file in errors."""
    if len(text) > _FILE_LENGTH_MAX or any(len(line) > _LINE_LENGTH_MAX for line in text.splitlines()):
        raise UsageError(f"{place}: too long: at most {_FILE_LENGTH_MAX} characters, {_LINE_LENGTH_MAX} in a line")
    try:
        values = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # TOMLDecodeError, a number of too many digits, lists too deep
        raise UsageError(f"{place}: not TOML: {error}") from None
    plain = {key: _NO_VALUE if _nested(value) else value for key, value in values.items()}
    return _checked(Source(plain, {key: f"{place}: {key}" for key in values}), {key: key for key in SETTINGS})


def _nested(value: object) -> bool:
    """Whether a value is a table, or a list of more than plain values: no setting takes those, however deep."""
    return isinstance(value, dict) or (isinstance(value, list) and any(isinstance(part, dict | list) for part in value))


def _checked(source: Source, spelling: Mapping[str, str]) -> Source:
    """The source itself; raises UsageError with one line per key that is no setting, and what may be meant."""
    lines = []
    for key in source.values.keys() - SETTINGS.keys():
        close = difflib.get_close_matches(key, SETTINGS, n=1, cutoff=0.5)
        meant = f"did you mean {spelling[close[0]]}?" if close else f"choose from {', '.join(spelling.values())}"
        lines.append(f"{source.places[key]}: no such setting; {meant}")
    if lines:
        raise UsageError("\n".join(sorted(lines)))
    return source


def compose(sources: Iterable[Source]) -> dict[str, object]:
    """The fields of Config that the sources set, the first source nearest.

    Raises UsageError with one line for each setting that cannot be read, saying where it stands.
    """
    fields: dict[str, object] = {}
    lines: list[str] = []
    seen: set[str] = set()
    for source in sources:
        for key in [one for one in source.values if one not in seen]:
            seen.add(key)
            try:
                fields[SETTINGS[key].field] = SETTINGS[key].parse(source.values[key])
            except ValueError as error:
                lines.append(f"{source.places[key]}: {_shown(source.values[key])} is {error}")
    if lines:
        raise UsageError("\n".join(lines))
    return fields


def _shown(value: object) -> str:
    """The beginning of a value, quoted, for a line to a person."""
    try:
        return repr(str(value)[:80])
    except ValueError:  # Python shows no number of more than 4300 digits
        return "this number"


def load(flags: Mapping[str, object], environ: Mapping[str, str], *, system_file: Path = SYSTEM_FILE) -> Config:
    """The settings of this device.

    `flags` maps keys of SETTINGS to what was typed (None or () where nothing was), and may hold `config`,
    a file's path. Raises UsageError, one line per broken setting.
    """
    sources = [from_flags(flags), from_environment(environ)]
    sources += _files(flags.get("config") or environ.get("MESHNN_CONFIG"), environ, system_file)
    fields = compose(sources)
    state_dir = fields.setdefault("state_dir", default_state_dir(environ))
    assert isinstance(state_dir, Path)
    defaults: dict[str, Callable[[], object]] = {
        "name": default_name,
        "memory_bytes": lambda: memory.total_bytes() // 2,
        "disk_bytes": lambda: _free_bytes(state_dir) // 2,
        "threads": default_threads,
    }
    fields |= {field: default() for field, default in defaults.items() if field not in fields}
    return msgspec.convert(fields, Config)


def _files(named: object, environ: Mapping[str, str], system_file: Path) -> list[Source]:
    """The settings of the files that are there, nearest first; a file that was named must be there."""
    own = Path(str(named)).expanduser() if named else _user_file(environ)
    sources = []
    for path in (own, system_file):
        try:
            sources.append(from_toml(path.read_bytes().decode(), str(path)))
        except FileNotFoundError:
            if named and path is own:
                raise UsageError(f"{path}: no such file") from None
        except UnicodeDecodeError:
            raise UsageError(f"{path}: not TOML: it is not UTF-8 text") from None
        except OSError as error:
            raise UsageError(f"{path}: cannot be read: {error.strerror}") from None
    return sources


def _user_file(environ: Mapping[str, str]) -> Path:
    """Where this person's settings are, whether or not there are any."""
    home = environ.get("XDG_CONFIG_HOME")
    folder = Path(home) / "meshnn" if home else platformdirs.user_config_path("meshnn", appauthor=False)
    return folder / "config.toml"


def default_state_dir(environ: Mapping[str, str]) -> Path:
    """The `STATE_DIRECTORY` of systemd (its first), else this person's folder for state."""
    first = environ.get("STATE_DIRECTORY", "").split(":")[0]
    if first:
        return Path(first).absolute()
    home = environ.get("XDG_STATE_HOME")
    return Path(home).absolute() / "meshnn" if home else platformdirs.user_state_path("meshnn", appauthor=False)


def default_name() -> str:
    """The host name without its domain, or `device` where it is no name."""
    try:
        return parse_name(socket.gethostname().split(".")[0])
    except ValueError:
        return "device"


def default_threads() -> int:
    """The cores this process may use, but one for the rest of the device; at least 1."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, usable - 1)


def _free_bytes(folder: Path) -> int:
    """What is free on the disk where `folder` is or would be made."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    try:
        return psutil.disk_usage(str(folder)).free
    except OSError as error:
        raise UsageError(f"{folder}: cannot be read: {error.strerror}") from None
