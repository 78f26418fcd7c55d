"""Every error a person may see: one line that says what to do, a code for scripts, an exit status for shells."""

from __future__ import annotations

import re


class MeshError(Exception):
    """The root of all errors meshnn raises on purpose; `str(error)` is one clear line."""

    exit_code = 1
    http_status = 500

    @property
    def code(self) -> str:
        """The snake_case name of the class without its `Error`: what scripts match on."""
        return code_of(type(self))


def code_of(kind: type[MeshError]) -> str:
    """The snake_case name of an error class: `NoPlanError` is `no_plan_error`."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", kind.__name__).lower()


class UsageError(MeshError):
    """What was typed, set or configured cannot be meant."""

    exit_code = 2
    http_status = 400


class NodeError(MeshError):
    """This device cannot run its node as asked: a port or a state folder in use, a disk that refuses."""

    exit_code = 1
    http_status = 500


class NoMeshError(MeshError):
    """No node answers where one was needed."""

    exit_code = 3
    http_status = 503


class ModelError(MeshError):
    """A model file cannot be read, cut or run; the message names the place and the reason."""

    exit_code = 4
    http_status = 422


class DownloadError(MeshError):
    """A file cannot be had from the address it should be at; what came is kept for the next try."""

    exit_code = 1
    http_status = 502


class UnknownModelError(MeshError):
    """No model of that name; the message lists the choices."""

    exit_code = 4
    http_status = 404


class ModelConflictError(MeshError):
    """The name is bound to another file already."""

    exit_code = 4
    http_status = 409


class NoPlanError(MeshError):
    """No plan fits the devices that are here; the message says what is missing."""

    exit_code = 5
    http_status = 503


class DeadlineError(MeshError):
    """The deadline passed before the work was done."""

    exit_code = 6
    http_status = 504


class BusyError(MeshError):
    """The mesh has all the requests it can hold; try again later."""

    exit_code = 6
    http_status = 503


class InputError(MeshError):
    """A photo or tensor file cannot be read or does not fit the model."""

    exit_code = 7
    http_status = 400


class PeerError(MeshError):
    """A peer broke the protocol or its link broke; inside a node it is evidence, not an answer."""

    exit_code = 3
    http_status = 502


class StaleEpochError(MeshError):
    """Work arrived for a plan that is no longer served."""

    exit_code = 6
    http_status = 409


BY_CODE: dict[str, type[MeshError]] = {
    code_of(kind): kind
    for kind in (
        MeshError,
        UsageError,
        NodeError,
        NoMeshError,
        ModelError,
        DownloadError,
        UnknownModelError,
        ModelConflictError,
        NoPlanError,
        DeadlineError,
        BusyError,
        InputError,
        PeerError,
        StaleEpochError,
    )
}


def from_code(code: str, message: str) -> MeshError:
    """The error a remote node reported, as its own class; an unknown code becomes a plain MeshError."""
    return BY_CODE.get(code, MeshError)(message)
