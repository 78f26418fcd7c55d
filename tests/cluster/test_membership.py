"""Directed tests of the membership: one rule each."""

from __future__ import annotations

import pytest

from meshnn.cluster import roster
from meshnn.cluster.effects import IdentityClash, MemberChanged, PersistIncarnation, SendDatagram, SendStream
from meshnn.cluster.member import Capability, Load, MemberState
from meshnn.cluster.messages import (
    BUCKETS,
    Ack,
    Alive,
    Dead,
    Digest,
    Leave,
    Left,
    LoadRow,
    Nack,
    Ping,
    PingRequest,
    Suspect,
    Sync,
)
from tests.cluster.stage import Stage, advanced, reborn
from tests.cluster.virtual_mesh import device_id, member

ALIVE, SUSPECT, DEAD, LEFT = MemberState.ALIVE, MemberState.SUSPECT, MemberState.DEAD, MemberState.LEFT


def _suspicion(peer: int, accuser: int, refused: bool = False, incarnation: int = 1000) -> Suspect:
    return Suspect(device_id(peer), incarnation, device_id(accuser), refused)


def _probe_of(stage: Stage, peer: int) -> Ping:
    """Let others be heard until the machine probes `peer`."""
    stage.follow(2)
    for _ in range(20):
        stage.effects.clear()
        stage.wait(0.25, tuple(other for other in range(1, 5) if other != peer))
        if stage.sent(Ping, peer):
            return stage.sent(Ping, peer)[0]
    raise AssertionError("never probed")


def test_every_member_is_probed_in_turn() -> None:
    """In as many intervals as there are others, each was probed."""
    stage = Stage(1, 2, 3)
    stage.wait(6.5, heard=(1, 2, 3))
    assert all(stage.sent(Ping, peer) for peer in (1, 2, 3))


def test_a_silent_target_is_asked_through_relays_and_over_its_stream() -> None:
    """After the ping's timeout other members are asked, and the stream carries a ping at the same time."""
    stage = Stage(1, 2, 3, 4)
    ping = _probe_of(stage, 1)
    stage.wait(0.7, heard=(2, 3, 4))
    assert {request.target for request in stage.sent(PingRequest)} == {device_id(1)}
    assert len(stage.sent(PingRequest)) == 3
    assert any(effect.to == device_id(1) and isinstance(effect.message, Ping) for effect in stage.all(SendStream))
    assert ping.boot_id == member(1).boot_id


def test_a_probe_nobody_answered_is_an_accusation() -> None:
    """At the interval's end a member that answered neither directly nor through relays is suspected."""
    stage = Stage(1, 2, 3, 4)
    _probe_of(stage, 1)
    stage.wait(1.1, heard=(2, 3, 4))
    assert stage.state(1) is SUSPECT
    stage.wait(1.0, heard=(2, 3, 4))
    assert stage.rumours(Suspect, 2) or stage.rumours(Suspect, 3) or stage.rumours(Suspect, 4)


@pytest.mark.parametrize("answerer", [1, 2])
def test_an_answer_from_the_target_or_a_relay_clears_the_probe(answerer: int) -> None:
    """Either path shows that the target lives."""
    stage = Stage(1, 2, 3, 4)
    ping = _probe_of(stage, 1)
    stage.hear(answerer, Ack(ping.number, device_id(1)))
    stage.wait(1.0, heard=(2, 3, 4))
    assert stage.state(1) is ALIVE


def test_who_is_heard_but_never_answers_is_no_neighbour() -> None:
    """A device that lives but cannot be reached from here is ALIVE and unreachable, until it answers."""
    stage = Stage(1)
    stage.follow(1)
    stage.wait(3.5, heard=(1,))
    assert stage.state(1) is ALIVE
    assert stage.cluster.unreachable == (device_id(1),)
    stage.hear(1, Ack(stage.sent(Ping, 1)[-1].number, device_id(1)))
    stage.wait(1.0)
    assert not stage.cluster.unreachable


def test_a_relay_pings_the_target_and_reports() -> None:
    """A relay passes the target's answer on under the asker's number."""
    stage = Stage(1, 2)
    stage.hear(1, PingRequest(77, device_id(2)))
    stage.hear(2, Ack(stage.sent(Ping, 2)[-1].number, device_id(2)))
    assert stage.sent(Ack, 1)[-1] == Ack(77, device_id(2), stage.sent(Ack, 1)[-1].rumours)


def test_a_relay_without_an_answer_says_no() -> None:
    """The relay's no tells the asker that it is not the asker's own ears."""
    stage = Stage(1, 2)
    stage.hear(1, PingRequest(77, device_id(2)))
    stage.wait(0.45, heard=(1, 2))
    assert [nack.number for nack in stage.sent(Nack, 1)] == [77]


def test_a_ping_for_a_former_life_is_refused() -> None:
    """What was addressed to the old life gets no Ack, but the new life's own word."""
    stage = Stage(1)
    stage.hear(1, Ping(5, member(0, 9).boot_id))
    assert not stage.sent(Ack)
    assert Alive(stage.cluster.me) in stage.rumours(Alive, 1)


def test_a_datagram_of_a_former_life_is_refused() -> None:
    """An old life's message is answered with what is known of the device, and does nothing else."""
    stage = Stage(1)
    stage.tell(1, Alive(reborn(1)))
    stage.effects.clear()
    stage.hear(1, Leave(2000), boot=0)
    stage.hear(1, Ping(1, stage.cluster.me.boot_id), boot=0)
    assert stage.state(1) is ALIVE
    assert not stage.sent(Ack)


def test_a_restarted_device_is_a_new_life() -> None:
    """The same id with another boot id and a higher incarnation beats its old DEAD record at once."""
    stage = Stage(1, 2)
    stage.tell(2, Dead(device_id(1), 1000, device_id(2)))
    assert stage.state(1) is DEAD
    stage.tell(2, Alive(reborn(1)))
    change = stage.all(MemberChanged)[-1]
    assert change.before is not None
    assert change.after is not None
    assert (change.before.boot_id, change.after.boot_id) == (member(1).boot_id, reborn(1).boot_id)
    assert stage.state(1) is ALIVE


def test_refutation_raises_the_incarnation_and_stores_it() -> None:
    """Accused, a device says so itself, louder; the new incarnation goes to disk."""
    stage = Stage(1, 2)
    stage.tell(1, _suspicion(0, 2))
    assert stage.cluster.me.incarnation == 1001
    assert stage.all(PersistIncarnation)[-1] == PersistIncarnation(1001)
    stage.wait(0.3, heard=(1, 2))
    assert Alive(stage.cluster.me) in stage.rumours(Alive)


def test_a_refuted_suspicion_is_dropped() -> None:
    """A higher incarnation of the suspect clears it for good."""
    stage = Stage(1, 2, 3)
    stage.tell(1, _suspicion(2, 1))
    assert stage.state(2) is SUSPECT
    stage.tell(1, Alive(member(2, 0, 1001)))
    stage.wait(30.0, heard=(1, 2, 3))
    assert stage.state(2) is ALIVE


def test_an_accusation_of_an_older_incarnation_is_ignored() -> None:
    """Only the present incarnation can be accused or buried."""
    stage = Stage(1, 2)
    stage.tell(1, _suspicion(2, 1, incarnation=999))
    stage.tell(1, Dead(device_id(2), 999, device_id(1)))
    assert stage.state(2) is ALIVE


def test_of_claims_about_one_incarnation_the_severer_holds() -> None:
    """DEAD beats ALIVE and SUSPECT; LEFT beats DEAD; none of them comes back at the same incarnation."""
    stage = Stage(1, 2)
    stage.tell(1, Dead(device_id(2), 1000, device_id(1)))
    stage.tell(1, Alive(member(2)))
    stage.tell(1, _suspicion(2, 1))
    assert stage.state(2) is DEAD
    stage.tell(1, Left(device_id(2), 1000))
    stage.tell(1, Dead(device_id(2), 1000, device_id(1)))
    assert stage.state(2) is LEFT


def test_an_unheard_suspect_is_buried_after_the_time_and_a_last_word() -> None:
    """Without confirmers wanted: eight seconds, a last ping both ways, one second of grace, then DEAD."""
    stage = Stage(1, 2, 3)
    stage.tell(1, _suspicion(2, 1))
    stage.wait(8.1, heard=(1, 3))
    assert stage.state(2) is SUSPECT
    assert any(isinstance(effect.message, Ping) and effect.to == device_id(2) for effect in stage.all(SendStream))
    stage.wait(1.0, heard=(1, 3))
    assert stage.state(2) is DEAD


def test_confirmers_hasten_the_end() -> None:
    """With two confirmers in a mesh of six a suspect has seven seconds instead of nineteen."""
    stage = Stage(1, 2, 3, 4, 5)
    stage.tell(1, _suspicion(2, 1))
    stage.tell(3, _suspicion(2, 3))
    stage.tell(4, _suspicion(2, 4))
    stage.wait(7.1, heard=(1, 3, 4, 5))
    assert stage.state(2) is DEAD


def test_the_same_accuser_counts_once() -> None:
    """Repeating an accusation confirms nothing."""
    stage = Stage(1, 2, 3, 4, 5)
    for _ in range(5):
        stage.tell(1, _suspicion(2, 1))
    stage.wait(6.9, heard=(1, 3, 4, 5))
    assert stage.state(2) is SUSPECT


def test_leaving_is_told_and_believed_at_once() -> None:
    """A goodbye makes LEFT without suspicion, and the goodbye goes to all."""
    stage = Stage(1, 2)
    stage.hear(1, Leave(1000))
    assert stage.state(1) is LEFT
    effects = stage.cluster.leave(stage.now)
    assert any(isinstance(effect, SendDatagram) and effect.to == device_id(2) for effect in effects)
    assert stage.cluster.deadline is None
    assert stage.cluster.on_deadline(99.0) == []


def test_push_pull_takes_a_remote_death_as_a_suspicion() -> None:
    """A table that lists a member as dead accuses it; only time or its host buries it."""
    stage = Stage(1, 2)
    row = advanced(member(2), state=DEAD)
    stage.note(stage.cluster.on_stream_message(device_id(1), Sync((row,)), stage.now))
    assert stage.state(2) is SUSPECT


def test_push_pull_brings_no_unknown_dead() -> None:
    """A stranger's tombstone is no news: tombstones that travel would never age."""
    stage = Stage(1)
    row = advanced(member(2), state=DEAD)
    stage.note(stage.cluster.on_stream_message(device_id(1), Sync((row,)), stage.now))
    assert device_id(2) not in stage.cluster.members


def test_equal_tables_exchange_nothing() -> None:
    """The digest of an equal table is answered with silence; of another, with rows and a wish for theirs."""
    one, two = Stage(1, me=0), Stage(0, me=1)
    one.note(one.cluster.on_linked(device_id(1), member(1).boot_id, "", member(1).address, 0, 0.0))
    digest = one.sent(Digest)[-1]
    two.note(two.cluster.on_stream_message(device_id(0), digest, 0.0))
    assert not two.sent(Sync)
    two.tell(0, Alive(member(5)))
    two.note(two.cluster.on_stream_message(device_id(0), digest, 0.0))
    assert [row.device_id for row in two.sent(Sync)[-1].rows] == [device_id(5)]


def test_a_link_with_a_stranger_opens_one_exchange() -> None:
    """Of two linked devices the lower id opens; it works before either has a row of the other."""
    low, high = Stage(me=0), Stage(me=1)
    low.note(low.cluster.on_linked(device_id(1), member(1).boot_id, "", member(1).address, 0, 0.0))
    high.note(high.cluster.on_linked(device_id(0), member(0).boot_id, "", member(0).address, 0, 0.0))
    assert (len(low.sent(Digest)), len(high.sent(Digest))) == (1, 0)
    high.note(high.cluster.on_stream_message(device_id(0), low.sent(Digest)[0], 0.0))
    low.note(low.cluster.on_stream_message(device_id(1), high.sent(Sync)[0], 0.0))
    high.note(high.cluster.on_stream_message(device_id(0), low.sent(Sync)[0], 0.0))
    assert low.cluster.alive == high.cluster.alive == (device_id(0), device_id(1))


def test_push_pull_is_periodic() -> None:
    """Tables are compared now and then without any news."""
    stage = Stage(1, 2)
    stage.wait(40.0, heard=(1, 2))
    assert len(stage.sent(Digest)) >= 2


def test_tombstones_last_a_day() -> None:
    """A dead row is kept for 24 hours, then forgotten."""
    stage = Stage(1, 2)
    stage.tell(1, Dead(device_id(2), 1000, device_id(1)))
    stage.suspend(23.9 * 3600)
    assert device_id(2) in stage.cluster.members
    stage.suspend(0.2 * 3600)
    assert device_id(2) not in stage.cluster.members
    assert any(change.after is None for change in stage.all(MemberChanged))


def test_the_dead_of_long_ago_make_room_for_the_living(monkeypatch: pytest.MonkeyPatch) -> None:
    """A full table drops its oldest tombstone for a newcomer, and refuses one only where all in it live."""
    monkeypatch.setattr(roster, "ROWS_MAX", 4)
    stage = Stage(1, 2, 3)
    stage.tell(1, Alive(member(4)))
    assert device_id(4) not in stage.cluster.members
    for dead in (3, 2):
        stage.tell(1, Dead(device_id(dead), 1000, device_id(1)))
        stage.wait(1.0, heard=(1,))
    stage.tell(1, Alive(member(4)))
    assert sorted(stage.cluster.members) == [device_id(number) for number in (0, 1, 2, 4)]


def test_load_is_last_writer_wins() -> None:
    """A lower version, or another incarnation's load, changes nothing."""
    stage = Stage(1, 2)
    stage.tell(2, LoadRow(device_id(1), 1000, Load(queue_depth=3, version=5)))
    stage.tell(2, LoadRow(device_id(1), 1000, Load(queue_depth=9, version=4)))
    stage.tell(2, LoadRow(device_id(1), 999, Load(queue_depth=9, version=6)))
    assert stage.row(1).load == Load(queue_depth=3, version=5)


def test_capability_is_last_writer_wins() -> None:
    """A newer version of the row replaces it without touching its state; an older one does not."""
    stage = Stage(1, 2)
    stage.tell(1, _suspicion(2, 1))
    newer = advanced(member(2), version=2, capability=Capability(cores=8))
    stage.tell(1, Alive(newer))
    stage.tell(1, Alive(advanced(newer, version=1, capability=Capability(cores=2))))
    assert stage.row(2).capability.cores == 8
    assert stage.state(2) is SUSPECT


def test_own_rows_are_published() -> None:
    """Capability is told at once, load with the next probes."""
    stage = Stage(1, 2)
    stage.note(stage.cluster.set_capability(Capability(cores=6), 0.0))
    stage.note(stage.cluster.set_load(Load(queue_depth=2), 0.0))
    stage.wait(3.0, heard=(1, 2))
    assert any(rumour.member.capability.cores == 6 for rumour in stage.rumours(Alive))
    assert any(rumour.load.queue_depth == 2 for rumour in stage.rumours(LoadRow))


def test_in_a_large_mesh_load_goes_to_the_leader_only() -> None:
    """Above 64 members load is no gossip: one datagram to the leader carries it."""
    stage = Stage(*range(1, 80))
    stage.follow(7)
    stage.wait(1.0, heard=tuple(range(1, 80)))
    stage.effects.clear()
    stage.note(stage.cluster.set_load(Load(queue_depth=2), stage.now))
    stage.wait(1.0, heard=tuple(range(1, 80)))
    receivers = {
        stage.number(effect.to)
        for effect in stage.all(SendDatagram)
        if any(isinstance(rumour, LoadRow) for rumour in effect.message.rumours)
    }
    assert receivers == {7}


def test_two_processes_with_one_key_are_noticed() -> None:
    """Overtaken again and again by another boot of ourselves, a device says that its key is not its own."""
    stage = Stage(1)
    for incarnation in (5000, 6000, 7000):
        stage.tell(1, Alive(member(0, 9, incarnation)))
    assert stage.all(IdentityClash) == 2 * [IdentityClash(member(0, 9).boot_id, member(0, 9).address)]
    assert stage.cluster.me.incarnation == 7001


def test_a_clock_that_went_back_is_outbid() -> None:
    """A new life that finds a higher incarnation of its old one exceeds it, without an alarm."""
    stage = Stage(1)
    stage.tell(1, Alive(member(0, 9, 5000)))
    assert stage.cluster.me.incarnation == 5001
    assert not stage.all(IdentityClash)


def test_the_members_are_a_frozen_snapshot() -> None:
    """A snapshot taken before a change still shows what was."""
    stage = Stage(1)
    before = stage.cluster.members
    stage.hear(1, Leave(1000))
    assert before[device_id(1)].state is ALIVE
    assert stage.state(1) is LEFT
    with pytest.raises(TypeError):
        before[device_id(1)] = member(1)  # type: ignore[index]


def test_a_stranger_is_no_member() -> None:
    """A datagram of an unknown device without its row changes nothing and gets no answer."""
    stage = Stage(1)
    assert stage.hear(9, Ping(1, stage.cluster.me.boot_id)) == []
    assert device_id(9) not in stage.cluster.members


def test_tables_that_differ_are_compared_again_soon_in_a_large_mesh() -> None:
    """After an exchange that found a difference the next comes in seconds; where all is equal, in a minute."""
    stage = Stage(*range(1, 60))
    stage.wait(70.0, heard=tuple(range(1, 60)))
    stage.effects.clear()
    stage.wait(40.0, heard=tuple(range(1, 60)))
    assert len(stage.sent(Digest)) <= 1
    stage.effects.clear()
    for _ in range(60):
        stage.note(stage.cluster.on_stream_message(device_id(1), Digest((7,) * BUCKETS), stage.now))
        stage.wait(1.0, heard=tuple(range(1, 60)))
    assert len(stage.sent(Digest)) >= 5
