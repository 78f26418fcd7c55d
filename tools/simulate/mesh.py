"""A simulated mesh: the world, the network, the devices, what watches them, and who asks."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import msgspec

from meshnn.cluster.member import DeviceId, MemberState
from meshnn.errors import BusyError, MeshError
from meshnn.graph.card import CARD_VERSION, Card, CardOperator, CardTensor
from tools.simulate.host import Host
from tools.simulate.network import Network
from tools.simulate.watch import Watch
from tools.simulate.world import World

DEADLINE_S = 20.0
OPERATORS = 8
PEERS_MAX = 64
ASK_PAUSE_S = 0.02


def card(name: str, digit: str = "1", weights: int = 100_000) -> Card:
    """The card of a chain of eight equal operators; `digit` makes its digest."""
    tensors = tuple(
        CardTensor(index, f"t{index}", (1, 100), "int8", 100, index - 1, (index,) if index < OPERATORS else ())
        for index in range(OPERATORS + 1)
    )
    operators = tuple(
        CardOperator("CONV_2D", (index,), (index + 1,), 1_000_000, weights, 100, 1.0) for index in range(OPERATORS)
    )
    return Card(
        version=CARD_VERSION,
        digest=digit * 64,
        name=name,
        size_bytes=OPERATORS * weights,
        inputs=(tensors[0],),
        outputs=(tensors[-1],),
        operators=operators,
        tensors=tensors,
        refused={},
    )


class Mesh:
    """Devices by number, and what a script does with them."""

    def __init__(self, seed: int, size: int, *, bare: bool = False, mdns: bool = True, count: bool = False) -> None:
        """`size` devices, none started; `bare` ones have the cluster machine alone."""
        self.world = World(seed)
        self._differed = 0
        self.network = Network(self.world, count_bytes=count)
        self.peers: dict[DeviceId, Host] = {}
        self.watch = Watch(self.world, self.peers)
        self.hosts = [Host(self.world, self.network, i, self.watch, self.peers, bare=bare) for i in range(size)]
        self.cards: dict[str, Card] = {}
        self.refused = 0
        self._mdns = mdns
        self._chance = self.world.chance("mesh")
        self._asking = False

    @property
    def now(self) -> float:
        """The virtual time, seconds."""
        return self.world.now

    @property
    def running(self) -> list[Host]:
        """The devices whose process lives, in order."""
        return [host for host in self.hosts if host.running]

    # -- the script --

    def start(self, *indices: int, remembered: int = 0) -> None:
        """Start devices, each as a new life; mDNS shows them to all, and each remembers some of the others."""
        for index in indices:
            others = [host.address for host in self.hosts if host.index != index]
            seeds = self._chance.sample(others, min(remembered, len(others)))
            self.hosts[index].start(seeds)
        if self._mdns:
            for index in indices:
                self._announce(self.hosts[index])

    def restart(self, index: int, boot: int) -> None:
        """Start a device again that remembers whom it knew, unless it lives or had another life since."""
        host = self.hosts[index]
        if not host.running and host.boot == boot:
            host.start([other.address for other in self.hosts if other is not host][:PEERS_MAX])
            if self._mdns:
                self._announce(host)

    def restart_all(self) -> None:
        """Start whoever does not run."""
        for host in self.hosts:
            self.restart(host.index, host.boot)

    def _announce(self, host: Host) -> None:
        for other in self.running:
            if other is not host:
                for near, far in ((host, other), (other, host)):
                    self._show(near, far)

    def _show(self, near: Host, far: Host) -> None:
        address = far.address
        if self.network.reaches(far.id, near.id):
            near.soon(self._chance.uniform(0.1, 0.6), lambda mind, now: mind.on_seen(address, now))

    def add(self, index: int, model: Card) -> None:
        """Give a device a model's file and name it."""
        self.cards[model.name] = model
        host = self.hosts[index]
        host.disk.models[model.digest] = model
        host.take(lambda mind, now: host.core.add_model(model.name, model, now, replace=False))

    def ask(self, index: int, name: str, deadline_s: float = DEADLINE_S) -> str | None:
        """Have a device ask; its request, or None where it does not run or refused at once."""
        host = self.hosts[index]
        if not host.responsive or host.plane is None:
            return None
        value = self._chance.randrange(127)
        model = self.cards[name]
        number = len(self.watch.asked)
        try:
            request = host.plane.ask(name, value, deadline_s)
        except BusyError:
            self.refused += 1
            return None
        assert len(self.watch.asked) == number, "a request was answered before it was asked"
        self.watch.expect(host, request, model.digest, len(model.operators) - 1, value, deadline_s)
        self.watch.on_work(host)
        return request

    def ask_all(self, name: str, every_s: float, until: float) -> None:
        """From now on every device asks at random times, each every `every_s` seconds on average."""
        for host in self.hosts:
            self._ask_later(host, name, every_s, until)

    def _ask_later(self, host: Host, name: str, every_s: float, until: float) -> None:
        def ask() -> None:
            if self.now < until:
                self.ask(host.index, name)
                self._ask_later(host, name, every_s, until)

        self.world.later(self._chance.expovariate(1 / every_s), ask)

    def ask_on(self, name: str, indices: Iterable[int]) -> None:
        """From now on each of these devices asks anew as soon as it is answered."""
        self._asking = True
        self.watch.ended = lambda request: self._ask_next(self.watch.asked[request].host, name)
        for index in indices:
            self._ask_next(index, name)

    def _ask_next(self, index: int, name: str) -> None:
        def ask() -> None:
            if self._asking and self.ask(index, name) is None:
                self._ask_next(index, name)

        self.world.later(ASK_PAUSE_S, ask)

    def stop_asking(self) -> None:
        """End what `ask_on` began."""
        self._asking = False

    def run(self, duration_s: float) -> None:
        """Let virtual time pass."""
        self.world.run(duration_s)

    def until(self, condition: Callable[[], bool], within_s: float, what: str) -> float:
        """Let time pass until the condition holds; how long it took. AssertionError where it takes longer."""
        took_s = self.world.run_until(condition, within_s)
        assert took_s is not None, f"{what}: not within {within_s:.0f} s\n{self.describe()}"
        return took_s

    def run_until_killed(self, device: DeviceId, within_s: float) -> None:
        """Let time pass until a device died, or so long."""
        self.world.run_until(lambda: not self.peers[device].running, within_s, 0.001)

    # -- what is seen --

    def one_leader(self, among: Iterable[int] | None = None) -> bool:
        """Whether these devices (all that run) follow one leader among them, in one term."""
        hosts = self._those(among)
        said = {(host.cluster.leader, host.cluster.term) for host in hosts}
        return len(said) == 1 and next(iter(said))[0] in {host.id for host in hosts}

    def views_equal(self, among: Iterable[int] | None = None) -> bool:
        """Whether each of these devices (all that run) lists exactly all of them, ALIVE."""
        hosts = self._those(among)
        ids = tuple(sorted(host.id for host in hosts))
        # Whose view differed last is looked at first: the question is asked at every step of large meshes.
        hosts.sort(key=lambda host: host.index != self._differed)
        for host in hosts:
            rows = host.cluster.members
            if host.cluster.alive != ids or any(rows[one].state is not MemberState.ALIVE for one in ids):
                self._differed = host.index
                return False
        return True

    def planned(self, name: str, among: Iterable[int] | None = None) -> bool:
        """Whether these devices (all that run) serve one plan of a model, whose devices live in the lives it names."""
        hosts = self._those(among)
        plans = [host.core.book.active(name) for host in hosts]
        first = plans[0] if plans else None
        if first is None or any(plan is None or plan.main != first.main for plan in plans):
            return False
        lives = {host.id: host.boot_id for host in hosts}
        return all(lives.get(device) == boot for device, boot in first.main.lives().items())

    def covered(self, name: str) -> bool:
        """Whether every contingency of the plan that all serve is known as loaded."""
        hosts = self.running
        plans = hosts[0].core.book.active(name)
        ready = [host.core.book.ready(name) for host in hosts]
        return plans is not None and all({plan.epoch for plan in plans.plans} == said for said in ready)

    def drained(self) -> bool:
        """Whether nothing waits and nothing is under way at any device that runs."""
        planes = [host.plane for host in self.running if host.plane is not None]
        return all(not plane.ledger.open and not plane.assembly.keys and not plane.results.keys for plane in planes)

    def check_requests(self) -> None:
        """Every request of a device that still lives ended by its deadline, stalls aside."""
        for request, asked in self.watch.asked.items():
            host = self.hosts[asked.host]
            same_life = host.running and host.boot == asked.life
            late = asked.ended_at is None and self.now > asked.deadline + 1.0
            assert not (same_life and late and host.responsive), f"{request} hangs"

    def describe(self) -> str:
        """Each running device's view."""
        lines = []
        for host in self.running:
            cluster = host.cluster
            rows = sorted((self.peers[device].index, row.state.value) for device, row in cluster.members.items())
            others = " ".join(f"{index}:{state}" for index, state in rows if state != "alive")
            leader = None if cluster.leader is None else self.peers[cluster.leader].index
            lines.append(f"  {host.index}: leader {leader} term {cluster.term}, {len(rows)} rows {others[:100]}")
        return "\n".join(lines[:12])

    def _those(self, among: Iterable[int] | None) -> list[Host]:
        return self.running if among is None else [self.hosts[index] for index in among]


def add_card(mesh: Mesh, name: str) -> None:
    """Give the first device the usual model; MeshError where it is refused."""
    try:
        mesh.add(0, card(name))
    except MeshError as error:
        raise AssertionError(f"the usual model was refused: {error}") from error


def like(model: Card, name: str, digit: str) -> Card:
    """Another model of the same shape."""
    return msgspec.structs.replace(model, name=name, digest=digit * 64)
