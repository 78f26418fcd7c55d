"""Directed tests of the rules R1 to R7 that we added to SWIM and Lifeguard."""

from __future__ import annotations

from meshnn.cluster.effects import Dial, SendDatagram
from meshnn.cluster.member import Address, MemberState
from meshnn.cluster.messages import (
    Alive,
    Dead,
    Gossip,
    LeadAck,
    Ping,
    Suspect,
)
from tests.cluster.stage import Stage
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


def test_r1_who_hears_nobody_accuses_nobody() -> None:
    """Three intervals of silence from all: the fault is ours, and nobody is buried for the next eight seconds."""
    stage = Stage(1, 2, 3, 4)
    stage.tell(1, _suspicion(2, 1))
    stage.wait(10.5)
    assert not any(stage.state(peer) is DEAD for peer in (1, 2, 3, 4))


def test_r1_no_new_suspects_while_isolated() -> None:
    """Probes that fail in an isolation accuse nobody: the suspects are those from before."""
    stage = Stage(1, 2, 3, 4, 5)
    stage.follow(1)
    stage.wait(3.6)
    before = [stage.state(peer) for peer in range(1, 6)]
    stage.wait(6.0)
    assert [stage.state(peer) for peer in range(1, 6)] == before
    assert ALIVE in before


def test_r1_timers_start_anew_with_the_first_datagram() -> None:
    """After an isolation each suspect has its whole time again."""
    stage = Stage(1, 2, 3)
    stage.tell(1, _suspicion(2, 1))
    stage.wait(7.5)
    stage.wait(7.5, heard=(1, 3))
    assert stage.state(2) is SUSPECT
    stage.wait(2.0, heard=(1, 3))
    assert stage.state(2) is DEAD


def test_r1_ends_so_that_a_lone_device_serves() -> None:
    """A device cut off for longer goes on alone, leads itself, and accuses nobody in public."""
    stage = Stage(1, 2, 3)
    stage.wait(14.0)
    stage.persist()
    assert stage.cluster.alive == (device_id(0),)
    assert stage.cluster.leader == device_id(0)
    assert not stage.rumours(Dead, 1)


def test_r2_a_sleeper_judges_nobody() -> None:
    """After a stall every suspicion starts anew, however long the stall was."""
    stage = Stage(1, 2, 3)
    stage.tell(1, _suspicion(2, 1))
    stage.wait(5.0, heard=(1, 3))
    stage.suspend(60.0)
    stage.wait(7.5, heard=(1, 3))
    assert stage.state(2) is SUSPECT


def test_r2_a_probe_that_slept_through_is_no_failure() -> None:
    """The target of a probe under way during a stall is not accused."""
    stage = Stage(1, 2, 3)
    _probe_of(stage, 1)
    stage.suspend(5.0)
    assert [stage.state(peer) for peer in (1, 2, 3)] == [ALIVE] * 3


def test_r2_a_suspicion_cut_short_by_late_confirmers_is_no_stall() -> None:
    """Confirmed when the shortest time is over already, it runs out then: nothing starts anew, a leader stays one."""
    stage = Stage(1, 2, 3, 4, 5)
    stage.win(1, 3, 4, 5)
    term = stage.cluster.term
    stage.tell(1, _suspicion(2, 1))
    stage.wait(2.0, heard=(1, 3, 4, 5))
    for _ in range(8):
        for peer in (1, 3, 4, 5):
            stage.hear(peer, LeadAck(0, True, term))
        stage.wait(1.0, heard=(1, 3, 4, 5))
    for accuser in (3, 4):
        stage.tell(accuser, _suspicion(2, accuser))
    stage.wait(1.2, heard=(1, 3, 4, 5))
    assert stage.state(2) is DEAD
    assert stage.cluster.leader == device_id(0)


def test_r2_is_noticed_at_any_door() -> None:
    """The first event after a stall, whatever it is, reveals the overdue deadline."""
    stage = Stage(1, 2, 3)
    stage.tell(1, _suspicion(2, 1))
    stage.wait(8.1, heard=(1, 3))
    stage.now += 30.0
    stage.hear(1, Gossip())
    stage.suspend(0.0)
    assert stage.state(2) is SUSPECT


def test_r4_whom_we_hold_suspect_is_told_at_once() -> None:
    """Any datagram of a suspect is answered with the accusation, so that it can refute."""
    stage = Stage(1, 2)
    stage.tell(1, _suspicion(2, 1))
    stage.now += 0.3
    stage.effects.clear()
    stage.hear(2, Gossip())
    assert stage.rumours(Suspect, 2)[0] == _suspicion(2, 0)


def test_r4_the_dead_who_speak_are_told_too() -> None:
    """A buried device that is heard learns of its burial."""
    stage = Stage(1, 2)
    stage.tell(1, Dead(device_id(2), 1000, device_id(1)))
    stage.now += 0.3
    stage.effects.clear()
    stage.hear(2, Gossip())
    assert Dead(device_id(2), 1000, device_id(0)) in stage.rumours(Dead, 2)


def test_r4_echoes_are_limited() -> None:
    """A flood from a suspect is answered ten times a second at most."""
    stage = Stage(1, 2)
    stage.tell(1, _suspicion(2, 1))
    stage.effects.clear()
    for _ in range(100):
        stage.now += 0.002
        stage.hear(2, Gossip())
    assert len(stage.sent(Gossip, 2)) <= 3


def test_r5_the_dead_are_tried_again() -> None:
    """A buried device is dialled and pinged now and then, with the accusation it may refute."""
    stage = Stage(1, 2)
    stage.tell(1, Dead(device_id(2), 1000, device_id(1)))
    stage.wait(45.0, heard=(1,))
    assert sum(dial == Dial(member(2).address, device_id(2)) for dial in stage.all(Dial)) >= 4
    assert Dead(device_id(2), 1000, device_id(0)) in stage.rumours(Dead, 2)


def test_r5_a_known_address_outside_the_mesh_is_tried_again() -> None:
    """An address seen once is never forgotten."""
    stage = Stage(1)
    stage.note(stage.cluster.on_seen(Address("10.9.9.9", 7000), 0.0))
    stage.wait(45.0, heard=(1,))
    assert stage.all(Dial).count(Dial(Address("10.9.9.9", 7000))) >= 3


def test_r5_a_change_of_network_retries_everything() -> None:
    """With a new interface the dead and the strangers are all dialled at once, and the new address is told."""
    stage = Stage(1, 2)
    stage.tell(1, Dead(device_id(2), 1000, device_id(1)))
    stage.effects.clear()
    stage.note(stage.cluster.on_interfaces(Address("10.7.7.7", 7000), stage.now))
    assert Dial(member(2).address, device_id(2)) in stage.all(Dial)
    stage.wait(0.5, heard=(1,))
    assert any(rumour.member.address.host == "10.7.7.7" for rumour in stage.rumours(Alive))


def test_a_seen_address_is_dialled_unless_a_member_is_there() -> None:
    """A hint by mDNS says to look; whoever is a member needs no looking for."""
    stage = Stage(1)
    assert stage.cluster.on_seen(member(1).address, 0.1) == []
    assert stage.cluster.on_seen(member(2).address, 0.1) == [Dial(member(2).address)]
    assert stage.cluster.on_seen(member(2).address, 0.2) == []


def test_r6_a_suspect_that_was_heard_is_not_buried() -> None:
    """Whoever spoke to us since the accusation is accused again, never buried."""
    stage = Stage(1, 2, 3)
    stage.tell(1, _suspicion(2, 1))
    stage.wait(60.0, heard=(1, 2, 3))
    assert stage.state(2) is SUSPECT
    assert _suspicion(2, 0) in stage.rumours(Suspect, 1)


def test_r6_an_answer_in_the_grace_saves() -> None:
    """The last word before the burial is a question, and an answer to it counts."""
    stage = Stage(1, 2, 3)
    stage.tell(1, _suspicion(2, 1))
    stage.wait(8.3, heard=(1, 3))
    stage.hear(2, Gossip())
    stage.wait(1.5, heard=(1, 3))
    assert stage.state(2) is SUSPECT


def test_r7_two_observers_of_a_refusal_bury_at_once() -> None:
    """Its host told us and another member that the process is gone: no waiting."""
    stage = Stage(1, 2, 3)
    stage.now = 0.1
    stage.note(stage.cluster.on_evidence(device_id(2), "refused", stage.now))
    assert stage.state(2) is SUSPECT
    stage.tell(1, _suspicion(2, 1, refused=True))
    assert stage.state(2) is DEAD


def test_r7_one_observer_waits_the_shortest_time() -> None:
    """One refusal alone: the shortest suspicion, even where confirmers are wanted."""
    stage = Stage(1, 2, 3, 4, 5)
    stage.now = 0.1
    stage.note(stage.cluster.on_evidence(device_id(2), "refused", stage.now))
    stage.wait(6.9, heard=(1, 3, 4, 5))
    assert stage.state(2) is SUSPECT
    stage.wait(0.5, heard=(1, 3, 4, 5))
    assert stage.state(2) is DEAD


def test_r7_the_only_other_member_is_buried_on_its_hosts_word() -> None:
    """In a mesh of two there is no second observer: one refusal, the shortest time, and a last word."""
    stage = Stage(1)
    stage.now = 0.1
    stage.note(stage.cluster.on_evidence(device_id(1), "refused", stage.now))
    stage.wait(9.5)
    assert stage.state(1) is DEAD


def test_r7_plain_accusations_are_no_observers() -> None:
    """Silence, however many report it, never buries at once."""
    stage = Stage(1, 2, 3, 4, 5)
    for accuser in (1, 3, 4):
        stage.tell(accuser, _suspicion(2, accuser))
    assert stage.state(2) is SUSPECT


def test_r7_what_was_under_way_at_the_death_delays_by_a_second_only() -> None:
    """A datagram that arrives after the refusal does not undo two hosts' word; silence after it settles the matter."""
    stage = Stage(1, 2, 3)
    stage.now = 0.1
    stage.note(stage.cluster.on_evidence(device_id(2), "refused", stage.now))
    stage.now = 0.12
    stage.hear(2, Gossip())
    stage.tell(1, _suspicion(2, 1, refused=True))
    assert stage.state(2) is SUSPECT
    stage.wait(1.2, heard=(1, 3))
    assert stage.state(2) is DEAD


def test_a_broken_link_counts_only_when_silence_follows() -> None:
    """A reset may be our own doing: it is redialled, and becomes evidence after a second without a word."""
    stage = Stage(1, 2, 3)
    stage.now = 0.1
    stage.note(stage.cluster.on_unlinked(device_id(2), "reset", stage.now))
    assert Dial(member(2).address, device_id(2)) in stage.all(Dial)
    assert stage.state(2) is ALIVE
    stage.wait(1.1, heard=(1, 3))
    assert stage.state(2) is SUSPECT
    assert _suspicion(2, 0, refused=True) in stage.rumours(Suspect)


def test_a_broken_link_to_a_living_device_is_nothing() -> None:
    """Heard again within the second, the device was never in question."""
    stage = Stage(1, 2, 3)
    stage.now = 0.1
    stage.note(stage.cluster.on_unlinked(device_id(2), "reset", stage.now))
    stage.wait(3.0, heard=(1, 2, 3))
    assert not any(rumour.refused for rumour in stage.rumours(Suspect))


def test_silence_on_the_data_plane_is_probed_at_once() -> None:
    """Unanswered data pings make the member the next one probed, not a suspect."""
    peers = (1, 2, 3, 4)
    stage = Stage(*peers)
    stage.follow(1)
    stage.wait(2.0, peers)
    last = [effect for effect in stage.all(SendDatagram) if isinstance(effect.message, Ping)][-1]
    quiet = next(peer for peer in peers if device_id(peer) != last.to)
    stage.effects.clear()
    stage.note(stage.cluster.on_evidence(device_id(quiet), "silent", stage.now))
    assert stage.state(quiet) is ALIVE
    stage.wait(1.1, peers)
    assert next(effect.to for effect in stage.all(SendDatagram) if isinstance(effect.message, Ping)) == device_id(quiet)
