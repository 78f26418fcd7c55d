"""What each death would mean for a plan: covered by a loaded contingency, or so many milliseconds without an answer."""

from __future__ import annotations

from collections.abc import Mapping

from meshnn.cluster.member import DeviceId
from meshnn.plan.messages import Lack, Outlook
from meshnn.plan.plan import Epoch, Plan, PlanSet

# From the loss of power to the evidence of an origin, which asks at once for what its devices can load: three pings.
EVIDENCE_MS = 900
# From the loss of power to the leader's acting on it: an unanswered ping, three more, the time a link has to come back.
NOTICE_MS = 2000
# A leader's death is acted on by the next one: what is left of the lease, the candidates' wait, two rounds of votes.
ELECTION_MS = 6500
# Prepare, Ready and Activate, and a first answer, beside the loading itself.
SWITCH_MS = 150
# Told in steps of so much, so that measures that waver are no news.
STEP_MS = 100


def outlooks(
    plans: PlanSet,
    ready: frozenset[Epoch],
    loaded: Mapping[DeviceId, frozenset[Epoch]],
    lacks: Mapping[DeviceId, tuple[Lack, ...]],
    leader: DeviceId,
) -> tuple[Outlook, ...]:
    """One row for every device of the plan, sorted by device; `loaded` and `lacks` are by the devices' own words."""
    rows = []
    for device in plans.main.devices():
        plan = plans.without(device)
        said = {} if plan is None else {one: _lack_of(plan, loaded.get(one), lacks.get(one)) for one in plan.devices()}
        rows.append(_outlook(device, plan, ready, said, leader))
    return tuple(rows)


def _lack_of(plan: Plan, loaded: frozenset[Epoch] | None, lacks: tuple[Lack, ...] | None) -> Lack | None:
    """What a device lacks for a plan, by its own words: nothing to fetch or load where it has it; None: not a word."""
    if loaded is not None and plan.epoch in loaded:
        return Lack(plan.epoch, 0, 0, room=True)
    return next((lack for lack in lacks or () if lack.epoch == plan.epoch), None)


def _outlook(
    device: DeviceId,
    plan: Plan | None,
    ready: frozenset[Epoch],
    said: Mapping[DeviceId, Lack | None],
    leader: DeviceId,
) -> Outlook:
    if plan is None:
        return Outlook(device, "none")
    if plan.epoch in ready:
        return Outlook(device, "prepared")
    missing = [lack for lack in said.values() if lack is not None]
    fetch_bytes = sum(lack.fetch_bytes for lack in missing)
    load_ms = max((lack.load_ms for lack in missing), default=0)
    if not fetch_bytes and all(lack is not None and lack.room for lack in said.values()):
        notice_ms = EVIDENCE_MS
    else:
        notice_ms = SWITCH_MS + (ELECTION_MS if device == leader else NOTICE_MS)
    reroute_ms = -(-(notice_ms + load_ms) // STEP_MS) * STEP_MS
    return Outlook(device, "fetch" if fetch_bytes else "on disk", fetch_bytes, reroute_ms)
