"""Second copies: where the shards of the devices of a plan can live a second time, for several deaths at once.

A single heir may be too small for all that a dead device held, and two contingencies may want the same memory: this
search places every shard for itself, all of them together, and finds a placement wherever there is one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from meshnn.cluster.member import DeviceId
from meshnn.plan.devices import DeviceInfo
from meshnn.plan.outline import Outline
from meshnn.plan.plan import Plan, Recipe
from meshnn.plan.ranges import shard_memory

# Places tried before a search is given up: some seconds of one processor, far beyond what plans of a home need.
STEPS_MAX = 100_000
# Shards placed at once; a plan of more is nobody's home.
ITEMS_MAX = 256

Copy = tuple[DeviceId, Recipe]
"""A shard as the device holds it whose death is meant."""


@dataclass(frozen=True, slots=True)
class _Item:
    """A shard to be placed again, away from its device."""

    dead: DeviceId
    recipe: Recipe
    size: int


def second_copies(
    model: Outline, main: Plan, deaths: Iterable[DeviceId], devices: Sequence[DeviceInfo], left: Mapping[DeviceId, int]
) -> dict[Copy, DeviceInfo] | None:
    """For every shard of the dying devices another device of `devices` (best first) with the memory for it.

    `left` are the bytes each device has beside `main`; a recipe counts once on a device, and one that a device holds
    for `main` already costs it nothing. None where no placement exists (or none was found in `STEPS_MAX` steps).
    """
    held = {info.device: frozenset(main.recipes_of(info.device)) for info in devices}
    placed: dict[Copy, DeviceInfo] = {}
    items: list[_Item] = []
    for dead in deaths:
        sizes = shard_memory(model, main, dead)
        for recipe in main.recipes_of(dead):
            holder = next((info for info in devices if info.device != dead and recipe in held[info.device]), None)
            if holder is not None:
                placed[dead, recipe] = holder
            else:
                items.append(_Item(dead, recipe, sizes[recipe]))
    # The largest first; of one recipe on several devices the places come one after the other, so that copies meet.
    items.sort(key=lambda item: (-item.size, item.recipe, item.dead))
    if len(items) > ITEMS_MAX:
        return None
    search = _Search(items, devices, {info.device: left.get(info.device, 0) for info in devices})
    return {**placed, **search.found} if search.run(0) else None


@dataclass
class _Search:
    """Depth first, the devices in their order; what failed once from a place with as much memory left fails again."""

    items: Sequence[_Item]
    devices: Sequence[DeviceInfo]
    left: dict[DeviceId, int]
    found: dict[Copy, DeviceInfo] = field(default_factory=dict)
    steps: int = 0
    failed: set[tuple[int, tuple[int, ...]]] = field(default_factory=set)

    def run(self, at: int) -> bool:
        """Place the items from this one on."""
        if at == len(self.items):
            return True
        # Copies are shared between items of one recipe only, and those stand together: the state is what is left.
        fresh = at == 0 or self.items[at - 1].recipe != self.items[at].recipe
        state = (at, tuple(self.left[info.device] for info in self.devices))
        if fresh and (state in self.failed or self._hopeless(at)):
            return False
        mortal = {item.dead for item in self.items[at:]}
        tried: set[int] = set()
        for info in self.devices:
            cost = self._cost(at, info)
            room = self.left[info.device]
            # Devices that hold nothing of what is still to be placed differ in what they have left alone.
            alike = cost > 0 and info.device not in mortal
            if cost > room or info.device == self.items[at].dead or (alike and room in tried):
                continue
            if alike:
                tried.add(room)
            self.steps += 1
            if self.steps > STEPS_MAX:
                return False
            if self._placed(at, info, cost):
                return True
        if fresh:
            self.failed.add(state)
        return False

    def _placed(self, at: int, info: DeviceInfo, cost: int) -> bool:
        """Whether the rest can be placed with this item here."""
        item = self.items[at]
        self.left[info.device] -= cost
        self.found[item.dead, item.recipe] = info
        if self.run(at + 1):
            return True
        self.left[info.device] += cost
        del self.found[item.dead, item.recipe]
        return False

    def _cost(self, at: int, info: DeviceInfo) -> int:
        """The bytes that an item costs a device: nothing where a copy of its recipe was placed there before."""
        item = self.items[at]
        for before in reversed(self.items[:at]):
            if before.recipe != item.recipe:
                break
            if self.found[before.dead, before.recipe].device == info.device:
                return 0
        return item.size

    def _hopeless(self, at: int) -> bool:
        """Whether all that is left is too little, each recipe counted once."""
        sizes = {item.recipe: item.size for item in self.items[at:]}
        return sum(sizes.values()) > sum(self.left.values())
