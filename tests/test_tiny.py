"""The whole promise on one page: three devices, one photo, one answer, one death, the same answer."""

from __future__ import annotations

from pathlib import Path

from tests.node.nodes import MODEL, check, mesh, workers


async def test_three_devices_answer_and_one_may_die(tmp_path: Path) -> None:
    """A model that no device can hold alone is answered by all three together, and by two after a death."""
    async with mesh(tmp_path) as home:
        kitchen, _, attic = await home.start("kitchen", "hall", "attic")
        await kitchen.node.service.add(MODEL, "photos", replace=False)

        answer = await attic.ask("photos")
        check(answer)
        assert answer.report["predictions"][0]["label"] == "cat"  # type: ignore[index]
        assert len(workers(answer)) >= 2

        victim = sorted(workers(answer) - {"attic"})[0]
        await home.kill(victim)

        again = await attic.ask("photos")
        check(again)
        assert again.outputs.keys() == answer.outputs.keys()
        assert all(again.outputs[name].tobytes() == answer.outputs[name].tobytes() for name in answer.outputs)
        assert victim not in workers(again)
