"""Scenarios of a mesh in which nothing fails: devices meet, answer, and share what none could hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from tools.acceptance.field import Field, Station
from tools.acceptance.verdict import Setting, Verdict
from tools.whole import outputs_of

MEET_LIMIT_S = 10.0
SMALL_MEMORY = "4MB"
SPREAD = 3
ASK_S = 60.0


def discovery(setting: Setting) -> Verdict:
    """Five devices with a bare `meshnn join` list each other within ten seconds of the last start."""
    verdict = Verdict("discovery")
    with Field(setting, "discovery") as field:
        from_start_s, from_joined_s = field.start()
    verdict.figures |= {"from_last_start_s": round(from_start_s, 1), "from_last_joined_s": round(from_joined_s, 1)}
    verdict.check(from_start_s <= MEET_LIMIT_S, f"they met after {from_start_s:.1f} s, not {MEET_LIMIT_S:.0f} s")
    return verdict


def answers(setting: Setting) -> Verdict:
    """A model added on one device is answered from each of five."""
    return _answered(setting, "answers", 1)


def memory(setting: Setting) -> Verdict:
    """The same where no device can hold the model: at least three share it."""
    return _answered(setting, "memory", SPREAD, "--memory", SMALL_MEMORY)


def _answered(setting: Setting, scenario: str, spread: int, *options: str) -> Verdict:
    verdict = Verdict(scenario)
    with Field(setting, scenario, *options) as field:
        field.start()
        verdict.figures["models_add_s"] = round(field.add(field.stations[2]), 1)
        planned = len(field.plan())
        verdict.figures["devices_in_plan"] = planned
        verdict.check(planned >= spread, f"the plan has {planned} devices, not {spread}")
        latencies: list[float] = []
        for station in field.stations:
            _check_answer(verdict, field, station, spread, latencies)
        verdict.figures["ask_latency_ms"] = latencies
    return verdict


def _check_answer(verdict: Verdict, field: Field, station: Station, spread: int, latencies: list[float]) -> None:
    """One ask as a person types it on one device: label, bytes and spread."""
    setting = field.setting
    tensors = field.folder / f"{station.name}-tensors"
    typed = ("ask", str(setting.photo), "--model", setting.name, "--json", "--tensors", str(tensors))
    done = station.meshnn(*typed, timeout_s=ASK_S)
    if done.code:
        verdict.check(False, f"ask on {station.name} ended with {done.code}: {done.err.strip()} {done.out.strip()}")
        return
    answer: dict[str, Any] = done.json()
    latencies.append(round(answer["latency_ms"], 1))
    label = str(answer["predictions"][0]["label"])
    verdict.figures["label"] = label
    verdict.check(setting.label in label, f"{station.name} says {label}")
    devices = {stage["device_id"] for stage in answer["plan"]["stages"]}
    verdict.check(len(devices) >= spread, f"the answer on {station.name} came from {len(devices)} devices")
    verdict.check(_equals_whole(setting.model, tensors / f"{setting.photo.stem}.npz"), f"{station.name}: other bytes")


def _equals_whole(model: Path, tensors: Path) -> bool:
    """Whether the outputs of a file of raw tensors are, byte for byte, those of the whole model for its inputs."""
    with np.load(tensors, allow_pickle=False) as arrays:
        found = dict(arrays)
    inputs = {key.removeprefix("input:"): array for key, array in found.items() if key.startswith("input:")}
    outputs = {key.removeprefix("output:"): array for key, array in found.items() if key.startswith("output:")}
    expected = outputs_of(model, inputs)
    return set(outputs) == set(expected) and all(outputs[n].tobytes() == expected[n].tobytes() for n in expected)
