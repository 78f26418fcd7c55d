"""`make demo`: three devices on this machine answer about a photo; the busiest is killed; they answer again."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from tools.processes import Device, Mesh, until
from tools.whole import outputs_of

ROOT = Path(__file__).resolve().parent.parent
MODEL = ROOT / "models" / "default.tflite"
PHOTO = ROOT / "examples" / "cat.png"
NAMES = ("kitchen", "study", "attic")
# Less than the model needs, so that the devices must share it; two of them still hold it together.
MEMORY = "3MB"
SEE_S = 60.0


def main() -> int:
    """Run the demo; 0 only if every answer equalled the whole model's."""
    options = _options()
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="meshnn-demo-") as folder, Mesh(Path(folder)) as mesh:
        _say(f"starting three devices with {MEMORY} each: {', '.join(NAMES)}")
        devices = mesh.start(*NAMES, options=("--memory", MEMORY))
        until(lambda: all(device.sees(*NAMES) for device in devices), SEE_S, "the devices find each other")
        _say(f"they found each other ({time.monotonic() - began:.1f} s)")
        added = devices[0].meshnn("models", "add", str(options.model), "--name", "photos")
        if added.code:
            return _give_up(f"the model was not taken: {added.err.strip()}", devices)
        _say(added.out.strip())
        right, answer = _ask(devices[0], options.photo, Path(folder) / "first", options.model)
        if answer is None:
            return _give_up("no answer", devices)
        victim = _busiest(answer, {device.name: device for device in devices[1:]})
        _say(f"pulling the plug of {victim.name} (kill -9) and asking again")
        victim.kill()
        again, answer = _ask(devices[0], options.photo, Path(folder) / "second", options.model)
    verdict = "every answer equals" if right and again else "NOT every answer equals"
    _say(f"done in {time.monotonic() - began:.1f} s: {verdict} the whole model's")
    return 0 if right and again else 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--photo", type=Path, default=PHOTO)
    return parser.parse_args()


def _ask(device: Device, photo: Path, tensors: Path, model: Path) -> tuple[bool, dict[str, Any] | None]:
    """Ask, print who did what, and say whether the answer's bytes are the whole model's."""
    done = device.meshnn("ask", str(photo), "--json", "--top", "3", "--tensors", str(tensors))
    if done.code:
        _say(f"the question failed: {done.err.strip()} {done.out.strip()}")
        return False, None
    answer = dict(done.json())
    best = ", ".join(f"{p['label'] or p['index']} {p['score']:.2f}" for p in answer["predictions"])
    _say(f"{photo.name}: {best} ({answer['latency_ms']:.0f} ms, {answer['attempts']} attempt(s))")
    for stage in answer["plan"]["stages"]:
        first, last = stage["operators"]
        _say(f"    {stage['device']:8} operators {first:2} to {last:2}: {stage['compute_ms']:.2f} ms")
    with np.load(tensors / f"{photo.stem}.npz", allow_pickle=False) as arrays:
        right = _equal(dict(arrays), model)
    _say(f"    {'equal to' if right else 'DIFFERENT FROM'} the whole model, byte for byte")
    return right, answer


def _equal(arrays: dict[str, Any], model: Path) -> bool:
    inputs = {key.removeprefix("input:"): value for key, value in arrays.items() if key.startswith("input:")}
    outputs = {key.removeprefix("output:"): value for key, value in arrays.items() if key.startswith("output:")}
    expected = outputs_of(model, inputs)
    return set(outputs) == set(expected) and all(outputs[n].tobytes() == expected[n].tobytes() for n in expected)


def _busiest(answer: dict[str, Any], devices: dict[str, Device]) -> Device:
    """The device, other than the one that asks, with the most work; one without any if it must be."""
    work = dict.fromkeys(devices, 0.0)
    for stage in answer["plan"]["stages"]:
        if stage["device"] in work:
            work[stage["device"]] += stage["compute_ms"]
    return devices[max(work, key=lambda name: work[name])]


def _give_up(reason: str, devices: list[Device]) -> int:
    _say(reason)
    for device in devices:
        print(f"--- {device.name}\n{device.log[-1500:]}", file=sys.stderr)
    return 1


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
