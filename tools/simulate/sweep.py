"""One seed, one life of a mesh: it forms, works, suffers, and must be whole again soon after the last fault."""

from __future__ import annotations

import traceback
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from tools.simulate.faults import FAULTS, schedule
from tools.simulate.mesh import Mesh, card
from tools.simulate.watch import SOMETIMES

MEET_S = 30.0
LEADER_S = 10.0
VIEWS_S = 30.0
PLAN_S = 30.0
DRAIN_S = 40.0
CALM_S = 5.0
MEMORIES = (700_000, 1_000_000, 1_400_000)
ASKS_PER_S = 5.0
"""Of the whole mesh, whatever its size."""


@dataclass(frozen=True, slots=True)
class Setting:
    """What a run is made from, beside its seed."""

    nodes: int = 5
    seconds: float = 60.0
    faults: tuple[str, ...] = tuple(FAULTS)

    def reproduction(self, seed: int) -> str:
        """The line that runs this seed again."""
        faults = "" if self.faults == tuple(FAULTS) else f" --faults {','.join(self.faults)}"
        return f"python -m tools.simulate --nodes {self.nodes} --seconds {self.seconds:g} --seeds {seed}{faults}"


@dataclass(slots=True)
class Report:
    """What became of one seed; times in seconds after the last fault."""

    seed: int
    trace: str = ""
    failure: str = ""
    seen: Counter[str] = field(default_factory=Counter)
    leader_s: float = 0.0
    views_s: float = 0.0
    plan_s: float = 0.0
    requests: int = 0
    answered: int = 0
    errors: int = 0
    simulated_s: float = 0.0
    steps: int = 0


def run(seed: int, setting: Setting) -> Report:
    """Simulate one seed; whatever goes wrong is in the report."""
    report = Report(seed)
    mesh = Mesh(seed, setting.nodes)
    try:
        _live(mesh, setting, report)
    except Exception:  # noqa: BLE001 - the border: whatever a machine raises is this seed's failure
        report.failure = traceback.format_exc()
    report.trace = mesh.world.trace
    report.seen = mesh.watch.seen
    report.seen["write lost in a crash"] = sum(host.disk.lost_writes for host in mesh.hosts)
    report.requests = len(mesh.watch.asked)
    report.answered = sum(asked.answers for asked in mesh.watch.asked.values())
    report.errors = sum(bool(asked.error) for asked in mesh.watch.asked.values())
    report.steps = mesh.world.steps
    report.simulated_s = mesh.now - 100.0
    return report


def _live(mesh: Mesh, setting: Setting, report: Report) -> None:
    """Form, serve, suffer, recover."""
    everybody = range(setting.nodes)
    memory_bytes = mesh.world.chance("memory").choice(MEMORIES)
    for host in mesh.hosts:
        host.memory_bytes = memory_bytes
    mesh.start(*everybody)
    mesh.until(lambda: mesh.one_leader() and mesh.views_equal(), MEET_S, "the mesh forms")
    mesh.add(0, card("m"))
    mesh.until(lambda: mesh.planned("m"), PLAN_S, "the first plan")
    mesh.run(CALM_S)
    mesh.ask_all("m", setting.nodes / ASKS_PER_S, mesh.now + setting.seconds + VIEWS_S)
    schedule(mesh, setting.faults, setting.seconds)
    mesh.run(setting.seconds)
    mesh.run(0.05)
    mesh.restart_all()
    begun = mesh.now
    mesh.until(mesh.one_leader, LEADER_S, "one leader after the faults")
    report.leader_s = mesh.now - begun
    mesh.until(mesh.views_equal, begun + VIEWS_S - mesh.now, "equal views after the faults")
    report.views_s = mesh.now - begun
    mesh.until(lambda: mesh.planned("m"), begun + PLAN_S - mesh.now, "one plan after the faults")
    report.plan_s = mesh.now - begun
    mesh.run(max(0.0, begun + VIEWS_S - mesh.now))
    assert mesh.one_leader(), f"they fell out again\n{mesh.describe()}"
    assert mesh.views_equal(), f"their views parted again\n{mesh.describe()}"
    mesh.until(mesh.drained, DRAIN_S, "the queues drained")
    mesh.check_requests()
    left = {host.index: host.plane.held for host in mesh.running if host.plane is not None and host.plane.held}
    assert not left, f"requests are over, and devices still keep of them: {left}"


def sweep(seeds: Iterable[int], setting: Setting) -> Iterator[Report]:
    """Every seed in turn."""
    for seed in seeds:
        yield run(seed, setting)


def missing(reports: Iterable[Report]) -> list[str]:
    """What should have happened somewhere and never did."""
    seen: Counter[str] = Counter()
    for report in reports:
        seen.update(report.seen)
    return [what for what in SOMETIMES if not seen[what]]
