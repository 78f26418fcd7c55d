"""Two holders for every model: who is asked, who is asked instead, and what is remembered of it."""

from __future__ import annotations

from meshnn.cluster.member import DeviceId
from meshnn.node.catalogue import Catalogue
from meshnn.node.copies import REFUSAL_S, Copies, patience_s
from meshnn.node.effects import Effect, Send
from meshnn.node.messages import Copy, Holdings
from tests.node.cores import device_id, model

A, B, C = (device_id(letter) for letter in "abc")
CAT = model("cat")
DISKS = {A: 10**9, B: 10**9, C: 2 * 10**9}


def held_by_a() -> Catalogue:
    """The catalogue of A, which holds the one model; B and C are linked."""
    made = Catalogue(A, (), {})
    made.bind("cat", CAT, replace=False)
    made.on_linked(B)
    made.on_linked(C)
    return made


def asked(effects: list[Effect]) -> list[DeviceId]:
    """Who is asked for a copy."""
    return [e.to for e in effects if isinstance(e, Send) and isinstance(e.message, Copy)]


def test_the_device_with_most_room_is_asked_once() -> None:
    """One holder: the emptiest disk is asked for a copy, and not again while it fetches."""
    copies, names = Copies(), held_by_a()
    assert asked(copies.review(names, DISKS, 0.0)) == [C]
    assert asked(copies.review(names, DISKS, 1.0)) == []


def test_two_holders_are_enough_and_the_death_of_one_is_repaired() -> None:
    """With two holders nobody is asked; when one is gone, a third is."""
    copies, names = Copies(), held_by_a()
    names.on_holdings(C, Holdings(1, (CAT.digest,), ()))
    assert asked(copies.review(names, DISKS, 0.0)) == []
    assert asked(copies.review(names, {A: 10**9, B: 10**9}, 1.0)) == [B]


def test_without_a_holder_nobody_is_asked() -> None:
    """What nobody here holds cannot be copied."""
    assert asked(Copies().review(held_by_a(), {B: 10**9, C: 10**9}, 0.0)) == []


def test_a_full_disk_is_not_asked() -> None:
    """Who has no room is left alone."""
    copies, names = Copies(), held_by_a()
    disks = {A: 10**9, B: 10, C: 10}
    assert asked(copies.review(names, disks, 0.0)) == []
    assert not copies.possible(CAT.digest, CAT.size_bytes, (A,), disks)


def test_who_refused_is_not_asked_again_for_a_while() -> None:
    """After a refusal the next device is asked; when its time is over the first one may be asked again."""
    copies, names = Copies(), held_by_a()
    copies.review(names, DISKS, 0.0)
    copies.on_refused(C, CAT.digest, "disk full", 1.0)
    assert asked(copies.review(names, DISKS, 1.0)) == [B]
    copies.on_refused(B, CAT.digest, "disk full", 2.0)
    assert asked(copies.review(names, DISKS, 2.0)) == []
    assert copies.deadline == 1.0 + REFUSAL_S
    assert asked(copies.review(names, DISKS, 1.0 + REFUSAL_S)) == [C]


def test_who_does_not_deliver_in_time_is_passed_over() -> None:
    """After its patience another device is asked, not the same one again; large files have longer."""
    copies, names = Copies(), held_by_a()
    copies.review(names, DISKS, 0.0)
    late = patience_s(CAT.size_bytes)
    assert copies.deadline == late
    assert asked(copies.review(names, DISKS, late)) == [B]
    assert patience_s(550_000_000) > 500


def test_a_new_link_is_asked_again() -> None:
    """A request that may have been lost with the link is repeated."""
    copies, names = Copies(), held_by_a()
    copies.review(names, DISKS, 0.0)
    copies.on_linked(C)
    assert asked(copies.review(names, DISKS, 1.0)) == [C]


def test_a_removed_model_leaves_no_deadline() -> None:
    """What was asked or refused for a model that is gone wakes nobody up."""
    copies, names = Copies(), held_by_a()
    copies.review(names, DISKS, 0.0)
    copies.on_refused(B, CAT.digest, "no", 0.0)
    names.remove("cat")
    copies.review(names, DISKS, 1.0)
    assert copies.deadline is None
