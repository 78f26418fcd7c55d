"""Which shards this device fetches, loads and drops, under its memory budget. A pure machine."""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

from meshnn.node.effects import Effect, Load, Unload, note
from meshnn.node.effects import Fetch as FetchFile
from meshnn.plan.messages import Fetch
from meshnn.plan.plan import Recipe

# Files on their way to this device at once.
FETCHES_MAX = 2


# Until something was fetched and loaded: bytes, and the milliseconds that they are taken to take.
FETCHING, LOADING = (11_000, 1.0), (500_000, 1.0)


class Level(enum.IntEnum):
    """How much a shard is needed: one of a higher number gives way to one of a lower.

    A spare one waits for what drains, in which requests are still under way; what serves nobody yet, or no longer, is
    idle. Among equals the `rank` decides.
    """

    PREPARING = 0
    ACTIVE = 1
    DRAINING = 2
    SPARE = 3
    IDLE = 4


# What gives way to any model's wish; the planner counts on the rest.
_PASSING = frozenset({Level.DRAINING, Level.SPARE, Level.IDLE})


class State(enum.Enum):
    """Where a shard is."""

    ABSENT = "absent"
    FETCHING = "fetching"
    DISK = "on disk"
    LOADING = "loading"
    LOADED = "loaded"
    FAILED = "failed"


_IN_MEMORY = (State.LOADING, State.LOADED)


@dataclass(frozen=True, slots=True)
class Wanted:
    """A shard that a model's plan gives this device: its file, how much it is needed, what it costs in memory.

    `rank` is the place of its contingency among those of the plan, the most valuable first. Requests use one that is
    `pressing`, or wait for it (of such the `rank` is the order in which they were asked for): what drains and all other
    spares make room for it, and it goes last of what must go.
    """

    fetch: Fetch
    level: Level
    cost_bytes: int
    model: str = ""
    rank: int = 0
    pressing: bool = False

    @property
    def need(self) -> tuple[Level, int]:
        """What sorts wishes: the most needed first."""
        return (self.level, self.rank)


@dataclass(frozen=True, slots=True)
class _Row:
    state: State = State.ABSENT
    handle: int = -1
    cost_bytes: int = 0
    reason: str = ""


class Shards:
    """The shards of this device: what is wanted, what is there, what it costs."""

    def __init__(self, budget_bytes: int, on_disk: Callable[[Recipe], bool]) -> None:
        """`budget_bytes` is the memory for shards; `on_disk` says whether a recipe's file is here."""
        self._budget_bytes = budget_bytes
        self._on_disk = on_disk
        self._wanted: dict[Recipe, Wanted] = {}
        self._rows: dict[Recipe, _Row] = {}
        # What was fetched and loaded so far, and how long that took: bytes and milliseconds.
        self._fetching = FETCHING
        self._loading = LOADING

    @property
    def used_bytes(self) -> int:
        """What the loaded and loading shards cost, by the planner's formula."""
        return sum(row.cost_bytes for row in self._rows.values() if row.state in _IN_MEMORY)

    @property
    def free_bytes(self) -> int:
        """What of the budget nothing is loaded in."""
        return self._budget_bytes - self.used_bytes

    def handle(self, recipe: Recipe) -> int | None:
        """The runtime's handle of a loaded shard."""
        row = self._rows.get(recipe)
        return row.handle if row is not None and row.state is State.LOADED else None

    def state(self, recipe: Recipe) -> State:
        """Where a shard is."""
        row = self._rows.get(recipe)
        return State.ABSENT if row is None else row.state

    def has_file(self, recipe: Recipe) -> bool:
        """Whether the shard's file is on this disk."""
        return self.state(recipe) in {State.DISK, State.LOADING, State.LOADED}

    def reason(self, recipe: Recipe) -> str:
        """Why a shard failed."""
        row = self._rows.get(recipe)
        return "" if row is None else row.reason

    def lacking(self, files: Iterable[Fetch]) -> tuple[int, float]:
        """The bytes to be fetched of some shards, and the milliseconds until all are loaded, as far as measured."""
        absent = [file for file in files if self.handle(file.recipe) is None]
        fetch_bytes = sum(file.size_bytes for file in absent if not self._here(file.recipe))
        load_bytes = sum(file.size_bytes for file in absent)
        return fetch_bytes, _expected_ms(self._fetching, fetch_bytes) + _expected_ms(self._loading, load_bytes)

    def _here(self, recipe: Recipe) -> bool:
        return self.has_file(recipe) or (self.state(recipe) is State.ABSENT and self._on_disk(recipe))

    def _measured(self, before: tuple[int, float], recipe: Recipe, took_ms: float) -> tuple[int, float]:
        """A measure with one more shard in it; the first one takes the place of what is only assumed."""
        wish = self._wanted.get(recipe)
        if wish is None or took_ms <= 0:
            return before
        told = (0, 0.0) if before in (FETCHING, LOADING) else before
        return (told[0] + wish.fetch.size_bytes, told[1] + took_ms)

    def has_room(self, costs: Mapping[Recipe, int]) -> bool:
        """Whether shards of these costs fit beside what serves and what is to serve, were requests to wait for them."""
        serving = {r: wish.cost_bytes for r, wish in self._wanted.items() if wish.level <= Level.ACTIVE}
        return sum({**costs, **serving}.values()) <= self._budget_bytes

    def loaded(self) -> tuple[Recipe, ...]:
        """The shards that are loaded, sorted."""
        return tuple(sorted(recipe for recipe, row in self._rows.items() if row.state is State.LOADED))

    def handles(self) -> set[int]:
        """The runtime's handles of the loaded shards."""
        return {row.handle for row in self._rows.values() if row.state is State.LOADED}

    def want(self, wanted: Iterable[Wanted]) -> list[Effect]:
        """Replace what is wanted; of two wishes for one recipe the more needed holds."""
        fresh: dict[Recipe, Wanted] = {}
        for wish in wanted:
            old = fresh.get(wish.fetch.recipe)
            cost = wish.cost_bytes if old is None else max(old.cost_bytes, wish.cost_bytes)
            kept = wish if old is None else min(old, wish, key=lambda one: (one.level, not one.pressing, one.rank))
            pressing = wish.pressing or (old is not None and old.pressing)
            fresh[wish.fetch.recipe] = replace(kept, cost_bytes=cost, pressing=pressing)
        dropped = [self._unload(recipe) for recipe in self.loaded() if recipe not in fresh]
        self._wanted = fresh
        for recipe in [recipe for recipe, row in self._rows.items() if recipe not in fresh and _resting(row)]:
            del self._rows[recipe]
        for recipe, wish in fresh.items():
            row = self._rows.get(recipe)
            if row is not None and row.state in {State.LOADING, State.LOADED}:
                self._rows[recipe] = replace(row, cost_bytes=wish.cost_bytes)
        return [*dropped, *self._relieve(), *self._step()]

    def cost_of(self, recipes: Iterable[Recipe]) -> int:
        """What those of these shards that are in memory cost."""
        rows = (self._rows.get(recipe) for recipe in recipes)
        return sum(row.cost_bytes for row in rows if row is not None and row.state in _IN_MEMORY)

    @property
    def budget_bytes(self) -> int:
        """The memory for shards."""
        return self._budget_bytes

    @property
    def excess_bytes(self) -> int:
        """What the loaded shards cost beyond the budget, which may have shrunk under them."""
        return max(0, self.used_bytes - self._budget_bytes)

    def set_budget(self, budget_bytes: int) -> list[Effect]:
        """Another budget from now on: what is least needed goes where it shrank, what waited loads where it grew."""
        self._budget_bytes = budget_bytes
        return [*self._relieve(), *self._step()]

    def on_fetched(self, recipe: Recipe, took_ms: float = 0.0) -> list[Effect]:
        """The shard's file is here."""
        self._fetching = self._measured(self._fetching, recipe, took_ms)
        self._settle(recipe, State.FETCHING, _Row(State.DISK))
        return self._step()

    def on_fetch_failed(self, recipe: Recipe, reason: str) -> list[Effect]:
        """No holder gave the shard's file."""
        self._settle(recipe, State.FETCHING, _Row(State.FAILED, reason=reason))
        return [note("shard_not_fetched", warning=True, shard=recipe.key, reason=reason), *self._step()]

    def on_loaded(self, recipe: Recipe, handle: int, took_ms: float = 0.0) -> list[Effect]:
        """The runtime has the shard; it is dropped again where nobody wants it any more."""
        self._loading = self._measured(self._loading, recipe, took_ms)
        row = self._rows.get(recipe, _Row())
        self._rows[recipe] = _Row(State.LOADED, handle, row.cost_bytes)
        if recipe not in self._wanted:
            dropped = self._unload(recipe)
            del self._rows[recipe]
            return [dropped, *self._step()]
        return self._step()

    def on_load_failed(self, recipe: Recipe, reason: str) -> list[Effect]:
        """The runtime refused the shard."""
        self._settle(recipe, State.LOADING, _Row(State.FAILED, reason=reason))
        return [note("shard_not_loaded", warning=True, shard=recipe.key, reason=reason), *self._step()]

    def forgive(self, recipes: Iterable[Recipe]) -> None:
        """Forget failures of these shards, since their plan was given again; the next `want` tries them anew."""
        for recipe in recipes:
            if self.state(recipe) is State.FAILED:
                del self._rows[recipe]

    def _settle(self, recipe: Recipe, before: State, after: _Row) -> None:
        """Take the outcome of work; a recipe nobody wants leaves no row."""
        if self.state(recipe) is not before:
            return
        if recipe in self._wanted:
            self._rows[recipe] = after
        else:
            del self._rows[recipe]

    def _relieve(self) -> list[Effect]:
        """Drop what is least needed where shards that are loaded have come to cost more than the budget."""
        over = self.used_bytes - self._budget_bytes
        effects: list[Effect] = []
        for recipe in self._dispensable(self.loaded()):
            if over <= 0 or self._wanted[recipe].level < Level.DRAINING:
                break
            over -= self._rows[recipe].cost_bytes
            effects.append(self._unload(recipe))
        return effects

    def _step(self) -> list[Effect]:
        """Start what can start now: fetches in order of need, one load at a time."""
        effects: list[Effect] = []
        order = sorted(
            self._wanted.values(), key=lambda wish: (not wish.pressing, wish.need, wish.cost_bytes, wish.fetch.recipe)
        )
        for wish in order:
            if self.state(wish.fetch.recipe) is State.ABSENT:
                effects += self._obtain(wish)
        if not any(row.state is State.LOADING for row in self._rows.values()):
            effects += self._load_next(order)
        return effects

    def _obtain(self, wish: Wanted) -> list[Effect]:
        recipe = wish.fetch.recipe
        if self._on_disk(recipe):
            self._rows[recipe] = _Row(State.DISK)
            return []
        if sum(row.state is State.FETCHING for row in self._rows.values()) >= FETCHES_MAX:
            return []
        self._rows[recipe] = _Row(State.FETCHING)
        return [_file(wish.fetch)]

    def _load_next(self, order: list[Wanted]) -> list[Effect]:
        for wish in order:
            recipe = wish.fetch.recipe
            over = wish.level is Level.DRAINING and not wish.pressing
            if over or self.state(recipe) is not State.DISK:
                continue
            room = self._make_room(wish)
            if room is None:
                if wish.level is Level.PREPARING:
                    self._rows[recipe] = _Row(State.FAILED, reason=self._shortage(wish))
                continue
            self._rows[recipe] = _Row(State.LOADING, cost_bytes=wish.cost_bytes)
            return [*room, Load(recipe, _file(wish.fetch))]
        return []

    def _make_room(self, wish: Wanted) -> list[Effect] | None:
        """The less needed shards that must go before this one fits; None where that is not enough."""
        missing = self.used_bytes + wish.cost_bytes - self._budget_bytes
        if missing <= 0:
            return []
        chosen: list[Recipe] = []
        for recipe in self._dispensable(r for r in self.loaded() if self._gives_way(self._wanted[r], wish)):
            if missing <= 0:
                break
            chosen.append(recipe)
            missing -= self._rows[recipe].cost_bytes
        if missing > 0:
            return None
        return [self._unload(recipe) for recipe in chosen]

    def _dispensable(self, recipes: Iterable[Recipe]) -> list[Recipe]:
        """Loaded shards in the order in which they may go: the least needed first, of equals the dearest."""

        def key(recipe: Recipe) -> tuple[bool, int, int, int, Recipe]:
            level, rank = self._wanted[recipe].need
            return (self._wanted[recipe].pressing, -level, -rank, -self._rows[recipe].cost_bytes, recipe)

        return sorted(recipes, key=key)

    def _gives_way(self, held: Wanted, wish: Wanted) -> bool:
        """Whether a loaded shard may go for a wish; what serves another model stays, since the planner counts on it."""
        if wish.pressing and held.level in _PASSING and not held.pressing:
            return True
        if held.pressing and not wish.pressing and wish.level >= Level.SPARE:
            return False
        return held.need > wish.need and (held.level in _PASSING or held.model == wish.model)

    def _unload(self, recipe: Recipe) -> Effect:
        row = self._rows[recipe]
        self._rows[recipe] = _Row(State.DISK)
        return Unload(recipe, row.handle)

    def _shortage(self, wish: Wanted) -> str:
        need, used, budget = wish.cost_bytes / 1e6, self.used_bytes / 1e6, self._budget_bytes / 1e6
        return f"the shard needs {need:.1f} MB beside {used:.1f} MB in use; the budget is {budget:.1f} MB"


def _file(fetch: Fetch) -> FetchFile:
    """How to get a shard's file."""
    recipe = fetch.recipe
    return FetchFile("shard", recipe.key, fetch.size_bytes, fetch.sha256, fetch.holders, recipe, fetch.golden)


def _resting(row: _Row) -> bool:
    """Whether no work is under way whose end must find the row."""
    return row.state in {State.ABSENT, State.DISK, State.FAILED}


def _expected_ms(measure: tuple[int, float], size_bytes: int) -> float:
    """How long so many bytes take at a measured rate."""
    return size_bytes * measure[1] / max(1, measure[0])
