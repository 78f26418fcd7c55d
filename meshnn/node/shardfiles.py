"""The files of shards that a leader knows: who can serve each, what every device of a plan must fetch. Pure."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable

from meshnn.cluster.member import DeviceId
from meshnn.node.effects import Send
from meshnn.plan.messages import Fetch, Prepare
from meshnn.plan.plan import PlanSet, Recipe

# Files that are remembered: beyond it only those of models that have a name.
FILES_MAX = 4096


class ShardFiles:
    """What holders said of the files they cut; `holders` finds who holds a whole model and can cut again."""

    def __init__(self, holders: Callable[[str], tuple[DeviceId, ...]]) -> None:
        """No file is known."""
        self._holders = holders
        self._files: dict[Recipe, Fetch] = {}
        self._disputed: dict[DeviceId, set[DeviceId]] = {}

    def learn(self, files: Iterable[Fetch], named: Collection[str], used: Callable[[], set[Recipe]]) -> None:
        """Files were cut; those of models without a name are nobody's. Of too many those of no plan at hand go."""
        self._files |= {fetch.recipe: fetch for fetch in files if fetch.recipe.digest in named}
        if len(self._files) > FILES_MAX:
            self._files = {recipe: fetch for recipe, fetch in self._files.items() if recipe.digest in named}
        if len(self._files) > FILES_MAX:
            kept = used()
            self._files = {recipe: fetch for recipe, fetch in self._files.items() if recipe in kept}

    def missing(self, plans: PlanSet) -> tuple[Recipe, ...]:
        """The recipes of a plan set whose files are not known, sorted."""
        wanted = {recipe for plan in plans.plans for recipe, _ in plan.placements()}
        return tuple(sorted(wanted - self._files.keys()))

    def prepares(
        self, plans: PlanSet, alive: Collection[DeviceId], *, held: bool = False, gentle: bool = False
    ) -> list[Send[Prepare]]:
        """What each device of a plan set must hold, as messages; none where the files are another leader's affair.

        With `held` the devices have what is not known here: they said so. With `gentle` nothing makes room for it.
        """
        if self.missing(plans) and not held:
            return []
        sends: list[Send[Prepare]] = []
        for device in sorted({device for plan in plans.plans for device in plan.devices()}):
            recipes = sorted({recipe for plan in plans.plans for recipe in plan.recipes_of(device)})
            files = tuple(self._with_holders(self._files[r], alive) for r in recipes if r in self._files)
            sends.append(Send(device, Prepare(plans, files, gentle)))
        return sends

    def dispute(self, source: DeviceId, recipes: Collection[Recipe]) -> DeviceId | None:
        """A device computes something else than who cut its shards: the cutter is to blame where two say so, of one.

        What that one cut is forgotten then, and so is the dispute.
        """
        cutters = {self._files[recipe].holders[0] for recipe in recipes if recipe in self._files}
        for cutter in sorted(cutters - {source}):
            against = self._disputed.setdefault(cutter, set())
            against.add(source)
            if len(against) > 1:
                del self._disputed[cutter]
                self._files = {recipe: file for recipe, file in self._files.items() if file.holders[0] != cutter}
                return cutter
        return None

    def _with_holders(self, fetch: Fetch, alive: Collection[DeviceId]) -> Fetch:
        """The file with whoever can serve it today: its cutter, and every holder that can cut it again."""
        able = [*fetch.holders, *self._holders(fetch.recipe.digest)]
        holders = tuple(dict.fromkeys(device for device in able if device in alive))
        return Fetch(fetch.recipe, fetch.sha256, fetch.size_bytes, holders, fetch.golden)
