"""Plans that people asked for: pinned until they give the model back to the planner. The leader's side. Pure.

A pin lives in the plan itself (`Plan.pinned`), which every member holds: whoever leads next keeps it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import msgspec

from meshnn.cluster.member import DeviceId, Member
from meshnn.errors import MeshError
from meshnn.graph.card import Card
from meshnn.node.effects import Changed, Effect, Send
from meshnn.node.messages import NameRecord, Pin, PinAnswer, Unpin
from meshnn.node.problem import info_of
from meshnn.plan.explicit import bound, decode
from meshnn.plan.messages import Unplanned
from meshnn.plan.outline import outline
from meshnn.plan.plan import Epoch, Group, Lane, Plan, Shard, Stage
from meshnn.plan.verify import check


@dataclass(frozen=True, slots=True)
class _Asked:
    source: DeviceId
    message: Pin | Unpin


@dataclass(frozen=True, slots=True)
class Sight:
    """What the leader sees of a model: its active plan, whether that serves, what other models take of the devices.

    `troubles` are reasons why preparing anything for it should wait.
    """

    record: NameRecord
    card: Card
    members: tuple[Member, ...]
    active: Plan | None
    whole: bool
    used: Mapping[DeviceId, int]
    troubles: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the leader shall do: prepare `plan`, or have the planner search, or neither; and say `effects`.

    `tell_again` asks for another word to every member that the plan serves.
    """

    plan: Plan | None = None
    search: bool = False
    effects: tuple[Effect, ...] = ()
    tell_again: bool = False


class Pins:
    """What was asked of the leader and is not answered yet, by model; one wish a model, the newest holds."""

    def __init__(self) -> None:
        """Nothing was asked."""
        self._asked: dict[str, _Asked] = {}
        self._begun: set[str] = set()
        self._waiting: dict[str, tuple[str, ...]] = {}

    def clear(self) -> None:
        """This node leads no longer, or anew: whoever asked asks again."""
        self._asked.clear()
        self._begun.clear()
        self._waiting.clear()

    def ask(self, source: DeviceId, message: Pin | Unpin) -> list[Effect]:
        """A wish; what was wished for this model before is over."""
        over = self.answer(message.model, "another plan was asked for meanwhile")
        self._asked[message.model] = _Asked(source, message)
        return over

    def wish(self, model: str) -> Pin | Unpin | None:
        """What is asked for a model and not begun yet."""
        asked = self._asked.get(model)
        return None if asked is None or model in self._begun else asked.message

    def answer(self, model: str, reason: str = "") -> list[Effect]:
        """Tell whoever asked how it ended: an empty reason is yes."""
        asked = self._asked.pop(model, None)
        self._begun.discard(model)
        return [] if asked is None else [Send(asked.source, PinAnswer(asked.message.ask, reason)), Changed()]

    def review(self, sight: Sight, epoch: Callable[[], Epoch]) -> Verdict:
        """Begin what was asked for a model; else keep its pinned plan, and let it wait for its devices."""
        model = sight.record.name
        wish = self.wish(model)
        if wish is None:
            return self._keep(sight, epoch)
        self._begun.add(model)
        if isinstance(wish, Unpin):
            return Verdict(search=True)
        plan = plan_of(wish, sight, epoch())
        return Verdict(effects=tuple(self.answer(model, plan))) if isinstance(plan, str) else Verdict(plan)

    def _keep(self, sight: Sight, epoch: Callable[[], Epoch]) -> Verdict:
        """A pinned plan: leave it, say what it waits for, or prepare it anew where its devices are back."""
        model, active = sight.record.name, sight.active
        assert active is not None
        if sight.whole:
            return Verdict(tell_again=self._waiting.pop(model, None) is not None)
        here = {member.device_id for member in sight.members}
        missing = tuple(device for device in active.devices() if device not in here) or sight.troubles
        if not missing:
            return Verdict(revived(active, sight.members, epoch()))
        if self._waiting.get(model) == missing:
            return Verdict()
        self._waiting[model] = missing
        reason = f"its pinned plan waits for {', '.join(missing)}; `meshnn plan reset {model}` ends that"
        word = Unplanned(model, sight.record.digest, reason, hopeless=False)
        return Verdict(effects=(*(Send(member.device_id, word) for member in sight.members), Changed()))


def plan_of(pin: Pin, sight: Sight, epoch: Epoch) -> Plan | str:
    """The plan that a pin asks for, on the devices as they live now; or why it cannot be run."""
    infos = [info_of(member) for member in sight.members]
    model = outline(sight.card)
    try:
        written = decode(pin.plan, pin.model)
        plan = bound(written, model, infos, name=pin.model, epoch=epoch, origins=len(infos))
        check(plan, model, infos, sight.used)
    except MeshError as error:
        return str(error)
    return plan


def revived(plan: Plan, members: Sequence[Member], epoch: Epoch) -> Plan:
    """A pinned plan on the same devices in the lives they live now."""
    boots = {member.device_id: member.boot_id for member in members}

    def group(old: Group) -> Group:
        shards = tuple(Shard(shard.device, boots.get(shard.device, shard.boot)) for shard in old.shards)
        return msgspec.structs.replace(old, shards=shards)

    lanes = tuple(
        Lane(tuple(Stage(s.first, s.last, tuple(group(g) for g in s.groups)) for s in lane.stages), lane.weight)
        for lane in plan.lanes
    )
    return msgspec.structs.replace(plan, lanes=lanes, epoch=epoch)
