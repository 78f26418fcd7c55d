"""Scenarios of membership alone: false deaths under outages, stalls and loss; how news spreads; mass restarts."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from statistics import median

from meshnn.cluster.member import DeviceId
from tools.simulate.figure import NO_BOUND, Figure
from tools.simulate.host import Host
from tools.simulate.mesh import Mesh

SAME_DEATH_S = 30.0
SETTLE_S = 60.0
Law = Callable[[random.Random], float]


def uniform_outage(chance: random.Random) -> float:
    """The outages of the notes: 0.2 to 4 s, all lengths alike."""
    return chance.uniform(0.2, 4.0)


def heavy_outage(chance: random.Random) -> float:
    """Another law: most are short, some last long (Pareto, cut off at 6 s)."""
    return min(6.0, 0.2 * chance.paretovariate(0.9))


def settled(seed: int, size: int, *, loss: float = 0.01, count: bool = False) -> Mesh:
    """A mesh of cluster machines that have met."""
    mesh = Mesh(seed, size, bare=True, mdns=size <= 64, count=count)
    mesh.network.weather.loss = loss
    mesh.start(*range(size), remembered=4)
    mesh.until(lambda: mesh.views_equal() and mesh.one_leader(), SETTLE_S, "the mesh forms")
    return mesh


def outages(seeds: Iterable[int], size: int = 16, minutes: float = 30.0, law: Law = uniform_outage) -> list[Figure]:
    """Scenario 3: every device is deaf and mute for a while, once a minute on average."""
    return _false_deaths("outages", seeds, size, minutes, 0.5, lambda mesh, end: _outages(mesh, law, end))


def stalls(seeds: Iterable[int], size: int = 16, minutes: float = 30.0) -> list[Figure]:
    """Scenario 4: an eighth of the devices stop for 2 to 8 s, each about every 15 s."""
    return _false_deaths("stalls", seeds, size, minutes, 0.1, _stalls)


def losses(seeds: Iterable[int], sizes: Iterable[int] = (8, 32, 100), minutes: float = 5.0) -> list[Figure]:
    """Scenario 5: every datagram is lost with the same chance."""
    seeds = list(seeds)
    figures: list[Figure] = []
    for size in sizes:
        for loss, bound in ((0.05, 0.0), (0.1, 0.0), (0.2, 0.5)):
            figures += _false_deaths(f"loss {loss:.0%}", seeds, size, minutes, bound, lambda mesh, end: None, loss)[:1]
    return figures


def _false_deaths(
    what: str,
    seeds: Iterable[int],
    size: int,
    minutes: float,
    bound: float,
    begin: Callable[[Mesh, float], None],
    loss: float = 0.01,
) -> list[Figure]:
    """False deaths per node-hour: burials of one living device within 30 s count as one death, each is a view."""
    deaths = views = 0
    hours = 0.0
    for seed in seeds:
        mesh = settled(seed, size, loss=loss)
        begin(mesh, mesh.now + minutes * 60)
        mesh.run(minutes * 60)
        hours += size * minutes / 60
        deaths += count_deaths(mesh.watch.false_deaths)
        views += len(mesh.watch.false_deaths)
        mesh.network.weather.loss = 0.01
        mesh.until(mesh.views_equal, SETTLE_S, f"seed {seed} is whole after the last fault")
    label = f"{what}, N={size}, {hours:.0f} node-hours: false deaths"
    return [
        Figure(label, deaths / hours, bound, "per node-hour"),
        Figure(f"{what}, N={size}: false burials in single views", views / hours, 10 * bound, "per node-hour"),
    ]


def count_deaths(burials: Iterable[tuple[float, DeviceId, DeviceId]]) -> int:
    """How many deaths some burials (when, by whom, of whom) are."""
    last: dict[DeviceId, float] = {}
    deaths = 0
    for at, _, device in burials:
        deaths += at - last.get(device, -SAME_DEATH_S) >= SAME_DEATH_S
        last[device] = at
    return deaths


def _outages(mesh: Mesh, law: Law, end: float) -> None:
    for host in mesh.hosts:
        chance = mesh.world.chance("outage", host.index)
        _again(mesh, chance, 60.0, end, _muting(mesh, host.id, chance, law))


def _muting(mesh: Mesh, device: DeviceId, chance: random.Random, law: Law) -> Callable[[], None]:
    return lambda: mesh.network.mute(device, law(chance))


def _stalls(mesh: Mesh, end: float) -> None:
    chance = mesh.world.chance("stalls")
    for host in chance.sample(mesh.hosts, max(1, len(mesh.hosts) // 8)):
        _stall_later(mesh, host, chance, end)


def _stall_later(mesh: Mesh, host: Host, chance: random.Random, end: float) -> None:
    """The next stall begins some time after the last one is over, so that none grows longer."""

    def happen() -> None:
        if mesh.now < end - 10.0:
            host.stall(chance.uniform(2.0, 8.0))
            _stall_later(mesh, host, chance, end)

    mesh.world.later(max(0.0, host.stalled_until - mesh.now) + chance.expovariate(1 / 15.0), happen)


def _again(mesh: Mesh, chance: random.Random, every_s: float, end: float, deed: Callable[[], None]) -> None:
    def happen() -> None:
        if mesh.now < end - 10.0:
            deed()
            _again(mesh, chance, every_s, end, deed)

    mesh.world.later(chance.expovariate(1 / every_s), happen)


def spread(seeds: Iterable[int], sizes: Iterable[int] = (100, 200)) -> list[Figure]:
    """Scenario 6: how long until every device knows what one has published, and what the quiet mesh costs."""
    bounds = {100: 2.0, 200: 2.2, 1000: 2.5}
    figures: list[Figure] = []
    seeds = list(seeds)
    for size in sizes:
        times, rates, wire = [], [], []
        for seed in seeds:
            mesh = settled(seed, size, count=True)
            mesh.run(SETTLE_S)
            rate, on_wire = quiet_rate(mesh, 20.0)
            rates.append(rate)
            wire.append(on_wire)
            times.append(_spread_s(mesh, seed % size))
        figures += [
            Figure(f"news reaches all of {size}", max(times), bounds.get(size, 2.5), "s, the slowest"),
            Figure(f"quiet load, N={size}: payload", median(rates), 2000.0, "B/s per node"),
            Figure(f"quiet load, N={size}: with seals and headers", median(wire), 2000.0, "B/s per node"),
        ]
    return figures


def quiet_rate(mesh: Mesh, duration_s: float) -> tuple[float, float]:
    """Bytes per second and node that a mesh sends while nothing happens: payload, and all of it (links too)."""
    network = mesh.network
    before = (network.sent_bytes, network.wire_bytes + network.stream_bytes)
    mesh.run(duration_s)
    share = duration_s * len(mesh.running)
    return (network.sent_bytes - before[0]) / share, (network.wire_bytes + network.stream_bytes - before[1]) / share


def _spread_s(mesh: Mesh, index: int) -> float:
    """How long a change of one device's row takes to reach all."""
    host = mesh.hosts[index]
    host.publish()
    version = host.cluster.me.version
    waiting = list(mesh.hosts)

    def known() -> bool:
        waiting[:] = [other for other in waiting if other.cluster.members[host.id].version < version]
        return not waiting

    return mesh.until(known, 30.0, "news spread")


def mass_restart(seeds: Iterable[int], size: int = 1000, remembered: int = 8) -> list[Figure]:
    """Scenario 8: every device is killed and started again within 5 s; nobody stays dead, the mesh is whole again."""
    worst, rates, bursts = 0.0, [], []
    for seed in seeds:
        mesh = settled(seed, size, count=True)
        chance = mesh.world.chance("restart")
        mesh.run(5.0)
        begun = mesh.now
        for host in mesh.hosts:
            host.kill()
        for host in mesh.hosts:
            _start_later(mesh, host.index, chance.uniform(0.0, 5.0), remembered)
        sent = mesh.network.wire_bytes + mesh.network.stream_bytes
        mesh.run(5.0)
        mesh.until(lambda mesh=mesh: mesh.views_equal() and mesh.one_leader(), 120.0, "whole again")  # type: ignore[misc]
        worst = max(worst, mesh.now - begun)
        bursts.append((mesh.network.wire_bytes + mesh.network.stream_bytes - sent) / size / 1e6)
        mesh.run(SETTLE_S)
        rates.append(quiet_rate(mesh, 10.0)[0])
    return [
        Figure(f"mass restart of {size}: equal views and one leader", worst, 30.0, "s after the kill"),
        Figure(f"quiet load afterwards, N={size}", max(rates), 2000.0, "B/s per node (payload)"),
        Figure(f"the restart itself, N={size}", max(bursts), NO_BOUND, "MB per node"),
    ]


def _start_later(mesh: Mesh, index: int, delay_s: float, remembered: int) -> None:
    mesh.world.later(delay_s, lambda: mesh.start(index, remembered=remembered))
