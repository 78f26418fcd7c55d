"""Two versions of meshnn in one mesh, on loopback: `python -m tools.skew REF` mixes this tree with an earlier commit.

Two nodes of each version share the shipped model; every device is asked, one of the other version is killed, every
device is asked again, and it comes back. Then a node that speaks another protocol version is started beside them: both
sides must say so in one line and go on.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import numpy as np

from tools.processes import Device, Launch, Mesh, until
from tools.whole import outputs_of

ROOT = Path(__file__).resolve().parent.parent
MODEL = ROOT / "models" / "default.tflite"
PHOTO = ROOT / "examples" / "cat.png"
WAIT_S = 90.0
MEMORY = "3MB"
LINE = "wrong_version"


def main(arguments: Sequence[str]) -> int:
    """Run it; 0 only if every ask was answered exactly and every rule held."""
    parser = argparse.ArgumentParser(prog="python -m tools.skew", description=__doc__)
    parser.add_argument("ref", help="the earlier version, as git names it")
    ref = parser.parse_args(arguments).ref
    with tempfile.TemporaryDirectory(prefix="meshnn-skew-") as text:
        folder = Path(text)
        older = checked_out(ref, folder / "older")
        faults = mixed(folder / "mixed", older, ref)
        faults += strangers(folder / "strangers", apart(folder / "apart"))
    print(f"skew: {'pass' if not faults else 'FAIL: ' + '; '.join(faults)}")
    return 1 if faults else 0


def checked_out(ref: str, folder: Path) -> Path:
    """The tree of a commit in a folder of its own."""
    folder.mkdir()
    archive = subprocess.run(["git", "archive", ref], cwd=ROOT, stdout=subprocess.PIPE, check=True)
    subprocess.run(["tar", "-x", "-C", str(folder)], input=archive.stdout, check=True)
    return folder


def apart(folder: Path) -> Path:
    """This tree's own package, made to speak the next protocol version."""
    folder.mkdir()
    for part in ("meshnn", "models"):
        subprocess.run(["cp", "-r", str(ROOT / part), str(folder / part)], check=True)
    hello = folder / "meshnn" / "net" / "hello.py"
    hello.write_text(hello.read_text().replace("PROTOCOL_VERSION = 1\n", "PROTOCOL_VERSION = 2\n"))
    return folder


def of(tree: Path) -> Launch:
    """Starts processes of the package in a tree."""

    def launch(
        command: Sequence[str], environment: dict[str, str], out: IO[bytes], err: IO[bytes]
    ) -> subprocess.Popen[bytes]:
        env = {**environment, "PYTHONPATH": str(tree)}
        return subprocess.Popen(command, env=env, cwd=tree, stdin=subprocess.DEVNULL, stdout=out, stderr=err)

    return launch


def mixed(folder: Path, older: Path, ref: str) -> list[str]:
    """Two nodes of this tree, two of the older one; the faults found."""
    faults: list[str] = []
    with Mesh(folder) as mesh:
        trees = {"new-1": ROOT, "old-1": older, "new-2": ROOT, "old-2": older}
        devices = [mesh.device(name, "--memory", MEMORY, launch=of(tree)) for name, tree in trees.items()]
        for device in devices:
            device.start()
        for device in devices:
            device.wait_ready()
        took_s = until(lambda: all(d.sees(*trees) for d in devices), WAIT_S, "all four see each other")
        print(f"two of this tree and two of {ref} list each other after {took_s:.1f} s")
        for giver in ("new-1", "old-2"):
            added = mesh.devices[giver].meshnn("models", "add", str(MODEL), "--name", f"by-{giver}", "--deadline", "90")
            if added.code:
                faults.append(f"{giver} could not add the model: {added.err.strip()}")
        faults += asked(devices, folder)
        victim = devices[1]
        victim.kill()
        faults += asked([device for device in devices if device is not victim], folder)
        victim.start()
        victim.wait_ready()
        took_s = until(lambda: all(d.sees(*trees) for d in devices), WAIT_S, "all four see each other again")
        print(f"{victim.name} was killed and is back after {took_s:.1f} s")
        faults += asked(devices, folder)
        faults += [f"{device.name} ended" for device in devices if device.dead()]
    return faults


def asked(devices: list[Device], folder: Path) -> list[str]:
    """Ask from every device about both models; the faults found."""
    faults: list[str] = []
    for device in devices:
        for model in ("by-new-1", "by-old-2"):
            began = time.monotonic()
            told = ("ask", str(PHOTO), "--json", "--model", model, "--tensors", str(folder / device.name))
            done = device.meshnn(*told)
            if done.code:
                faults.append(f"{device.name} got no answer of {model}: {done.err.strip()} {done.out.strip()}")
                continue
            names = [stage["device"] for stage in done.json()["plan"]["stages"]]
            right = exact(folder / device.name / f"{PHOTO.stem}.npz")
            took_ms = (time.monotonic() - began) * 1000
            print(
                f"{device.name} asked {model}: {'exact' if right else 'WRONG'}, by {', '.join(names)}, {took_ms:.0f} ms"
            )
            if not right:
                faults.append(f"{device.name} got wrong bytes of {model}")
    return faults


def exact(path: Path) -> bool:
    """Whether an answer's outputs are the whole model's, byte for byte."""
    with np.load(path, allow_pickle=False) as arrays:
        inputs = {key.removeprefix("input:"): value for key, value in arrays.items() if key.startswith("input:")}
        outputs = {key.removeprefix("output:"): value for key, value in arrays.items() if key.startswith("output:")}
    expected = outputs_of(MODEL, inputs)
    return set(outputs) == set(expected) and all(outputs[n].tobytes() == expected[n].tobytes() for n in expected)


def strangers(folder: Path, tree: Path) -> list[str]:
    """A node of another protocol version beside one of this tree; the faults found."""
    with Mesh(folder) as mesh:
        one = mesh.device("this", launch=of(ROOT))
        one.start()
        one.wait_ready()
        port = int(next(part for part in reversed(one.log.split()) if part.isdigit()))
        other = mesh.device("other", "--peer", f"127.0.0.1:{port}", launch=of(tree))
        other.start()
        other.wait_ready()
        both = (one, other)
        until(lambda: all(LINE in device.log for device in both), WAIT_S, "both say that their versions differ")
        faults = [f"{device.name} ended" for device in both if device.dead()]
        for device in both:
            line = next(line for line in device.log.splitlines() if LINE in line)
            print(f"{device.name}: {line.strip()}")
            if len(device.states()) != 1:
                faults.append(f"{device.name} took a device of another version for a member")
    return faults


if __name__ == "__main__":
    os.environ.pop("MESHNN_STATE_DIR", None)
    sys.exit(main(sys.argv[1:]))
