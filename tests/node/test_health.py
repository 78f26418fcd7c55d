"""Health: loud when trouble begins, silent while it lasts, told when it is over."""

from __future__ import annotations

from meshnn.cluster.member import Capability
from meshnn.node.effects import Changed, Effect, Note
from meshnn.node.health import Health
from meshnn.node.reports import status
from meshnn.node.thrift import Memory
from tests.node.cores import device_id, meet, model

DISK = "disk (term.json)"


def told(effects: list[Effect]) -> list[tuple[str, bool]]:
    """The lines for the log, each with whether it is a warning."""
    return [(effect.event, effect.warning) for effect in effects if isinstance(effect, Note)]


def test_trouble_is_told_once_and_its_end_too() -> None:
    """The same reason again is no news; another one is; the last trouble over is good health."""
    health = Health()
    assert not health.degraded
    effects = health.tell(DISK, "no space left")
    assert told(effects) == [("health_degraded", True)]
    assert Changed() in effects
    assert health.tell(DISK, "no space left") == []
    assert told(health.tell(DISK, "read-only")) == [("health_degraded", True)]
    assert health.tell("memory", "") == []
    assert (health.degraded, dict(health.troubles)) == (True, {DISK: "read-only"})
    assert told(health.tell(DISK, "")) == [("health_restored", False)]
    assert not health.degraded


def test_status_shows_it_here_and_the_others_see_that_something_is_wrong() -> None:
    """This device gives its reasons; every member's row says whether it is well, and goes on serving."""
    mesh = meet("ab")
    a, b = mesh.core("a"), mesh.core("b")
    mesh.happens("a", lambda core, now: core.on_trouble(DISK, "no space left", now))
    assert mesh.run(10, lambda: b.cluster.members[device_id("a")].capability.degraded)
    shown = status(a, device_id("a"), "home")
    assert shown["health"] == {"state": "degraded", "troubles": [{"subject": DISK, "reason": "no space left"}]}
    rows = {row["id"]: row["health"] for row in status(b, device_id("b"), "home")["members"]}  # type: ignore[attr-defined]
    assert rows == {device_id("a"): "degraded", device_id("b"): "ok"}
    mesh.happens("a", lambda core, now: core.set_capability(Capability(700_000, speed=2.0), now))
    assert a.cluster.me.capability.degraded
    mesh.happens("a", lambda core, now: core.on_trouble(DISK, "", now))
    assert mesh.run(10, lambda: not b.cluster.members[device_id("a")].capability.degraded)


def test_short_memory_makes_the_device_a_smaller_one() -> None:
    """Spares go, the others hear of the smaller budget, the plan moves on, and the reason is in the status."""
    cat = model("cat", "1")
    mesh = meet("abcd", 3_000_000)
    mesh.add("a", cat)
    assert mesh.run(10, lambda: mesh.settled("cat"))
    short = next(d[0] for d in mesh.plans("cat").main.devices())
    core = mesh.core(short)
    used = core.shards.used_bytes
    assert used
    mesh.happens(short, lambda core, now: core.on_memory(Memory(0, 100_000_000), now))
    assert core.shards.budget_bytes < used
    assert core.shards.loaded() == () or core.shards.excess_bytes
    assert "memory" in core.health.troubles
    others = [letter for letter in "abcd" if letter != short]
    assert mesh.run(
        30,
        lambda: all(
            mesh.core(letter).cluster.members[device_id(short)].capability.memory_bytes == core.shards.budget_bytes
            for letter in others
        ),
    )
    assert mesh.run(60, lambda: device_id(short) not in mesh.plans("cat").main.devices() and mesh.settled("cat"))
    assert mesh.run(30, lambda: core.shards.excess_bytes == 0)
