"""`meshnn bench`: how fast and how right the mesh answers, measured from outside the node."""

from __future__ import annotations

import io
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import click
import numpy as np

from meshnn import vision
from meshnn.cli.operators import card_of_json
from meshnn.cli.options import json_option, state_dir_option, state_folder
from meshnn.cli.reference import Reference, seeded
from meshnn.client import LocalNode, need
from meshnn.errors import InputError, MeshError, UsageError
from meshnn.graph.card import Card
from meshnn.tensor_file import HEADERS

DEADLINE_S = 30.0
# Different inputs that requests take turns with.
INPUTS = 8
ERRORS_SHOWN = 3
ERRORS_KEPT = 1000

Arrays = dict[str, np.ndarray]


@dataclass(slots=True)
class Tally:
    """What came of the requests so far; shared by the threads under its lock."""

    ok: int = 0
    failed: int = 0
    wrong: int = 0
    attempts_max: int = 0
    latencies_ms: list[float] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def report(self, took_s: float) -> dict[str, object]:
        """The figures as others script against them."""
        done = np.asarray(self.latencies_ms or [0.0])
        p50, p95, p99 = (round(float(value), 3) for value in np.percentile(done, (50, 95, 99)))
        return {
            "ok": self.ok,
            "failed": self.failed,
            "wrong": self.wrong,
            "throughput_per_s": round((self.ok + self.wrong) / took_s, 3),
            "latency_ms": {"p50": p50, "p95": p95, "p99": p99, "max": round(float(done.max()), 3)},
            "attempts_max": self.attempts_max,
        }


@click.command("bench", short_help="Measure the mesh, and check its answers.")
@click.option("--model", help="The model to ask (default: as `ask`).")
@click.option("--requests", type=click.IntRange(1), help="How many requests to send.")
@click.option("--seconds", type=click.FloatRange(0.1), help="How long to send requests.")
@click.option("--concurrency", type=click.IntRange(1, 256), default=1, show_default=True, help="Requests at once.")
@click.option("--check", is_flag=True, help="Compare every answer with the whole model run in this process.")
@click.option("--image", type=click.Path(path_type=Path), help="A photo to ask about (default: seeded raw tensors).")
@json_option
@state_dir_option
def command(  # noqa: PLR0917 - click gives one argument an option
    model: str | None,
    requests: int | None,
    seconds: float | None,
    concurrency: int,
    check: bool,
    image: Path | None,
    as_json: bool,
    state_dir: Path | None,
) -> int:
    """Send requests through the node of this device; exit 1 if any failed or was wrong."""
    if (requests is None) == (seconds is None):
        raise UsageError("say how long: --requests N or --seconds S, one of them")
    folder = state_folder(state_dir)
    node = need(folder)
    name = model or "-"
    card = card_of_json(node.request("GET", node.model_path(name, "/card"), timeout_s=DEADLINE_S + 10).line)
    arrays = [_photo(image, card)] if image is not None else [seeded(card, seed) for seed in range(INPUTS)]
    expected = _expected(node, model or card.name, card, arrays) if check else None
    load = Load(node.http_port, model, arrays, expected)
    report = load.run(requests, seconds, concurrency)
    _print(report, load.tally, as_json=as_json)
    return 1 if load.tally.failed or load.tally.wrong else 0


class Load:
    """Threads that ask one after the other, each over a connection of its own."""

    def __init__(self, http_port: int, model: str | None, arrays: list[Arrays], expected: list[Arrays] | None) -> None:
        """`expected`: the right outputs of each input, or None where they are not checked."""
        self._http_port = http_port
        self._query = {"model": model, "top": 1, "tensors": int(expected is not None)}
        self._bodies = [_npz(each) for each in arrays]
        self._expected = expected
        self._left: int | None = None
        self._until = float("inf")
        self._next = 0
        self.tally = Tally()

    def run(self, requests: int | None, seconds: float | None, concurrency: int) -> dict[str, object]:
        """Send until the count or the time is over; the report."""
        began = time.perf_counter()
        self._left = requests
        self._until = began + seconds if seconds is not None else float("inf")
        with ThreadPoolExecutor(concurrency) as threads:
            for done in [threads.submit(self._work) for _ in range(concurrency)]:
                done.result()
        return self.tally.report(time.perf_counter() - began)

    def _take(self) -> int | None:
        """The number of the next request, or None when it is enough."""
        with self.tally.lock:
            if self._left == 0 or time.perf_counter() >= self._until:
                return None
            if self._left is not None:
                self._left -= 1
            self._next += 1
            return self._next - 1

    def _work(self) -> None:
        node = LocalNode(self._http_port)
        number = self._take()
        while number is not None:
            self._ask(node, number % len(self._bodies))
            number = self._take()
        node.close()

    def _ask(self, node: LocalNode, which: int) -> None:
        began = time.perf_counter()
        try:
            reply = node.ask(self._bodies[which], "bench", DEADLINE_S, self._query)
        except MeshError as error:
            with self.tally.lock:
                self.tally.failed += 1
                if len(self.tally.errors) < ERRORS_KEPT:
                    self.tally.errors.append(f"{error.code}: {error}")
            return
        took_ms = (time.perf_counter() - began) * 1000
        right = self._expected is None or _equal(reply.rest, self._expected[which])
        with self.tally.lock:
            self.tally.latencies_ms.append(took_ms)
            self.tally.attempts_max = max(self.tally.attempts_max, int(reply.json()["attempts"]))
            self.tally.ok += right
            self.tally.wrong += not right


def _expected(node: LocalNode, name: str, card: Card, arrays: list[Arrays]) -> list[Arrays]:
    """What the whole model answers in this process."""
    data = node.request("GET", node.model_path(name, "/file"), timeout_s=600).line
    with Reference(data) as reference:
        return [reference.run(card, each) for each in arrays]


def _photo(path: Path, card: Card) -> Arrays:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    return dict(vision.read_inputs(data, str(path), card))


def _npz(arrays: Arrays) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **{f"input:{name}": array for name, array in arrays.items()})
    return buffer.getvalue()


def _equal(npz: bytes, expected: Arrays) -> bool:
    """Whether every output has the very bytes it must have."""
    with HEADERS, np.load(io.BytesIO(npz), allow_pickle=False) as found:
        return all(
            f"output:{name}" in found and found[f"output:{name}"].tobytes() == array.tobytes()
            for name, array in expected.items()
        )


def _print(report: dict[str, object], tally: Tally, *, as_json: bool) -> None:
    for line in sorted(set(tally.errors))[:ERRORS_SHOWN]:
        click.echo(f"meshnn: {line}", err=True)
    if as_json:
        click.echo(json.dumps(report))
        return
    times = report["latency_ms"]
    click.echo(f"{tally.ok} ok, {tally.failed} failed, {tally.wrong} wrong; {report['throughput_per_s']} per second")
    click.echo(f"latency ms: {times}; at most {tally.attempts_max} attempts")
