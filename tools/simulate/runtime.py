"""The slow work of a simulated device: files come, shards are cut, loaded and run, plans are searched for."""

from __future__ import annotations

from dataclasses import fields
from functools import partial
from typing import TYPE_CHECKING

import msgspec

from meshnn.node import problem
from meshnn.node.effects import CutShards, Effect, Fetch, Load, Solve, Unload
from meshnn.plan.messages import CutDone, CutFailed
from meshnn.plan.messages import Fetch as ShardFile
from meshnn.plan.plan import PlanSet, Recipe
from tools.simulate.mind import Mind
from tools.simulate.world import World

if TYPE_CHECKING:
    from tools.simulate.host import Host

SHARD_BYTES = 200_000
BYTES_PER_S = 5e6
LOAD_S = 0.05
CUT_S = 0.1
SOLVE_S = 0.2
SOLVED_MAX = 4096

_solved: dict[bytes, PlanSet | str] = {}


class Runtime:
    """Performs what takes time; what comes of it is an event for the core of this very life."""

    def __init__(self, world: World, host: Host) -> None:
        """Nothing is loaded."""
        self.loaded: dict[int, Recipe] = {}
        self.refuses = False
        self.searches = 0
        self._world = world
        self._host = host
        self._chance = world.chance("runtime", host.index)
        self._handles = 0

    def begin(self) -> None:
        """A new process: nothing is loaded."""
        self.loaded.clear()

    def begin_work(self, effect: Effect) -> None:
        """Begin a deed, where it is one; news for people are nobody's work here."""
        match effect:
            case Fetch():
                self._host.soon(self._fetch_s(effect), partial(self._fetched, effect))
            case Load(recipe, file):
                missing = recipe.key not in self._host.disk.shards
                wait_s = LOAD_S + self._chance.expovariate(1 / LOAD_S) + (self._fetch_s(file) if missing else 0.0)
                self._host.soon(wait_s, partial(self._load, effect))
            case Unload(_, handle):
                self.loaded.pop(handle, None)
            case CutShards():
                self._host.soon(CUT_S + self._chance.expovariate(1 / CUT_S), partial(self._cut, effect))
            case Solve(name, task):
                self.searches += 1
                self._host.soon(SOLVE_S + self._chance.expovariate(1 / SOLVE_S), partial(self._solve, name, task))
            case _:
                return

    def _fetch_s(self, wanted: Fetch) -> float:
        return 0.02 + min(wanted.size_bytes, 2_000_000) / BYTES_PER_S

    def _fetched(self, wanted: Fetch, mind: Mind, now: float) -> list[Effect]:
        core, disk = self._host.core, self._host.disk
        if wanted.recipe is not None:
            found = self._obtain(wanted)
            return core.on_shard_fetched(wanted.recipe, "" if found else "no holder gave it", now)
        givers = [giver for giver in self._givers(wanted) if wanted.key in giver.disk.models]
        card = givers[0].disk.models[wanted.key] if givers else None
        if wanted.kind == "card":
            return core.on_card_fetched(wanted.key, card, now)
        if card is None:
            return core.on_model_fetched(wanted.key, "no holder gave it", now)
        disk.models[wanted.key] = card
        return core.on_model_fetched(wanted.key, "", now)

    def _obtain(self, wanted: Fetch) -> bool:
        """Whether a holder gave the shard's file, or cut it again."""
        assert wanted.recipe is not None
        digest = wanted.recipe.digest
        found = any(digest in one.disk.models or wanted.key in one.disk.shards for one in self._givers(wanted))
        if found:
            self._host.disk.shards[wanted.key] = self._world.now
        return found

    def _givers(self, wanted: Fetch) -> list[Host]:
        """The holders that live and are linked."""
        network, me = self._host.network, self._host
        holders = [me.peers[holder] for holder in wanted.holders]
        return [one for one in holders if one is me or (one.responsive and network.connected(me.id, one.id))]

    def _load(self, effect: Load, mind: Mind, now: float) -> list[Effect]:
        core, recipe = self._host.core, effect.recipe
        if self.refuses:
            return core.on_load_failed(recipe, "the runtime does not like it", now)
        if recipe.key not in self._host.disk.shards and not self._obtain(effect.file):
            return core.on_load_failed(recipe, "its file is gone from the disk", now)
        self._handles += 1
        self.loaded[self._handles] = recipe
        return core.on_loaded(recipe, self._handles, now)

    def _cut(self, order: CutShards, mind: Mind, now: float) -> list[Effect]:
        core, disk = self._host.core, self._host.disk
        if any(recipe.digest not in disk.models for recipe in order.recipes):
            return core.answer(order.to, CutFailed(order.epoch, "the model is not here"), now)
        disk.shards.update(dict.fromkeys([recipe.key for recipe in order.recipes], now))
        files = tuple(ShardFile(recipe, "0" * 64, SHARD_BYTES, (self._host.id,)) for recipe in order.recipes)
        return core.answer(order.to, CutDone(order.epoch, files), now)

    def _solve(self, name: str, task: problem.Problem, mind: Mind, now: float) -> list[Effect]:
        return self._host.core.on_solved(name, task, solve(task), now)


def solve(task: problem.Problem) -> PlanSet | str:
    """The real planner's answer, remembered between worlds: it depends on nothing but the problem, on all of it."""
    facts = {field.name: getattr(task, field.name) for field in fields(task)}
    # Of the members the planner sees what makes them devices; their loads change all the time.
    facts |= {"members": task.devices(), "card": (task.card.digest, task.card.size_bytes)}
    pairs = facts["pairs"] = sorted(task.links.pairs.items())
    facts["links"] = msgspec.structs.replace(task.links, pairs={}) if pairs else task.links
    key = msgspec.msgpack.encode(facts, order="deterministic")
    if key not in _solved:
        if len(_solved) >= SOLVED_MAX:
            _solved.clear()
        _solved[key] = problem.solve(task)
    return _solved[key]
