"""The simulated world does what it says: what is lost, late, doubled, cut, stopped and forgotten really is."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest

from meshnn.cluster.messages import Gossip
from meshnn.node import problem
from meshnn.plan.devices import Link, Links
from meshnn.plan.plan import Epoch, Plan
from tools.simulate import runtime
from tools.simulate.disk import FLUSH_S, Disk
from tools.simulate.host import Event
from tools.simulate.mesh import Mesh, card
from tools.simulate.world import World

pytestmark = pytest.mark.simulation


def met(size: int = 3, seed: int = 1) -> Mesh:
    """A mesh of cluster machines that have met and are quiet."""
    mesh = Mesh(seed, size, bare=True)
    mesh.start(*range(size))
    mesh.until(lambda: mesh.views_equal() and mesh.one_leader(), 30.0, "the mesh forms")
    return mesh


def test_deeds_happen_in_the_order_of_their_time_and_of_their_making() -> None:
    """Equal times keep the order in which they were asked for."""
    world, said = World(1), []
    for name, delay_s in (("c", 2.0), ("a", 1.0), ("b", 1.0)):
        world.later(delay_s, lambda name=name: said.append(name))  # type: ignore[misc]
    world.run(3.0)
    assert said == ["a", "b", "c"]
    assert world.now == 103.0


def test_chance_is_named() -> None:
    """The same name gives the same numbers, another name or seed others."""
    assert World(1).chance("a", 1).random() == World(1).chance("a", 1).random()
    assert len({World(1).chance("a").random(), World(1).chance("b").random(), World(2).chance("a").random()}) == 3


def heard_of(mesh: Mesh, sent: int) -> int:
    """How many of so many datagrams from device 0 to device 1 arrive."""
    one, other = mesh.hosts[0], mesh.hosts[1]
    heard = []
    other.hear_datagram = lambda source, boot, message: heard.append(source)  # type: ignore[method-assign]
    mesh.hosts = mesh.hosts[:2]
    for _ in range(sent):
        mesh.network.datagram(one, other.id, Gossip())
    one.kill()
    mesh.run(5.0)
    return len(heard)


def test_datagrams_get_lost() -> None:
    """Half of them, where the weather says so."""
    mesh = Mesh(1, 2, bare=True)
    mesh.start(0, 1)
    mesh.network.weather.loss = 0.5
    assert 350 < heard_of(mesh, 1000) < 650


def test_datagrams_come_twice() -> None:
    """Half of them, where the weather says so."""
    mesh = Mesh(1, 2, bare=True)
    mesh.start(0, 1)
    mesh.network.weather.doubled = 0.5
    assert 1350 < heard_of(mesh, 1000) < 1650


def test_bits_flip() -> None:
    """A corrupt datagram is dropped, a corrupt frame ends its link at both ends, and both are counted."""
    mesh = met()
    one, other = mesh.hosts[0], mesh.hosts[1]
    ended: list[tuple[int, str]] = []
    for host in (one, other):
        host.unlinked = lambda device, evidence, host=host: ended.append((host.index, evidence))  # type: ignore[method-assign, misc]
    mesh.network.weather.corrupt = 1.0
    mesh.network.send(one.id, other.id, Gossip())
    mesh.run(0.3)
    assert ended == [(1, "reset"), (0, "reset")]
    assert mesh.network.corrupted >= 1
    for host in (one, other):
        del host.unlinked
    mesh.network.weather.corrupt = 0.0
    mesh.until(mesh.views_equal, 5.0, "it is whole again")


def test_a_clock_that_went_back_raises_the_incarnation_all_the_same() -> None:
    """Ten years back: the stored number still makes the next life newer, and all others take it in at once."""
    mesh = met()
    host = mesh.hosts[1]
    before = host.cluster.me.incarnation
    host.wall_offset_s = -3e8
    host.kill()
    mesh.restart(host.index, host.boot)
    assert before < host.cluster.me.incarnation < before + 100
    mesh.until(mesh.views_equal, 3.0, "it is back")


def test_a_one_way_cut_stops_one_way() -> None:
    """What goes the other way still arrives."""
    mesh = met()
    one, other = mesh.hosts[0].id, mesh.hosts[1].id
    mesh.network.part([(one, other)], 5.0)
    assert not mesh.network.reaches(one, other)
    assert mesh.network.reaches(other, one)
    mesh.run(5.1)
    assert mesh.network.reaches(one, other)


def test_a_killed_process_resets_its_links_and_refuses_calls() -> None:
    """All others drop it in a moment, and it is dead in their views within 3 s."""
    mesh = met()
    mesh.hosts[2].kill()
    mesh.run(0.5)
    assert not mesh.network.connected(mesh.hosts[0].id, mesh.hosts[2].id)
    mesh.until(mesh.views_equal, 3.0, "the dead are buried")


def test_an_unplugged_device_is_silent() -> None:
    """No reset comes: the others keep their links until the system's own patience ends."""
    mesh = met()
    mesh.hosts[2].kill(power=True)
    mesh.run(2.0)
    assert mesh.network.connected(mesh.hosts[0].id, mesh.hosts[2].id)
    mesh.run(8.0)
    assert not mesh.network.connected(mesh.hosts[0].id, mesh.hosts[2].id)


def test_outstanding_work_notices_silence_within_a_second() -> None:
    """Three pings without an answer end a link on which something is awaited."""
    mesh = met()
    one, other = mesh.hosts[0].id, mesh.hosts[1].id
    mesh.network.expecting(one, other, 1)
    mesh.network.mute(other, 3.0)
    mesh.run(1.1)
    assert not mesh.network.connected(one, other)


def test_messages_on_a_link_keep_their_order() -> None:
    """Also through an outage shorter than the link's patience."""
    mesh = met()
    one, other = mesh.hosts[0], mesh.hosts[1]
    heard: list[object] = []
    other.hear_message = lambda source, message: heard.append(message)  # type: ignore[method-assign]
    mesh.network.mute(one.id, 2.0)
    for number in range(20):
        mesh.network.send(one.id, other.id, number)
    mesh.run(1.9)
    assert heard == []
    mesh.run(5.0)
    assert [one for one in heard if isinstance(one, int)] == list(range(20))


def test_a_stopped_process_takes_in_nothing_until_it_goes_on() -> None:
    """What came meanwhile waits; nobody who sleeps for 3 s is buried."""
    mesh = met(5)
    host = mesh.hosts[1]
    taken: list[float] = []
    take = host.take

    def noted(event: Event) -> None:
        taken.append(mesh.now)
        take(event)

    host.take = noted  # type: ignore[method-assign]
    host.stall(3.0)
    begun = mesh.now
    mesh.run(2.9)
    assert taken == []
    mesh.run(1.0)
    assert min(taken) == pytest.approx(begun + 3.0)
    assert mesh.watch.false_deaths == []


def test_a_crash_loses_the_write_under_way() -> None:
    """What was not synced is not there; what was, stays."""
    world = World(1)
    disk = Disk(world, world.chance("disk"))
    disk.sync(lambda: setattr(disk, "term", 1))
    world.run(10.0)
    disk.sync(lambda: setattr(disk, "term", 2))
    disk.crash(power=False)
    world.run(10.0)
    assert (disk.term, disk.lost_writes) == (1, 1)


def test_a_power_loss_takes_the_newest_files() -> None:
    """A file written a moment before is gone, an older one stays; a killed process loses neither."""
    world = World(1)
    disk = Disk(world, world.chance("disk"))
    disk.shards["old"] = world.now
    world.run(FLUSH_S + 1.0)
    disk.shards["new"] = world.now
    disk.crash(power=False)
    assert set(disk.shards) == {"old", "new"}
    disk.crash(power=True)
    assert set(disk.shards) == {"old"}


def test_a_remembered_plan_is_that_of_the_very_same_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever of a problem differs, the planner is asked anew; else one mesh would serve by another's plans."""
    asked: list[problem.Problem] = []

    def answer(task: problem.Problem) -> str:
        asked.append(task)
        return str(len(asked))

    monkeypatch.setattr(problem, "solve", answer)
    monkeypatch.setattr(runtime, "_solved", {})
    members = tuple(sorted(met().hosts[0].cluster.members.values(), key=lambda row: row.device_id))
    one, other = members[0].device_id, members[1].device_id
    task = problem.Problem("m", card("m"), members, Epoch(1, one, 1), {}, 3)
    others = [
        replace(task, **change)
        for change in (
            {"model": "n"},
            {"card": card("m", digit="2")},
            {"members": members[1:]},
            {"epoch": Epoch(1, one, 2)},
            {"used": {one: 5}},
            {"origins": 4},
            {"current": Plan(Epoch(1, one, 1), "m", "1" * 64, ())},
            {"keep": True},
            {"links": Links(pairs={(one, other): Link(0.0, 0.0)})},
            {"avoid": frozenset({one})},
            {"risk": {one: 2.0}},
            {"spared": {one: 5}},
        )
    ]
    assert {field.name for field in fields(task)} == {
        field.name
        for each in others
        for field in fields(task)
        if getattr(each, field.name) != getattr(task, field.name)
    }
    answers = [runtime.solve(each) for each in (task, *others, task, *others)]
    assert len(asked) == 1 + len(others)
    assert answers[: len(asked)] == answers[len(asked) :]
