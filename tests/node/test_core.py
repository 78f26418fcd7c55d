"""Whole cores together on a virtual clock: plans appear, survive deaths and restarts, and follow the models."""

from __future__ import annotations

import msgspec
import pytest

from meshnn.plan.messages import Activate, Prepare, Ready
from meshnn.plan.plan import Epoch, PlanSet
from tests.node.cores import Cores, all_linked, device_id, meet, model

CAT, LYNX, DOG = model("cat", "1"), model("cat", "2"), model("dog", "3", weights=40_000)
# With this much every contingency of three devices can be loaded beside the plan.
ROOMY = 3_000_000
# No fewer than the control messages from the naming of a model to its plan, in a mesh of three.
MESSAGES = 30


def served(letters: str = "abcd", memory_bytes: int = 700_000) -> Cores:
    """A mesh that serves the cat, which was given to a device that does not lead; two hold its file."""
    mesh = meet(letters, memory_bytes)
    mesh.add(next(letter for letter in letters if letter != mesh.leader()), CAT)
    assert mesh.run(10, lambda: mesh.settled("cat") and len(holders(mesh)) == 2)
    return mesh


def holders(mesh: Cores) -> str:
    """Who lives and holds the cat."""
    return "".join(letter for letter in mesh.living if CAT.digest in mesh.devices[letter].files)


def stage_devices(mesh: Cores) -> str:
    """The devices of the active plan that do not lead."""
    return "".join(d[0] for d in mesh.plans("cat").main.devices() if d[0] != mesh.leader())


def test_the_first_plan_is_there_within_a_second_of_the_model() -> None:
    """Named on one device: all agree on one plan of three devices, loaded, and two hold the file."""
    mesh = meet("abcd")
    mesh.add("c", CAT)
    assert mesh.run(1, lambda: mesh.settled("cat"))
    assert len(mesh.plans("cat").main.devices()) == 3
    assert mesh.run(1, lambda: len(holders(mesh)) == 2)
    record = mesh.core("c").catalogue.record("cat")
    assert all(mesh.core("c").catalogue.knows(device_id(letter), record) for letter in "abcd")


def test_contingencies_become_ready_everywhere() -> None:
    """With room for them, every single death of the plan is covered, and every device knows it."""
    mesh = served(memory_bytes=1_500_000)
    assert len(mesh.plans("cat").contingencies) == len(mesh.plans("cat").main.devices()) > 1
    assert mesh.run(5, lambda: mesh.covered("cat"))


def test_a_settled_mesh_says_nothing_more() -> None:
    """Nothing to do: no plan message moves in ten minutes, and the plan stays."""
    mesh = served()
    mesh.run(60)
    epoch, before = mesh.plans("cat").main.epoch, len(mesh.sent)
    mesh.run(600)
    plan_talk = [row for row in mesh.sent[before:] if row[2] not in {"Digest", "Sync", "Ping", "Ack"}]
    assert (plan_talk, mesh.plans("cat").main.epoch) == ([], epoch)


def test_a_death_in_the_plan_is_survived_at_once_then_officially() -> None:
    """The contingency is usable before anybody heard of the death; the leader's own plan takes under a second more."""
    mesh = served(memory_bytes=1_500_000)
    assert mesh.run(5, lambda: mesh.covered("cat"))
    victim = stage_devices(mesh)[0]
    mesh.kill(victim)
    for letter in mesh.living:
        plan = mesh.choose(letter, "cat", victim)
        assert plan is not None
        assert plan.epoch.absent == device_id(victim)
        assert mesh.is_loaded(plan)
    assert mesh.run(1, lambda: mesh.settled("cat"))


@pytest.mark.parametrize("evidence", ["closed", "silent"])
def test_a_link_that_comes_back_at_once_changes_no_plan(evidence: str) -> None:
    """A closed link has a second to come back before the plan is changed for it."""
    mesh = served()
    epoch, victim = mesh.plans("cat").main.epoch, stage_devices(mesh)[0]
    mesh.unlink(mesh.leader(), victim, evidence)
    mesh.run(30)
    assert mesh.settled("cat")
    assert mesh.plans("cat").main.epoch == epoch


def test_a_follower_introduces_itself_again_over_a_new_link_to_its_leader() -> None:
    """What serves and what is loaded is said anew, since it may have been lost with the old link."""
    mesh = served()
    leader, follower = mesh.leader(), stage_devices(mesh)[0]
    before = len(mesh.sent)
    mesh.unlink(leader, follower)
    mesh.run(5)
    said = [kind for source, to, kind in mesh.sent[before:] if source + to == follower + leader]
    assert {"Activate", "Ready"} <= set(said)


@pytest.mark.parametrize("index", range(MESSAGES))
def test_the_leader_may_die_before_any_message(index: int) -> None:
    """Killed before any one message of the first plan: one leader and an active, loaded plan within 30 s, to stay."""
    mesh = meet("abc", 1_000_000)
    leader = mesh.leader()
    seen = _kill_before(mesh, leader, index)
    mesh.add("b" if leader != "b" else "c", CAT)
    mesh.run(1)
    assert (leader not in mesh.living) == (len(seen) > index)
    assert mesh.run(30, lambda: mesh.settled("cat"))
    mesh.run(10)
    assert mesh.settled("cat")
    assert index < MESSAGES - 1 or len(seen) <= index, "there are more messages than deaths: raise MESSAGES"


@pytest.mark.parametrize("index", range(0, 40, 3))
def test_a_stage_device_may_die_before_any_message(index: int) -> None:
    """Killed before a message of the first plan: the others serve within 10 s."""
    mesh = meet("abcd")
    leader = mesh.leader()
    victim = "d" if leader != "d" else "c"
    seen = _kill_before(mesh, victim, index)
    mesh.add("b" if leader != "b" else "a", CAT)
    assert mesh.run(10, lambda: len(seen) > index and mesh.settled("cat"))


@pytest.mark.parametrize("index", range(0, 40, 2))
def test_the_leader_may_die_before_any_message_of_a_recovery(index: int) -> None:
    """A stage device dies, then the leader before any message: what is left serves within 30 s, to stay."""
    mesh = served("abcde", 900_000)
    leader, victim = mesh.leader(), stage_devices(mesh)[0]
    # Both of these may hold the file: with the two, a third holder would be needed.
    mesh.hold(next(letter for letter in "edc" if letter not in holders(mesh)), CAT)
    _kill_before(mesh, leader, index)
    mesh.kill(victim)
    mesh.run(1)
    assert mesh.run(30, lambda: mesh.settled("cat"))
    mesh.run(20)
    assert mesh.settled("cat")


@pytest.mark.parametrize("index", range(8))
def test_any_message_of_the_first_plan_may_be_lost_with_its_link(index: int) -> None:
    """The link breaks under any Prepare, Ready or Activate: the mesh still agrees, and covers every death."""
    mesh = meet("abc", ROOMY // 2)
    lost: list[msgspec.Struct] = []

    def drop(source: str, to: str, message: msgspec.Struct) -> bool:
        if isinstance(message, (Prepare, Ready, Activate)):
            lost.append(message)
            if len(lost) == index + 1:
                mesh.unlink(source, to)
                return True
        return False

    mesh.drop = drop
    mesh.add("c", CAT)
    assert mesh.run(30, lambda: mesh.settled("cat") and mesh.covered("cat") and all_linked(mesh))
    assert len(lost) > index


def test_a_restarted_device_is_used_again_in_its_new_life() -> None:
    """Killed and back at once: the plan never names the old life for long, and may use the new one."""
    mesh = served("abc", 700_000)
    victim = stage_devices(mesh)[0]
    mesh.kill(victim)
    mesh.run(0.5)
    mesh.start(victim)
    assert mesh.run(30, lambda: mesh.settled("cat"))
    assert mesh.plans("cat").main.lives()[device_id(victim)] == mesh.devices[victim].boot_id


def test_the_leader_restarts() -> None:
    """Killed and back within a moment, as a new life: one leader, one plan within 30 s."""
    mesh = served("abc", 1_000_000)
    leader = mesh.leader()
    mesh.kill(leader)
    mesh.run(0.2)
    mesh.start(leader)
    assert mesh.run(30, lambda: mesh.settled("cat"))
    mesh.run(30)
    assert mesh.settled("cat")


def test_all_restart_and_serve_again_from_their_disks() -> None:
    """After a power cut of the whole home the names, files and shards on the disks are enough."""
    mesh = served("abcd")
    for letter in "abcd":
        mesh.kill(letter)
    mesh.run(5)
    mesh.start("abcd")
    assert mesh.run(30, lambda: mesh.settled("cat"))


def test_a_plan_of_a_second_leader_of_this_term_does_not_lock_the_leader_out() -> None:
    """It died, and its plan outranks all that this leader could make in its term: a higher term is led in, and served.

    Cut halves may each choose a leader in one term; a plan is ordered by term, then leader.
    """
    mesh = served()
    plans = mesh.plans("cat")
    term = plans.main.epoch.term
    foreign = msgspec.structs.replace(plans.main, epoch=Epoch(term, device_id("z"), 1))
    mesh.hear(mesh.leader(), stage_devices(mesh)[0], Activate(PlanSet(foreign), ()))
    mesh.kill(stage_devices(mesh)[0])
    assert mesh.run(10, lambda: mesh.settled("cat"))
    assert mesh.plans("cat").main.epoch.term > term


def test_a_joiner_is_told_the_active_plan() -> None:
    """A newcomer can ask at once, before any plan is made for it."""
    mesh = Cores("abcde", 700_000)
    mesh.start("abcd")
    mesh.run(10, lambda: bool(mesh.leader()))
    mesh.add("a", CAT)
    assert mesh.run(10, lambda: mesh.settled("cat"))
    mesh.start("e")
    assert mesh.run(3, lambda: mesh.core("e").book.active("cat") is not None)
    assert mesh.run(1, lambda: mesh.choose("e", "cat") is not None)


def test_a_joiner_adds_the_coverage_that_was_missing() -> None:
    """Three devices just hold the model; a fourth covers deaths, within half a minute and without a gap."""
    mesh = Cores("abcd", 700_000)
    mesh.start("abc")
    mesh.run(10, lambda: bool(mesh.leader()))
    mesh.add("a", CAT)
    assert mesh.run(10, lambda: mesh.settled("cat"))
    assert mesh.plans("cat").contingencies == ()
    mesh.start("d")
    assert mesh.run(40, lambda: len(mesh.plans("cat").contingencies) == 3)
    assert mesh.run(1, lambda: mesh.settled("cat"))


def test_a_replaced_model_is_served_by_its_new_file() -> None:
    """Until the new plan is active nobody who knows the new file uses the old plan; the old file leaves the disks."""
    mesh = served()
    mesh.add("c", LYNX, replace=True)
    while not mesh.settled("cat", LYNX.digest):
        for letter in mesh.living:
            plan = mesh.choose(letter, "cat")
            assert plan is None or plan.digest == mesh.core(letter).catalogue.current("cat")
        assert mesh.now < 200
        mesh.run(0.01)
    mesh.run(10)
    assert holders(mesh) == ""
    assert all(plan.digest == LYNX.digest for plan in mesh.plans("cat").plans)


def test_a_removed_model_leaves_nothing() -> None:
    """Names, plans, files and memory are gone everywhere, on a device that was away meanwhile too."""
    mesh = served()
    away = stage_devices(mesh)[0]
    other = mesh.leader()
    for letter in mesh.living:
        if letter != away:
            mesh.sever(letter, away)
    mesh.remove(other, "cat")
    for letter in mesh.living:
        if letter != away:
            mesh.notice(letter, away)
    mesh.run(30)
    for letter in "abcd":
        core = mesh.core(letter)
        assert (core.book.known, core.shards.used_bytes, core.catalogue.records) == ((), 0, ())
    assert holders(mesh) == ""


def test_a_removed_model_can_be_added_again() -> None:
    """The same file under the same name, right after its removal, is planned again."""
    mesh = served()
    mesh.remove("a", "cat")
    mesh.run(10)
    mesh.add("d", CAT)
    assert mesh.run(10, lambda: mesh.settled("cat"))


def test_a_device_that_refuses_is_done_without() -> None:
    """One runtime does not take its shard: the plan comes without that device, and tries it again in time."""
    mesh = meet("abcde")
    mesh.devices["a"].refuses = True
    mesh.add("c", CAT)
    assert mesh.run(5, lambda: mesh.settled("cat"))
    assert device_id("a") not in mesh.plans("cat").main.devices()
    mesh.run(120)
    assert mesh.settled("cat")


def test_no_plan_is_said_with_its_reason_and_mended_by_a_joiner() -> None:
    """Two devices are too small: everybody hears why; a third makes the plan possible within seconds."""
    mesh = Cores("abc", 700_000)
    mesh.start("ab")
    assert mesh.run(10, lambda: bool(mesh.leader()))
    mesh.add("a", CAT)
    assert mesh.run(5, lambda: all(mesh.core(letter).book.unplanned("cat") for letter in "ab"))
    word = mesh.core("b").book.unplanned("cat")
    assert word is not None
    assert word.hopeless
    mesh.start("c")
    assert mesh.run(10, lambda: mesh.settled("cat"))
    assert all(mesh.core(letter).book.unplanned("cat") is None for letter in "abc")


def test_two_models_named_at_once_share_the_memory() -> None:
    """Neither plan counts on memory the other takes: both are served at once, with no refusal."""
    mesh = meet("abcd", 900_000)
    mesh.add("b", CAT)
    mesh.add("c", DOG)
    assert mesh.run(5, lambda: mesh.settled("cat") and mesh.settled("dog"))
    assert not mesh.core(mesh.leader()).leader._refused.reasons("cat")
    assert not mesh.core(mesh.leader()).leader._refused.reasons("dog")


def test_two_models_survive_the_leader() -> None:
    """Both are served again within 30 s of its death."""
    mesh = meet("abcde", 900_000)
    mesh.add("b", CAT)
    mesh.add("c", DOG)
    assert mesh.run(5, lambda: mesh.settled("cat") and mesh.settled("dog"))
    mesh.run(3)
    mesh.kill(mesh.leader())
    assert mesh.run(30, lambda: mesh.settled("cat") and mesh.settled("dog"))


def test_the_second_holder_is_restored_after_a_death() -> None:
    """Of two holders one dies: another device holds the file within seconds."""
    mesh = served("abcde")
    mesh.kill(next(letter for letter in holders(mesh) if letter != mesh.leader()))
    assert mesh.run(20, lambda: len(holders(mesh)) == 2)


def test_only_a_device_that_can_cut_is_asked_to() -> None:
    """The one holder without the schema is passed over for the copy's; until then the reason is said."""
    mesh = meet("abcd")
    mesh.devices["a"].can_cut = False
    mesh.kill("a")
    mesh.run(1)
    mesh.start("a")
    assert mesh.run(30, lambda: bool(mesh.leader()) and all_linked(mesh))
    mesh.add("a", CAT)
    assert mesh.run(15, lambda: mesh.settled("cat"))


def _kill_before(mesh: Cores, victim: str, index: int) -> list[str]:
    """Kill a device before the control message of this number arrives; returns the messages seen so far."""
    seen: list[str] = []

    def look(source: str, to: str, message: msgspec.Struct) -> str:
        if type(message).__name__ in {"Digest", "Sync"}:
            return ""
        seen.append(f"{source}{to} {type(message).__name__}")
        return victim if len(seen) == index + 1 else ""

    mesh.kill_before = look
    return seen
