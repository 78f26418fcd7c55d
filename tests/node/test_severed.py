"""Pairs that cannot reach each other: who tells whom, what a leader makes of it, what it does to a plan."""

from __future__ import annotations

from meshnn.cluster.member import Address, BootId, DeviceId, Member
from meshnn.node.contacts import CUT_OFF_S, Contacts
from meshnn.node.effects import Send
from meshnn.node.messages import CutOff
from meshnn.node.severed import Severed
from meshnn.node.view import View, crossings
from tests.plan.cards import Op, card, chain, device, pipeline

A, B, C, D = (DeviceId(letter) for letter in "abcd")


def test_the_leader_is_told_once_and_again_when_it_changes() -> None:
    """Nothing to tell is not told; a change is, and that it is over."""
    severed = Severed(A)
    assert severed.review(B, ()) == []
    assert severed.review(None, (C,)) == []
    assert severed.review(B, (C,)) == [Send(B, CutOff((C,)))]
    assert severed.review(B, (C,)) == []
    assert severed.review(B, (C, D)) == [Send(B, CutOff((C, D)))]
    assert severed.review(B, ()) == [Send(B, CutOff(()))]


def test_a_new_leader_and_a_new_link_to_it_hear_it_again() -> None:
    """What was told over a link that broke may be lost."""
    severed = Severed(A)
    severed.review(B, (C,))
    severed.on_linked(D)
    assert severed.review(B, (C,)) == []
    severed.on_linked(B)
    assert severed.review(B, (C,)) == [Send(B, CutOff((C,)))]
    assert severed.review(D, (C,)) == [Send(D, CutOff((C,)))]


def test_one_word_of_either_is_enough_and_only_the_living_count() -> None:
    """A pair is told once, whoever says it; of the dead nothing is believed; a new link wipes the row."""
    severed = Severed(D)
    severed.on_cut_off(B, CutOff((A,)))
    severed.on_cut_off(A, CutOff((B, C)))
    assert severed.pairs({A, B, C}) == {(A, B), (A, C)}
    assert severed.pairs({A, C}) == {(A, C)}
    severed.on_linked(A)
    assert severed.pairs({A, B, C}) == {(A, B)}
    severed.on_cut_off(B, CutOff(()))
    assert severed.pairs({A, B, C}) == frozenset()


def test_a_device_that_cannot_be_linked_for_a_while_is_cut_off() -> None:
    """A link that comes back at once is none; one that is up ends it; the clock does not start anew with each dial."""
    contacts = Contacts(A)
    there = [Member(B, BootId("0" * 16), "b", Address("h", 1), 0, 1)]
    contacts.review(there, 0.0)
    contacts.review(there, CUT_OFF_S - 0.1)
    assert contacts.cut_off == frozenset()
    assert contacts.deadline is not None
    contacts.review(there, CUT_OFF_S)
    assert contacts.cut_off == {B}
    contacts.on_linked(B, BootId("0" * 16))
    contacts.review(there, CUT_OFF_S + 1)
    assert contacts.cut_off == frozenset()


def test_a_plan_is_severed_where_it_moves_something_between_the_pair() -> None:
    """Neighbours and skips count; devices of one plan that hand nothing on to each other do not."""
    a, b, c = device("a"), device("b"), device("c")
    plain = chain(3)
    plan = pipeline(plain, [(1, a), (1, b), (1, c)])
    assert crossings(plain, plan) == {(A, B), (B, C)}
    skipping = card([Op(), Op(), Op(reads=(-1, 1))])
    assert crossings(skipping, pipeline(skipping, [(1, a), (1, b), (1, c)])) == {(A, B), (B, C), (A, C)}
    members = {d: Member(d, BootId("b" + d), d, Address("h", 1), 0, 1) for d in (A, B, C)}
    assert View(members, severed=frozenset({(A, C)})).runs(plan, plain)
    assert not View(members, severed=frozenset({(A, B)})).runs(plan, plain)
    assert not View({A: members[A]}).runs(plan, plain)
