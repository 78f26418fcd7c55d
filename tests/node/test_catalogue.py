"""The catalogue: names that merge to one truth, cards that reach everybody, files nobody means any more."""

from __future__ import annotations

import itertools

import msgspec
import pytest

from meshnn.cluster.member import DeviceId
from meshnn.errors import ModelConflictError, ModelError, UnknownModelError
from meshnn.graph.card import Card
from meshnn.node.catalogue import CARDS_MAX, NAMES_MAX, Catalogue
from meshnn.node.effects import DropFile, Effect, Fetch, SaveNames, Send
from meshnn.node.messages import Holdings, NameRecord, Names
from tests.node.cores import device_id, model

A, B, C = (device_id(letter) for letter in "abc")
CAT, LYNX = model("cat", "1"), model("cat", "2")


def catalogue(me: DeviceId = A, *records: NameRecord) -> Catalogue:
    """A catalogue linked with B and C."""
    made = Catalogue(me, records, {})
    for other in {A, B, C} - {me}:
        made.on_linked(other)
    return made


def record(
    name: str = "cat", card: Card = CAT, stamp: int = 1, device: DeviceId = B, removed: bool = False
) -> NameRecord:
    """A record as a peer would send it."""
    return NameRecord(name, card.digest, card.size_bytes, stamp, device, removed)


def sent(effects: list[Effect], kind: type[msgspec.Struct]) -> list[tuple[DeviceId, msgspec.Struct]]:
    """The messages of one kind, with whom they are for."""
    return [(e.to, e.message) for e in effects if isinstance(e, Send) and isinstance(e.message, kind)]


def test_a_name_reaches_everybody_and_the_disk() -> None:
    """Naming a model tells every linked device, and is saved."""
    effects = catalogue().bind("cat", CAT, replace=False)
    assert [to for to, _ in sent(effects, Names)] == [B, C]
    assert any(isinstance(effect, SaveNames) for effect in effects)


def test_a_name_bound_to_another_file_is_refused_without_replace() -> None:
    """Another digest under a known name needs --replace; the same digest is welcome again."""
    names = catalogue()
    names.bind("cat", CAT, replace=False)
    names.bind("cat", CAT, replace=False)
    with pytest.raises(ModelConflictError, match="--replace"):
        names.bind("cat", LYNX, replace=False)
    names.bind("cat", LYNX, replace=True)
    assert names.current("cat") == LYNX.digest


@pytest.mark.parametrize("name", ["", "a" * 65, "a/b", "a@1", "a\nb"])
def test_improper_names_are_refused_here_and_from_peers(name: str) -> None:
    """A name that cannot be shown or stored is taken neither from a person nor from a peer."""
    names = catalogue()
    with pytest.raises(ModelError):
        names.bind(name, CAT, replace=False)
    assert names.on_names(B, Names((record(name),))) == []


def test_records_merge_to_the_same_in_every_order() -> None:
    """Whatever the order of arrival, equal stamps and lost memories included, all end with the same record."""
    rows = [record(), record(card=LYNX), record(device=C), record(stamp=2), record(stamp=2, removed=True)]
    ends = set()
    for order in itertools.permutations(rows):
        names = catalogue()
        for row in order:
            names.on_names(B, Names((row,)))
        ends.add((names.current("cat"), names.gone("cat")))
    assert ends == {(None, True)}


def test_the_newest_of_one_message_holds() -> None:
    """Two records of one name in one message: the older one, though last, does not win."""
    names = catalogue()
    names.on_names(B, Names((record(card=LYNX, stamp=3), record(stamp=2))))
    assert names.current("cat") == LYNX.digest


def test_news_goes_on_to_the_others_and_no_further() -> None:
    """A record that is new here goes to everyone but its sender; told again, it goes nowhere."""
    names = catalogue()
    assert [to for to, _ in sent(names.on_names(B, Names((record(),))), Names)] == [C]
    assert names.on_names(C, Names((record(),))) == []


def test_a_removed_name_makes_room_for_a_new_one() -> None:
    """Full of removed names, a mesh still takes new ones, here and from peers; full of live ones it says so."""
    names = catalogue()
    names.on_names(B, Names(tuple(record(f"m{n}", removed=True) for n in range(NAMES_MAX))))
    names.bind("cat", CAT, replace=False)
    names.on_names(B, Names((record("dog"),)))
    assert [row.name for row in names.records] == ["cat", "dog"]
    full = catalogue(A, *(record(f"m{n}") for n in range(NAMES_MAX)))
    with pytest.raises(ModelError, match="at most"):
        full.bind("cat", CAT, replace=False)
    assert full.on_names(B, Names((record("cat"),))) == []


def test_a_removed_name_nobody_here_knew_is_no_news_when_full() -> None:
    """Two full catalogues do not pass old tombstones to and fro."""
    names = catalogue(A, *(record(f"m{n}", removed=True) for n in range(NAMES_MAX)))
    assert names.on_names(B, Names((record("old", removed=True),))) == []


def test_the_card_is_fetched_from_a_holder_once_and_again_after_a_failure() -> None:
    """A name without its card asks a device that holds the file; a failed fetch is repeated, not doubled."""
    names = catalogue()
    assert not any(isinstance(e, Fetch) for e in names.on_names(B, Names((record(),))))
    wanted = [e for e in names.on_holdings(C, Holdings(1, (CAT.digest,), ())) if isinstance(e, Fetch)]
    assert [(fetch.kind, fetch.key, fetch.holders) for fetch in wanted] == [("card", CAT.digest, (C,))]
    assert names.retry_cards() == []
    names.on_card_failed(CAT.digest)
    assert names.retry_cards() == wanted


def test_a_card_of_another_model_is_refused() -> None:
    """A peer cannot pass one model's card for another's."""
    names = catalogue()
    names.on_card(CAT.digest, LYNX)
    assert names.card(CAT.digest) is None


def test_cards_are_bounded() -> None:
    """Cards of models without a name are forgotten, oldest first; a named one stays."""
    names = catalogue(A, record())
    names.on_card(CAT.digest, CAT)
    others = [msgspec.structs.replace(CAT, digest=f"{n:064x}") for n in range(CARDS_MAX + 5)]
    for card in others:
        names.on_card(card.digest, card)
    assert names.card(CAT.digest) is not None
    assert names.card(others[0].digest) is None
    assert names.card(others[-1].digest) is not None


def test_holdings_of_a_device_without_a_link_do_not_count() -> None:
    """A holder whose link broke is no holder until it says so again; an old row does not replace a newer one."""
    names = catalogue()
    names.on_holdings(B, Holdings(2, (CAT.digest,), ()))
    names.on_holdings(B, Holdings(1, (), ()))
    assert names.holders(CAT.digest) == (B,)
    names.on_unlinked(B)
    assert names.holders(CAT.digest) == ()


def test_a_restarted_device_is_believed_from_its_first_word() -> None:
    """A new link starts the row's versions anew."""
    names = catalogue()
    names.on_holdings(B, Holdings(9, (), ()))
    names.on_linked(B)
    names.on_holdings(B, Holdings(1, (CAT.digest,), ()))
    assert names.holders(CAT.digest) == (B,)


def test_a_member_knows_a_name_only_in_the_same_meaning() -> None:
    """A peer that holds another digest under the same name and stamp does not know ours."""
    names, other = catalogue(A), catalogue(B)
    names.bind("cat", CAT, replace=False)
    other.bind("cat", LYNX, replace=False)
    (row,) = [message for to, message in sent(other.on_linked(A), Holdings) if to == A]
    assert isinstance(row, Holdings)
    names.on_holdings(B, row)
    assert not names.knows(B, names.record("cat"))
    assert names.knows(A, names.record("cat"))


@pytest.mark.parametrize("way", ["remove", "replace", "told"])
def test_a_file_that_no_name_means_any_more_is_dropped(way: str) -> None:
    """Removed or replaced, here or by a peer, the old file leaves the disk; a file of another name stays."""
    names = catalogue()
    names.bind("cat", CAT, replace=False)
    names.bind("dog", LYNX, replace=False)
    match way:
        case "remove":
            effects = names.remove("cat")
        case "replace":
            effects = names.bind("cat", LYNX, replace=True)
        case _:
            effects = names.on_names(B, Names((record(stamp=2, removed=True),)))
    assert [e for e in effects if isinstance(e, DropFile)] == [DropFile("model", CAT.digest)]
    assert names.held == {LYNX.digest}


def test_a_file_whose_name_has_not_arrived_yet_stays() -> None:
    """News of other names does not cost a device the file it holds from an earlier life."""
    names = Catalogue(A, (), {CAT.digest: CAT})
    effects = names.on_names(B, Names((record("dog", LYNX), record("emu", LYNX, removed=True))))
    assert not any(isinstance(effect, DropFile) for effect in effects)
    assert names.held == {CAT.digest}


def test_a_copy_that_arrives_after_its_removal_is_dropped() -> None:
    """A second copy under way while its name was removed does not stay on the disk."""
    names = catalogue()
    assert names.on_held(CAT.digest) == [DropFile("model", CAT.digest)]
    assert names.held == frozenset()


def test_an_unknown_name_lists_the_choices() -> None:
    """The error says what there is; a removed name is not among it."""
    names = catalogue(A, record("cat"), record("dog", removed=True))
    with pytest.raises(UnknownModelError, match=r"known: cat$"):
        names.record("dog")
