"""Scenario 2, a plug is pulled: how soon the silent are dead in every view, and how soon requests go another way."""

from __future__ import annotations

from collections.abc import Iterable
from statistics import quantiles

from meshnn.cluster.member import DeviceId
from tools.simulate.figure import NO_BOUND, Figure
from tools.simulate.host import Host
from tools.simulate.lives import SMALL_BYTES, serving
from tools.simulate.mesh import Mesh
from tools.simulate.views import settled

FIRST_S = {16: 12.0, 100: 14.0, 1000: 16.0}
ALL_AFTER_S = 2.0
REROUTE_S = 2.0
BACK_AFTER_S = 5.0
COVER_S = 30.0
ASK_EVERY_S = 0.25


def percentile(values: Iterable[float], share: float = 0.99) -> float:
    """The value that this share of all does not exceed."""
    ordered = sorted(values)
    return ordered[-1] if len(ordered) < 2 else quantiles(ordered, n=1000, method="inclusive")[round(share * 1000) - 1]


def deaths(seeds: Iterable[int], size: int = 16, times: int = 20) -> list[Figure]:
    """Plugs are pulled one after the other: the first burial, and the last one after it."""
    firsts: list[float] = []
    spreads: list[float] = []
    false = 0
    for seed in seeds:
        mesh = settled(seed, size)
        chance = mesh.world.chance("plugs")
        for _ in range(times):
            mesh.run(chance.uniform(BACK_AFTER_S, 2 * BACK_AFTER_S))
            host = chance.choice(mesh.running)
            first, last = _burials(mesh, host)
            firsts.append(first)
            spreads.append(last - first)
            mesh.start(host.index, remembered=8)
            mesh.until(mesh.views_equal, 60.0, "it is back")
        false += len(mesh.watch.false_deaths)
    what = f"power loss, N={size}, {len(firsts)} times"
    return [
        Figure(f"{what}: first burial, p99", percentile(firsts), FIRST_S.get(size, 16.0), "s after it"),
        Figure(f"{what}: first burial, median", percentile(firsts, 0.5), NO_BOUND, "s after it"),
        Figure(f"{what}: dead in every view, p99", percentile(spreads), ALL_AFTER_S, "s after the first"),
        Figure(f"{what}: living devices buried", false, 0, "burials"),
    ]


def _burials(mesh: Mesh, host: Host) -> tuple[float, float]:
    """When the first and the last of the others buried a device, in seconds after its plug was pulled."""
    boot, begun, known = host.boot_id, mesh.now, len(mesh.watch.deaths)
    host.kill(power=True)
    left = {other.id for other in mesh.running}

    def buried() -> bool:
        left.difference_update([by for _, by, device in mesh.watch.deaths[known:] if device == host.id])
        return not left

    mesh.until(buried, 60.0, f"device {host.index} is dead everywhere")
    times = [at - begun for at, _, device in mesh.watch.deaths[known:] if device == host.id]
    assert all(one.cluster.members[host.id].boot_id == boot for one in mesh.running)
    return min(times), max(times)


def reroutes(seeds: Iterable[int], size: int = 6, times: int = 6, memory_bytes: int = 2 * SMALL_BYTES) -> list[Figure]:
    """A device of the plan falls silent under load: how long what was asked meanwhile takes; the origins live."""
    slow: list[float] = []
    lost = 0
    for seed in seeds:
        mesh = serving(seed, size, memory_bytes)
        for _ in range(times):
            mesh.until(lambda m=mesh: m.planned("m") and m.covered("m"), COVER_S, "every death is covered")  # type: ignore[misc]
            slow += _unplugged(mesh, _used(mesh)[len(slow) % len(_used(mesh))])
            mesh.restart_all()
            mesh.until(lambda m=mesh: m.views_equal() and m.one_leader(), 60.0, "it is back")  # type: ignore[misc]
            mesh.run(10.0)
        lost += sum(not one.answers for one in mesh.watch.asked.values() if _lives(mesh, one.host, one.life))
    what = f"power loss under load, N={size}: {len(slow)} requests"
    return [
        Figure(f"{what}: latency p99", percentile(slow), REROUTE_S, "s, asked 1 s before to 3 s after"),
        Figure(f"{what}: latency, the longest", max(slow), NO_BOUND, "s"),
        Figure(f"{what}: without an answer", lost, 0, "requests"),
    ]


def _used(mesh: Mesh) -> tuple[DeviceId, ...]:
    plans = mesh.running[0].core.book.active("m")
    assert plans is not None
    return plans.main.devices()


def _unplugged(mesh: Mesh, device: DeviceId) -> list[float]:
    """The latencies at the other devices of what was asked from 1 s before to 3 s after a silent death."""
    host, known = mesh.peers[device], len(mesh.watch.asked)
    mesh.ask_all("m", ASK_EVERY_S, mesh.now + 4.0)
    mesh.run(1.0)
    host.kill(power=True)
    mesh.run(25.0)
    asked = [one for one in list(mesh.watch.asked.values())[known:] if one.host != host.index]
    return [(mesh.now if one.ended_at is None else one.ended_at) - one.at for one in asked]


def _lives(mesh: Mesh, index: int, life: int) -> bool:
    return mesh.hosts[index].running and mesh.hosts[index].boot == life
