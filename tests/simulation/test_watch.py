"""The checkers check: each thing that may not be is shown to them once, and they break off."""

from __future__ import annotations

import pytest

from meshnn.cluster.effects import LeaderChanged, MemberChanged, SendDatagram
from meshnn.cluster.messages import VoteReply
from meshnn.node.request import Answer, Fail
from meshnn.plan.plan import Epoch
from tests.node.shelf import A, B, pipeline
from tools.simulate.lives import serving
from tools.simulate.mesh import Mesh

pytestmark = pytest.mark.simulation

BUDGET_BYTES = 1_400_000


@pytest.fixture(name="mesh", scope="module")
def _mesh() -> Mesh:
    return serving(3, 3, BUDGET_BYTES)


def ask(mesh: Mesh, index: int = 0) -> tuple[str, int, Answer]:
    """A request that was answered, the right value, and its answer."""
    request = mesh.ask(index, "m")
    assert request is not None
    asked = mesh.watch.asked[request]
    mesh.until(lambda: asked.ended_at is not None, 20.0, "an answer")
    plans = mesh.hosts[index].core.book.active("m")
    assert plans is not None
    return request, asked.expected, Answer(request, 1, plans.main, 1, 0.1)


def test_a_second_answer_is_noticed(mesh: Mesh) -> None:
    """One answer a request."""
    _, right, answer = ask(mesh)
    with pytest.raises(AssertionError, match="ended twice"):
        mesh.watch.on_answer(mesh.hosts[0], answer, right)


def test_an_error_after_the_answer_is_noticed(mesh: Mesh) -> None:
    """One end a request."""
    request, _, _ = ask(mesh)
    with pytest.raises(AssertionError, match="ended twice"):
        mesh.watch.on_fail(mesh.hosts[0], Fail(request, "deadline_error", ""))


def test_a_wrong_answer_is_noticed(mesh: Mesh) -> None:
    """An answer is what one device alone would say."""
    request, right, answer = ask(mesh)
    mesh.watch.asked[request].ended_at = None
    with pytest.raises(AssertionError, match="right is"):
        mesh.watch.on_answer(mesh.hosts[0], answer, right + 1)


def test_an_answer_at_another_device_is_noticed(mesh: Mesh) -> None:
    """Only the origin answers."""
    request, right, answer = ask(mesh)
    mesh.watch.asked[request].ended_at = None
    with pytest.raises(AssertionError, match="another life"):
        mesh.watch.on_answer(mesh.hosts[1], answer, right)


def test_a_request_without_an_end_is_noticed(mesh: Mesh) -> None:
    """Nothing hangs past its deadline."""
    request, _, _ = ask(mesh)
    asked = mesh.watch.asked[request]
    asked.ended_at, asked.deadline = None, mesh.now - 2.0
    with pytest.raises(AssertionError, match="hangs"):
        mesh.check_requests()
    asked.ended_at = mesh.now


def test_two_leaders_of_one_term_are_noticed() -> None:
    """In a mesh that was never cut a term has one leader."""
    mesh = serving(3, 3, BUDGET_BYTES)
    leader = next(host for host in mesh.hosts if host.cluster.leader == host.id)
    other = next(host for host in mesh.hosts if host is not leader)
    with pytest.raises(AssertionError, match=r"two leaders in term|voted for"):
        mesh.watch.on_effect(other, LeaderChanged(other.id, leader.cluster.term))


def test_a_leader_whose_term_is_not_on_disk_is_noticed() -> None:
    """The term is stored before its first use."""
    mesh = serving(3, 3, BUDGET_BYTES)
    with pytest.raises(AssertionError, match="not on its disk"):
        mesh.watch.on_effect(mesh.hosts[0], LeaderChanged(mesh.hosts[0].id, 99))


def test_a_vote_before_the_disk_is_noticed(mesh: Mesh) -> None:
    """A vote leaves only when it is stored."""
    voter, other = mesh.hosts[0], mesh.hosts[1]
    effect = SendDatagram(other.id, other.address, VoteReply(77, True, 77))
    with pytest.raises(AssertionError, match="before it was on disk"):
        mesh.watch.on_effect(voter, effect)


def test_two_votes_in_one_term_are_noticed(mesh: Mesh) -> None:
    """Nobody has two votes in a term, in all lives together."""
    voter, one, other = mesh.hosts
    voter.disk.term = 78
    mesh.watch.on_effect(voter, SendDatagram(one.id, one.address, VoteReply(77, True, 77)))
    with pytest.raises(AssertionError, match="voted for"):
        mesh.watch.on_effect(voter, SendDatagram(other.id, other.address, VoteReply(77, True, 77)))


def test_an_incarnation_nobody_claimed_is_noticed(mesh: Mesh) -> None:
    """Only the owner raises its incarnation."""
    import msgspec

    row = mesh.hosts[1].cluster.me
    lie = msgspec.structs.replace(row, incarnation=row.incarnation + 1)
    with pytest.raises(AssertionError, match="never exceeded"):
        mesh.watch.on_effect(mesh.hosts[0], MemberChanged(row, lie))


def test_memory_over_the_budget_is_noticed() -> None:
    """The loaded shards stay within what the device may use."""
    mesh = serving(3, 3, BUDGET_BYTES)
    loaded = next(host for host in mesh.hosts if host.runtime.loaded)
    loaded.memory_bytes = 1
    with pytest.raises(AssertionError, match="over its memory"):
        mesh.watch.on_event(loaded)


def test_a_lost_shard_is_noticed() -> None:
    """What the core believes to be loaded is loaded."""
    mesh = serving(3, 3, BUDGET_BYTES)
    loaded = next(host for host in mesh.hosts if host.runtime.loaded)
    loaded.runtime.loaded.clear()
    with pytest.raises(AssertionError, match="lost count"):
        mesh.watch.on_event(loaded)


def test_plans_that_move_what_serves_are_told_from_renewals() -> None:
    """Only what runs other shards, or on other devices, is a move."""
    mesh = serving(5, 3, BUDGET_BYTES)
    ways = {Epoch(1, A, number): pipeline(devices).lanes for number, devices in enumerate(([A], [B], [B], [B], [A, B]))}
    mesh.watch.epochs["m"] = ways
    assert [mesh.watch.moves("m", first) for first in (0, 1, 2, 4, 5)] == [2, 2, 1, 1, 0]
