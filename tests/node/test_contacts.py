"""Whom to dial, and whom plans may count on."""

from __future__ import annotations

import msgspec
import pytest

from meshnn.cluster.member import Address, BootId, Member
from meshnn.node.contacts import BACKOFF_MAX_S, CUT_OFF_S, GRACE_S, POLITE_S, Contacts, remembered
from tests.node.cores import device_id

A, B, C = (device_id(letter) for letter in "abc")
LIFE, NEXT_LIFE = BootId("0" * 16), BootId("1" * 16)


def member(letter: str, boot: BootId = LIFE) -> Member:
    """A member that lives."""
    return Member(device_id(letter), boot, letter, Address("10.0.0.1", 7000 + ord(letter)), 0, 1)


def test_a_linked_member_is_reachable_only_in_the_life_of_its_link() -> None:
    """A row of an earlier life, not yet replaced by gossip, is not reachable over the link of the new one."""
    contacts = Contacts(A)
    contacts.on_linked(B, NEXT_LIFE)
    assert contacts.reachable(member("b", NEXT_LIFE), 0.0)
    assert not contacts.reachable(member("b", LIFE), 0.0)
    assert contacts.reachable(member("a"), 0.0)
    assert not contacts.reachable(member("c"), 0.0)


@pytest.mark.parametrize(
    ("evidence", "grace_s"), [("reset", 0), ("refused", 0), ("closed", GRACE_S), ("silent", GRACE_S)]
)
def test_a_host_that_says_so_gets_no_grace(evidence: str, grace_s: float) -> None:
    """A reset or a refusal counts at once; a link that closed or fell silent counts after a second, in that life."""
    contacts = Contacts(A)
    contacts.on_linked(B, LIFE)
    contacts.on_unlinked(B, evidence, 10.0)
    assert contacts.reachable(member("b"), 10.0) == (grace_s > 0)
    assert not contacts.reachable(member("b", NEXT_LIFE), 10.0)
    assert not contacts.reachable(member("b"), 10.0 + grace_s)


def test_the_deadline_of_a_grace_is_met_at_its_deadline() -> None:
    """A review at the deadline leaves no deadline that is not later, whatever the clock rounds to."""
    for step in range(200):
        contacts, now = Contacts(A), 100 + step * 0.1
        contacts.on_linked(B, LIFE)
        contacts.on_unlinked(B, "closed", now)
        assert contacts.deadline is not None
        contacts.review([], contacts.deadline)
        assert contacts.deadline is None


def test_the_lesser_id_dials_at_once_and_the_greater_waits() -> None:
    """Of two newcomers one dials first; the other only where no link has come."""
    lesser, greater = Contacts(A), Contacts(B)
    assert [dial.address for dial in lesser.review([member("b")], 0.0)] == [member("b").address]
    assert greater.review([member("a")], 0.0) == []
    assert greater.deadline == POLITE_S
    assert len(greater.review([member("a")], POLITE_S)) == 1


def test_dials_back_off_and_stop_with_the_link() -> None:
    """The waits double up to their bound; a link, or the member's death, ends them."""
    contacts, now, waits = Contacts(A), 0.0, []
    for _ in range(6):
        assert len(contacts.review([member("b")], now)) == 1
        assert contacts.deadline is not None
        waits.append(contacts.deadline - now)
        now = contacts.deadline
    assert waits == [1.0, 2.0, 4.0, 8.0, BACKOFF_MAX_S, BACKOFF_MAX_S]
    contacts.on_linked(B, LIFE)
    assert (contacts.review([member("b")], now), contacts.deadline) == ([], None)
    contacts.on_unlinked(B, "reset", now)
    contacts.review([member("b")], now)
    contacts.review([], now)
    assert contacts.deadline is None


def test_a_new_address_is_dialled_at_once() -> None:
    """A device that came back elsewhere does not wait for the back-off of where it was."""
    contacts = Contacts(A)
    contacts.review([member("b")], 0.0)
    moved = msgspec.structs.replace(member("b"), address=Address("10.0.0.9", 7))
    assert [dial.address for dial in contacts.review([moved], 0.1)] == [moved.address]


def test_after_a_change_of_network_nobody_waits_for_an_old_back_off() -> None:
    """Whoever is not linked is dialled at once, however often that failed on the old network."""
    contacts, now = Contacts(A), 0.0
    for _ in range(8):
        contacts.review([member("b")], now)
        assert contacts.deadline is not None
        now = contacts.deadline
    assert contacts.review([member("b")], now - 5.0) == []
    contacts.on_network()
    assert [dial.address for dial in contacts.review([member("b")], now - 5.0)] == [member("b").address]


def test_who_is_away_is_remembered_behind_who_is_here() -> None:
    """The record keeps those met before, within its bound: they may be all there is at the next start."""
    here, away = Address("10.0.0.1", 1), Address("10.0.0.2", 2)
    assert remembered([here], [away, here], 64) == (here, away)
    assert remembered([], [away], 64) == (away,)
    assert remembered([here], [away], 1) == (here,)


def test_who_had_no_link_at_all_accuses_nobody() -> None:
    """Whom a device could not reach while its own cable was out is no pair that is cut off; it is dialled at once."""
    contacts, now = Contacts(A), 0.0
    others = [member("b"), member("c")]
    while now < CUT_OFF_S + 4.0:
        contacts.review(others, now)
        assert contacts.deadline is not None
        now = contacts.deadline
    assert contacts.cut_off == {B, C}
    contacts.on_linked(B, LIFE)
    assert [dial.address for dial in contacts.review(others, now - 0.5)] == [member("c").address]
    assert contacts.cut_off == frozenset()
    contacts.review(others, now - 0.5 + CUT_OFF_S)
    assert contacts.cut_off == {C}
