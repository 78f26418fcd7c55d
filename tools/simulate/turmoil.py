"""Scenarios of restless meshes: churn, one that flaps, many that are clogged in turn, flipped bits, wild clocks."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable
from statistics import median

from tools.simulate.figure import NO_BOUND, Figure
from tools.simulate.host import Host
from tools.simulate.lives import SMALL_BYTES, serving
from tools.simulate.mesh import Mesh

ORIGINS = 2
"""In churn the first devices stay and ask; the others come and go."""
STAY_AT_LEAST = 6
STEADY_S = 30.0
JOIN_S, LEAVE_S, KILL_S = 10.0, 10.0, 20.0
BACK_S = 5.0
ROUND_S = 30.0
FLAPS_MAX = 3
YEAR_S = 365.25 * 86400.0
JUMPS_S = (3600.0, -3600.0, 10 * YEAR_S, -10 * YEAR_S)


def churn(seeds: Iterable[int], size: int = 16, minutes: float = 30.0) -> list[Figure]:
    """Scenario 7: joins and departures every 10 s each, a SIGKILL every 20 s; two origins ask without pause."""
    lost, wrong_elections, plans, moves, shares = 0, 0, 0.0, 0.0, []
    total = departures = 0
    for seed in seeds:
        mesh = serving(seed, size, 2 * SMALL_BYTES)
        mesh.ask_on("m", range(ORIGINS))
        steady = _rate(mesh, STEADY_S)
        elections, numbers = len(mesh.watch.elections), len(mesh.watch.epochs["m"])
        restless = _Restless(mesh, minutes * 60)
        shares.append(_rate(mesh, minutes * 60) / steady)
        plans = max(plans, (len(mesh.watch.epochs["m"]) - numbers) / minutes)
        moves = max(moves, mesh.watch.moves("m", numbers) / minutes)
        wrong_elections += max(0, len(mesh.watch.elections) - elections - restless.leaders)
        departures += restless.departures
        mesh.stop_asking()
        mesh.run(30.0)
        total += len(mesh.watch.asked)
        lost += sum(not one.answers for one in mesh.watch.asked.values())
    what = f"churn, N={size}, {minutes:g} min, {departures} departures"
    return [
        Figure(f"{what}: requests without an answer, of {total}", lost, 0, "requests"),
        Figure(f"{what}: elections beyond the leaders' departures", wrong_elections, 0, "elections"),
        Figure(f"{what}: plans that move what serves", moves, 2.0, "a minute"),
        Figure(f"{what}: plans, renewed contingencies included", plans, NO_BOUND, "a minute"),
        Figure(f"{what}: throughput, of the steady one", min(shares), 0.7, "", at_least=True),
    ]


def _rate(mesh: Mesh, duration_s: float) -> float:
    """Answers per second over a while."""
    before = sum(one.answers for one in mesh.watch.asked.values())
    mesh.run(duration_s)
    return (sum(one.answers for one in mesh.watch.asked.values()) - before) / duration_s


class _Restless:
    """Devices come and go for a while; counts who went, and how often it was the leader."""

    def __init__(self, mesh: Mesh, duration_s: float) -> None:
        """Begin."""
        self.departures = 0
        self.leaders = 0
        self._mesh = mesh
        self._end = mesh.now + duration_s
        self._chance = mesh.world.chance("churn")
        for every_s, deed in ((JOIN_S, self._join), (LEAVE_S, self._leave), (KILL_S, self._kill)):
            self._again(every_s, deed)

    def _again(self, every_s: float, deed: Callable[[], None]) -> None:
        def happen() -> None:
            if self._mesh.now < self._end:
                deed()
                self._again(every_s, deed)

        self._mesh.world.later(self._chance.expovariate(1 / every_s), happen)

    def _join(self) -> None:
        absent = [host for host in self._mesh.hosts if not host.running]
        if absent:
            host = self._chance.choice(absent)
            self._mesh.restart(host.index, host.boot)

    def _leave(self) -> None:
        host = self._who()
        if host is not None:
            host.leave()

    def _kill(self) -> None:
        host = self._who()
        if host is not None:
            boot = host.boot
            host.kill()
            self._mesh.world.later(BACK_S, lambda: self._mesh.restart(host.index, boot))

    def _who(self) -> Host | None:
        free = [host for host in self._mesh.running if host.index >= ORIGINS]
        if len(free) < STAY_AT_LEAST:
            return None
        host = self._chance.choice(free)
        self.departures += 1
        self.leaders += host.cluster.leader == host.id
        return host


def flapping(seeds: Iterable[int], size: int = 16, minutes: float = 5.0) -> list[Figure]:
    """Scenario 11: a device of the plan is 1 s up and 1 s down for minutes; the others go on without it."""
    asked = answered = 0
    used, plans = 0, 0.0
    for seed in seeds:
        mesh = serving(seed, size, SMALL_BYTES)
        flapper = _used(mesh)
        known, numbers, begun = len(mesh.watch.asked), len(mesh.watch.epochs["m"]), mesh.now
        mesh.ask_all("m", size / 5.0, begun + minutes * 60)
        flap = 0
        while mesh.now < begun + minutes * 60:
            flap += 1
            active = [host.core.book.active("m") for host in mesh.running if host is not flapper]
            inside = any(plan is not None and flapper.id in plan.main.devices() for plan in active)
            used = max(used, flap) if inside else used
            flapper.kill()
            mesh.run(1.0)
            mesh.restart(flapper.index, flapper.boot)
            mesh.run(1.0)
        mesh.run(30.0)
        others = [one for one in list(mesh.watch.asked.values())[known:] if one.host != flapper.index]
        asked += len(others)
        answered += sum(one.answers for one in others)
        plans = max(plans, (len(mesh.watch.epochs["m"]) - numbers) / minutes)
    what = f"1 s up, 1 s down, N={size}, {minutes:g} min"
    return [
        Figure(f"{what}: the others' goodput, of {asked}", answered / asked, 0.95, "", at_least=True),
        Figure(f"{what}: the last flap that hit a plan", used, FLAPS_MAX, "(1 is the first)"),
        Figure(f"{what}: plans", plans, 2.0, "a minute"),
    ]


def _used(mesh: Mesh) -> Host:
    """A device of the plan that is not the leader."""
    plans = mesh.hosts[0].core.book.active("m")
    assert plans is not None
    return next(h for h in map(mesh.peers.__getitem__, plans.main.devices()) if h.cluster.leader != h.id)


def swizzle(seeds: Iterable[int], size: int = 16, rounds: int = 8) -> list[Figure]:
    """Scenario 11: some devices are clogged one by one and freed in another order, again and again; others ask."""
    asked = answered = 0
    for seed in seeds:
        mesh = serving(seed, size, 2 * SMALL_BYTES)
        chance = mesh.world.chance("swizzle")
        victims = [_used(mesh), *(host for host in mesh.hosts if host.cluster.leader == host.id)]
        victims += chance.sample([host for host in mesh.hosts if host not in victims], size // 4)
        known = len(mesh.watch.asked)
        mesh.ask_all("m", size / 5.0, mesh.now + rounds * ROUND_S)
        for _ in range(rounds):
            _clog(mesh, victims, chance)
            mesh.run(ROUND_S)
        mesh.run(30.0)
        assert mesh.views_equal(), f"not whole 30 s after the last clog\n{mesh.describe()}"
        mesh.check_requests()
        clogged = {host.index for host in victims}
        others = [one for one in list(mesh.watch.asked.values())[known:] if one.host not in clogged]
        asked += len(others)
        answered += sum(one.answers for one in others)
    what = f"swizzle-clog, N={size}, {rounds} rounds"
    return [Figure(f"{what}: the others' goodput, of {asked}", answered / asked, 0.95, "", at_least=True)]


def _clog(mesh: Mesh, victims: list[Host], chance: random.Random) -> None:
    """Clog a random part of the victims one by one, free them in a random order."""
    for host in chance.sample(victims, chance.randint(1, len(victims))):
        at_s, until_s = chance.uniform(0.0, 5.0), chance.uniform(6.0, ROUND_S - 10.0)
        mesh.watch.cut_off = True
        mesh.world.later(at_s, lambda host=host, s=until_s - at_s: mesh.network.mute(host.id, s))  # type: ignore[misc]


def corrupt(seeds: Iterable[int], size: int = 5, minutes: float = 5.0) -> list[Figure]:
    """Scenario 18: bits flip in one datagram of 10 and one frame of 100; datagrams double and overtake."""
    asked = lost = flipped = 0
    for seed in seeds:
        mesh = serving(seed, size, SMALL_BYTES)
        weather = mesh.network.weather
        weather.corrupt, weather.doubled, weather.jitter_s = 0.01, 0.1, 0.05
        mesh.ask_all("m", size / 5.0, mesh.now + minutes * 60)
        mesh.run(minutes * 60)
        weather.corrupt = 0.0
        mesh.run(30.0)
        assert mesh.views_equal(), f"not whole 30 s after the last flipped bit\n{mesh.describe()}"
        mesh.check_requests()
        asked += len(mesh.watch.asked)
        lost += sum(not one.answers for one in mesh.watch.asked.values())
        flipped += mesh.network.corrupted
    what = f"{flipped} frames and datagrams with flipped bits, N={size}"
    return [
        Figure(f"{what}: wrong answers, of {asked}", 0, 0, "(each is compared; the first would end the run)"),
        Figure(f"{what}: requests without an answer", lost, 0, "requests"),
        Figure(f"{what}: enough of them", flipped, 100, "", at_least=True),
    ]


def clocks(seeds: Iterable[int], size: int = 5, minutes: float = 10.0) -> list[Figure]:
    """Scenario 17: wall clocks jump by hours and years while devices run, and devices restart in between."""
    slowest, false, lost, asked, elections = 0.0, 0, 0, 0, 0
    for seed in seeds:
        mesh = serving(seed, size, 2 * SMALL_BYTES)
        chance = mesh.world.chance("clocks")
        end, leaders = mesh.now + minutes * 60, 0
        before = len(mesh.watch.elections)
        mesh.ask_all("m", 1.0, end)
        while mesh.now < end:
            for host in mesh.hosts:
                host.wall_offset_s += chance.choice(JUMPS_S) if chance.random() < 0.3 else 0.0
            mesh.run(chance.uniform(5.0, 15.0))
            host = chance.choice(mesh.hosts)
            leaders += host.cluster.leader == host.id
            host.kill()
            mesh.run(1.0)
            mesh.restart_all()
            slowest = max(slowest, mesh.until(mesh.views_equal, 30.0, "it is back"))
        mesh.run(30.0)
        mesh.check_requests()
        false += len(mesh.watch.false_deaths)
        elections += max(0, len(mesh.watch.elections) - before - leaders)
        alive = [one for one in mesh.watch.asked.values() if mesh.hosts[one.host].boot == one.life]
        asked += len(alive)
        lost += sum(not one.answers for one in alive)
    what = f"wall clocks jump by 1 h and 10 y, N={size}, {minutes:g} min"
    return [
        Figure(f"{what}: a restarted device is back in every view", slowest, 3.0, "s, the slowest"),
        Figure(f"{what}: living devices buried", false, 0, "burials"),
        Figure(f"{what}: elections beyond the leaders' deaths", elections, 0, "elections"),
        Figure(f"{what}: requests without an answer, of {asked}", lost, 0, "requests"),
    ]


def speed(seeds: Iterable[int], size: int = 16, seconds: float = 60.0) -> list[Figure]:
    """How much faster than the clock a mesh of whole nodes is simulated that answers four requests a second."""
    rates = []
    for seed in seeds:
        mesh = serving(seed, size, SMALL_BYTES)
        mesh.ask_all("m", size / 4.0, mesh.now + seconds)
        begun = time.process_time()
        mesh.run(seconds)
        rates.append(seconds / (time.process_time() - begun))
    what = f"{size} nodes, 4 requests a second"
    return [
        Figure(f"{what}: simulated faster than the clock, median", median(rates), 100.0, "times", at_least=True),
        Figure(f"{what}: the slowest seed", min(rates), NO_BOUND, "times"),
    ]
