"""The models that meshnn knows by name: the catalogue that ships with it, and where shipped files lie."""

from __future__ import annotations

import tomllib
from pathlib import Path

import msgspec

from meshnn.errors import MeshError, UnknownModelError

CATALOGUE = "catalogue.toml"


class KnownModel(msgspec.Struct, frozen=True):
    """One entry of the catalogue; what it does not need to be fetched stands in the file for people to read."""

    name: str
    about: str
    url: str
    """Where it is fetched from, or "" for a model that ships with meshnn."""
    sha256: str
    licence: str
    """The SPDX name, as stated at the model's origin."""
    size_bytes: int | None = None
    """None where nobody of the project has seen the file."""
    tried: bool = False
    """Whether the project ran this very file."""


def shipped_file(name: str) -> Path | None:
    """A file that ships with meshnn: in the installed package, or in the repository it runs from; None if neither."""
    package = Path(__file__).resolve().parent
    places = (package / "models" / name, package.parent / "models" / name)
    return next((path for path in places if path.is_file()), None)


def catalogue() -> tuple[KnownModel, ...]:
    """Every model of the catalogue, in its order; none where an installation ships no catalogue. MeshError."""
    path = shipped_file(CATALOGUE)
    if path is None:
        return ()
    try:
        data = path.read_bytes()
    except OSError as error:
        raise MeshError(f"the catalogue {path} cannot be read: {error}") from None
    return entries_of(data, str(path))


def entries_of(data: bytes, place: str) -> tuple[KnownModel, ...]:
    """The entries of a catalogue's file, `place` for people; MeshError."""
    try:
        return msgspec.convert(tomllib.loads(data.decode())["model"], tuple[KnownModel, ...])
    except (ValueError, KeyError, RecursionError) as error:  # msgspec's and tomllib's errors are ValueErrors
        raise MeshError(f"the catalogue {place} cannot be read: {error}") from None


def known(name: str) -> KnownModel:
    """The entry of a name; UnknownModelError lists the choices."""
    entries = catalogue()
    for entry in entries:
        if entry.name == name:
            return entry
    choices = ", ".join(entry.name for entry in entries) or "none"
    raise UnknownModelError(f"the catalogue has no {name!r}; it has {choices}; an http(s) address may be given instead")
