"""What goes wrong: each fault is drawn from the seed, begins at some instant and is over before the faults end."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from tools.simulate.host import Host
from tools.simulate.mesh import Mesh

Fault = Callable[[Mesh, random.Random, float], None]
"""Begins a fault that must be over within so many seconds."""

EVERY_S = 4.0
GENTLE = frozenset({"kill", "leave", "kill_leader", "refuse", "throttle", "clock"})
"""Faults after which all that live hear each other: a term has one leader then."""


def kill(mesh: Mesh, chance: random.Random, left_s: float) -> None:
    """SIGKILL, and a restart as a new life."""
    _end(mesh, chance, min(left_s, chance.uniform(0.3, 15.0)), lambda host: host.kill())


def unplug(mesh: Mesh, chance: random.Random, left_s: float) -> None:
    """Power loss: silence, and a disk that forgot what was not yet on it."""
    _end(mesh, chance, min(left_s, chance.uniform(2.0, 25.0)), lambda host: host.kill(power=True))


def leave(mesh: Mesh, chance: random.Random, left_s: float) -> None:
    """An orderly goodbye."""
    _end(mesh, chance, min(left_s, chance.uniform(1.0, 15.0)), lambda host: host.leave())


def kill_leader(mesh: Mesh, chance: random.Random, left_s: float) -> None:
    """SIGKILL of whoever leads."""
    leading = [host for host in mesh.running if host.cluster.leader == host.id]
    _end(mesh, chance, min(left_s, chance.uniform(0.3, 15.0)), lambda host: host.kill(), leading)


def partition(mesh: Mesh, chance: random.Random, left_s: float) -> None:
    """The mesh falls in two."""
    hosts = list(mesh.hosts)
    chance.shuffle(hosts)
    size = chance.randint(1, len(hosts) - 1)
    pairs = [(a.id, b.id) for a in hosts[:size] for b in hosts[size:]]
    mesh.world.note(f"partition {[host.index for host in hosts[:size]]}")
    mesh.network.part([*pairs, *((b, a) for a, b in pairs)], min(left_s, chance.uniform(3.0, 40.0)))


def one_way(mesh: Mesh, chance: random.Random, left_s: float) -> None:
    """What one device sends to another, or to all, gets lost."""
    one, other = chance.sample(mesh.hosts, 2)
    ears = [other] if chance.random() < 0.6 else [host for host in mesh.hosts if host is not one]
    pairs = [(one.id, ear.id) for ear in ears]
    if chance.random() < 0.5:
        pairs = [(b, a) for a, b in pairs]
    mesh.network.part(pairs, min(left_s, chance.uniform(2.0, 20.0)))


def isolate(mesh: Mesh, chance: random.Random, left_s: float) -> None:
    """One device is deaf and mute for long."""
    mesh.network.mute(chance.choice(mesh.hosts).id, min(left_s, chance.uniform(4.0, 15.0)))


def outage(mesh: Mesh, chance: random.Random, left_s: float) -> None:
    """Some devices are deaf and mute for a moment, as on stuttering Wi-Fi."""
    for host in chance.sample(mesh.hosts, chance.randint(1, 3)):
        mesh.network.mute(host.id, min(left_s, chance.uniform(0.2, 4.0)))


def stall(mesh: Mesh, chance: random.Random, left_s: float) -> None:
    """SIGSTOP and SIGCONT."""
    running = mesh.running
    if running:
        chance.choice(running).stall(min(left_s, chance.uniform(0.3, 8.0) * chance.choice([1, 1, 1, 3])))


def loss(mesh: Mesh, chance: random.Random, left_s: float) -> None:
    """A fifth of all datagrams is lost, a fifth comes twice."""
    weather = mesh.network.weather
    weather.loss, weather.doubled = 0.2, 0.2

    def over() -> None:
        weather.loss, weather.doubled = 0.01, 0.01

    mesh.world.later(min(left_s, chance.uniform(3.0, 15.0)), over)


def slow(mesh: Mesh, chance: random.Random, left_s: float) -> None:
    """Everything takes ten times as long on its way, and overtakes."""
    weather = mesh.network.weather
    weather.jitter_s = 0.15

    def over() -> None:
        weather.jitter_s = 0.015

    mesh.world.later(min(left_s, chance.uniform(3.0, 10.0)), over)


def refuse(mesh: Mesh, chance: random.Random, left_s: float) -> None:
    """One device's runtime loads nothing for a while."""
    runtime = chance.choice(mesh.hosts).runtime
    runtime.refuses = True
    mesh.world.later(min(left_s, chance.uniform(3.0, 15.0)), lambda: setattr(runtime, "refuses", False))


def throttle(mesh: Mesh, chance: random.Random, left_s: float) -> None:
    """One device computes thirty times slower for a while."""
    plane = chance.choice(mesh.hosts).plane
    if plane is not None:
        plane.slowness = 30.0
        mesh.world.later(min(left_s, chance.uniform(3.0, 15.0)), lambda: setattr(plane, "slowness", 1.0))


def corrupt(mesh: Mesh, chance: random.Random, left_s: float) -> None:
    """Bits flip in one frame of fifty on links, and in one datagram of five."""
    weather = mesh.network.weather
    weather.corrupt = 0.02
    mesh.world.later(min(left_s, chance.uniform(2.0, 8.0)), lambda: setattr(weather, "corrupt", 0.0))


def clock(mesh: Mesh, chance: random.Random, left_s: float) -> None:
    """A wall clock jumps, and stays wrong."""
    chance.choice(mesh.hosts).wall_offset_s += chance.choice([1, -1]) * chance.choice([60.0, 3600.0, 3e8])


FAULTS: dict[str, Fault] = {
    "kill": kill,
    "unplug": unplug,
    "leave": leave,
    "kill_leader": kill_leader,
    "partition": partition,
    "one_way": one_way,
    "isolate": isolate,
    "outage": outage,
    "stall": stall,
    "loss": loss,
    "slow": slow,
    "refuse": refuse,
    "throttle": throttle,
    "corrupt": corrupt,
    "clock": clock,
}


def schedule(mesh: Mesh, names: Sequence[str], duration_s: float) -> None:
    """Draw faults from the seed for so many seconds; all are over when they end."""
    chance = mesh.world.chance("faults")
    end = mesh.now + duration_s
    mesh.network.weather.loss = 0.01

    def next_fault() -> None:
        left_s = end - mesh.now
        if left_s > 1.0:
            name = chance.choice(list(names))
            mesh.world.note(f"fault {name}")
            mesh.watch.cut_off = mesh.watch.cut_off or name not in GENTLE
            FAULTS[name](mesh, chance, left_s)
            mesh.world.later(chance.expovariate(1 / EVERY_S), next_fault)

    if names:
        mesh.world.later(chance.expovariate(1 / EVERY_S), next_fault)


def _end(
    mesh: Mesh, chance: random.Random, away_s: float, how: Callable[[Host], None], among: Sequence[Host] | None = None
) -> None:
    """End one of the running devices, and start it again later."""
    hosts = mesh.running if among is None else among
    if not hosts:
        return
    host = chance.choice(list(hosts))
    if not host.responsive:
        return
    how(host)
    boot = host.boot
    mesh.world.later(away_s, lambda: mesh.restart(host.index, boot))
