"""Directed tests of what Lifeguard adds: a device that is itself unwell, or alone with its suspicion, goes slowly."""

from __future__ import annotations

from meshnn.cluster.member import MemberState
from meshnn.cluster.messages import Nack, Ping, PingRequest
from meshnn.cluster.suspicion import Suspicion
from tests.cluster.stage import Stage
from tests.cluster.virtual_mesh import device_id

OTHERS = (2, 3, 4)


def asked_relays(*silent: int) -> Stage:
    """A machine whose probe of device 1 went unanswered until it asked relays; the `silent` ones are not heard."""
    stage = Stage(1, *OTHERS)
    stage.follow(2)
    for _ in range(200):
        stage.wait(0.1, tuple(other for other in OTHERS if other not in silent))
        if any(request.target == device_id(1) for request in stage.sent(PingRequest)):
            return stage
    raise AssertionError("relays were never asked")


def score(stage: Stage) -> int:
    """How unwell the machine thinks it is."""
    return stage.cluster._membership.health.score


def test_relays_that_say_nothing_make_the_asker_doubt_itself() -> None:
    """Neither an answer nor a no from relays that were there a moment ago: it may be this device that is deaf."""
    stage = asked_relays()
    before = score(stage)
    stage.wait(2.5 * (before + 1), OTHERS)
    assert score(stage) > before


def test_relays_that_say_no_make_the_asker_sure() -> None:
    """Every relay answered that it had no answer either: nothing is wrong here."""
    stage = asked_relays()
    before = score(stage)
    number = next(request.number for request in stage.sent(PingRequest) if request.target == device_id(1))
    for relay in OTHERS:
        stage.hear(relay, Nack(number))
    while stage.state(1) is MemberState.ALIVE:
        stage.wait(0.1, OTHERS)
    assert score(stage) <= before


def test_own_suspects_are_asked_every_second() -> None:
    """Not once a round: whom this device itself accuses gets a chance every interval to say that it lives."""
    stage = asked_relays()
    while stage.state(1) is MemberState.ALIVE:
        stage.wait(0.1, OTHERS)
    stage.effects.clear()
    stage.wait(4.5, OTHERS)
    assert len(stage.sent(Ping, 1)) >= 4


def test_an_accusation_heard_again_is_no_news() -> None:
    """The same accuser is passed on once, however often it is heard."""
    suspicion = Suspicion(device_id(1), 1000, 0.0, 6.0, 2)
    assert suspicion.confirm(device_id(2), False)
    assert not suspicion.confirm(device_id(2), False)
    assert suspicion.confirm(device_id(3), False)
