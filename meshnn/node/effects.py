"""What the pure machines of a node want done: a closed list, performed by node.performer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import msgspec

from meshnn.cluster.effects import Effect as ClusterEffect
from meshnn.cluster.member import DeviceId
from meshnn.node.messages import FileKind, NameRecord
from meshnn.plan.messages import Golden
from meshnn.plan.plan import Epoch, Recipe

M_co = TypeVar("M_co", bound=msgspec.Struct, covariant=True)


@dataclass(frozen=True, slots=True)
class Send(Generic[M_co]):
    """A control message to one device; to this device itself it comes straight back in."""

    to: DeviceId
    message: M_co


@dataclass(frozen=True, slots=True)
class Fetch:
    """Get a file from any of `holders`; answered by `on_fetched` or `on_fetch_failed`.

    `golden` is what a shard must compute once it is loaded.
    """

    kind: FileKind
    key: str
    size_bytes: int
    sha256: str
    holders: tuple[DeviceId, ...]
    recipe: Recipe | None = None
    golden: Golden | None = None


@dataclass(frozen=True, slots=True)
class Load:
    """Load a shard's file into the runtime; answered by `on_loaded` or `on_load_failed`.

    The file is checked first, and fetched again as `file` says where it is gone or damaged.
    """

    recipe: Recipe
    file: Fetch


@dataclass(frozen=True, slots=True)
class Unload:
    """Drop a loaded shard, once nothing runs it."""

    recipe: Recipe
    handle: int


@dataclass(frozen=True, slots=True)
class CutShards:
    """Cut recipes of a model held here, for the leader that asked; its answer goes to `to`."""

    to: DeviceId
    epoch: Epoch
    model: str
    recipes: tuple[Recipe, ...]


@dataclass(frozen=True, slots=True)
class Solve:
    """Search for plans off the loop; `problem` is a node.problem.Problem, answered by `on_solved`."""

    model: str
    problem: Any


@dataclass(frozen=True, slots=True)
class SaveNames:
    """Write the name records down."""

    records: tuple[NameRecord, ...]


@dataclass(frozen=True, slots=True)
class DropFile:
    """A file nobody needs here any more."""

    kind: FileKind
    key: str


@dataclass(frozen=True, slots=True)
class PlansChanged:
    """The served plans are other ones now: waiting requests may go."""


@dataclass(frozen=True, slots=True)
class Changed:
    """Something a person can see changed: whoever waits for a state looks again."""


@dataclass(frozen=True, slots=True)
class Note:
    """A line for the log: an event in snake_case and its facts."""

    event: str
    facts: tuple[tuple[str, object], ...] = ()
    warning: bool = False


Effect = (
    ClusterEffect
    | Send[msgspec.Struct]
    | Fetch
    | Load
    | Unload
    | CutShards
    | Solve
    | SaveNames
    | DropFile
    | PlansChanged
    | Changed
    | Note
)


def note(event: str, *, warning: bool = False, **facts: object) -> Note:
    """A log line as an effect."""
    return Note(event, tuple(sorted(facts.items())), warning)
