"""Every route of the native API over a real socket, against a real node: answers, errors, callers that go away."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import pytest_asyncio
from aiohttp import ClientResponse, web
from aiohttp.test_utils import TestClient, TestServer

from meshnn.graph.builder import Builder
from meshnn.graph.card import Card
from meshnn.graph.writer import write
from meshnn.http.app import application
from meshnn.input_file import INPUT_BYTES_MAX
from tests.node.nodes import MODEL, NAME, PHOTO, WHOLE_BYTES, Device, mesh, stocked, until
from tools.whole import outputs_of

pytestmark = pytest.mark.asyncio(loop_scope="module")
API = "/api/v1"
Client = TestClient[web.Request, web.Application]


@pytest.fixture(scope="module")
def stock(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A state folder that holds the model already."""
    return stocked(tmp_path_factory.mktemp("stock") / "state")


class Api:
    """A client of one node."""

    def __init__(self, device: Device, client: Client) -> None:
        """Both are running."""
        self.device = device
        self.client = client

    async def call(self, method: str, path: str, data: object = None, **query: object) -> ClientResponse:
        """One request, answered and read."""
        params = {key: str(value) for key, value in query.items()}
        data = io.BytesIO(data) if isinstance(data, bytes) else data  # aiohttp warns of large bytes
        response = await self.client.request(method, path, data=data, params=params)
        await response.read()
        return response

    async def json(self, method: str, path: str, data: object = None, **query: object) -> Any:  # noqa: ANN401 - JSON
        """The JSON of a good answer."""
        response = await self.call(method, path, data, **query)
        assert response.status == 200, await response.text()
        return await response.json()

    async def error(self, method: str, path: str, data: object = None, **query: object) -> tuple[int, str, str]:
        """Status, code and message of an error, which is one line in the one form."""
        response = await self.call(method, path, data, **query)
        told = await response.json()
        assert set(told) == {"error"}
        assert set(told["error"]) == {"code", "message"}
        assert len(told["error"]["message"].splitlines()) == 1
        return response.status, told["error"]["code"], told["error"]["message"]


async def _serve(
    folder: Path, stock: Path, sizes: dict[str, int], up: asyncio.Future[Api], over: asyncio.Event
) -> None:
    """One node that has the model, and its API, in one task from its beginning to its end."""
    async with mesh(folder) as home:
        (device,) = await home.start("a", **{"memory_bytes": WHOLE_BYTES, **sizes}, stock=stock)
        server = TestServer(application(device.node), host="127.0.0.1")
        async with TestClient(server) as client:
            up.set_result(Api(device, client))
            await over.wait()


@asynccontextmanager
async def served(folder: Path, stock: Path, **sizes: int) -> AsyncIterator[Api]:
    """A node of these sizes, and its API."""
    up: asyncio.Future[Api] = asyncio.get_running_loop().create_future()
    over = asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(_serve(folder, stock, sizes, up, over))
        yield await up
        over.set()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def api(tmp_path_factory: pytest.TempPathFactory, stock: Path) -> AsyncIterator[Api]:
    """The node that most tests speak with."""
    up: asyncio.Future[Api] = asyncio.get_running_loop().create_future()
    over = asyncio.Event()
    life = asyncio.get_running_loop().create_task(_serve(tmp_path_factory.mktemp("api"), stock, {}, up, over))
    yield await up
    over.set()
    await life


def small_model(seed: int = 0) -> bytes:
    """The bytes of a model of one operator."""
    builder = Builder(np.random.default_rng(seed))
    result = builder.operator("RELU", (builder.input(1, 8 + seed),), (1, 8 + seed))
    return write(builder.graph(result)).to_bytes()


async def test_what_can_be_read(api: Api) -> None:
    """Health, status, models, plans and a card, each in its shape."""
    assert await api.json("GET", "/healthz") == {"ok": True}
    assert await api.json("GET", "/readyz") == {"ok": True}
    await api.json("POST", f"{API}/ask", PHOTO.read_bytes())
    status = await api.json("GET", f"{API}/status")
    assert status["self"] == status["leader"] == api.device.id
    assert status["models"] == await api.json("GET", f"{API}/models")
    assert status["plans"] == await api.json("GET", f"{API}/plans")
    assert [model["name"] for model in status["models"]] == [NAME]
    card = msgspec.convert(await api.json("GET", f"{API}/models/{NAME}/card"), Card)
    assert card.digest == hashlib.sha256(MODEL.read_bytes()).hexdigest()
    assert (await api.json("GET", f"{API}/models/-/card"))["digest"] == card.digest
    assert await (await api.call("GET", f"{API}/models/{NAME}/file")).read() == MODEL.read_bytes()
    assert await (await api.call("GET", f"{API}/models/default/file")).read() == MODEL.read_bytes()


async def test_a_photo_is_answered_with_its_tensors(api: Api) -> None:
    """The JSON line, and after it an npz whose outputs are the whole model's bytes."""
    response = await api.call("POST", f"{API}/ask", PHOTO.read_bytes(), source="my cat", top=2, tensors=1)
    data = await response.read()
    size = int(response.headers["X-Json-Bytes"])
    told = json.loads(data[:size])
    assert (told["input"], told["ok"], told["model"], len(told["predictions"])) == ("my cat", True, NAME, 2)
    with np.load(io.BytesIO(data[size:]), allow_pickle=False) as arrays:
        found = dict(arrays)
    inputs = {key.removeprefix("input:"): value for key, value in found.items() if key.startswith("input:")}
    for name, array in outputs_of(MODEL, inputs).items():
        assert found[f"output:{name}"].tobytes() == array.tobytes()


async def test_models_are_added_and_removed(api: Api) -> None:
    """Added under a name, known at once, replaced only when told to, gone when removed."""
    added = await api.json("POST", f"{API}/models", small_model(), name="small")
    assert (added["name"], added["holders"]) == ("small", [api.device.id])
    status, code, _ = await api.error("POST", f"{API}/models", small_model(1), name="small")
    assert (status, code) == (409, "model_conflict_error")
    replaced = await api.json("POST", f"{API}/models", small_model(1), name="small", replace=1, no_wait=1)
    assert replaced["digest"] != added["digest"]
    assert await api.json("DELETE", f"{API}/models/small") == {"removed": "small"}
    assert (await api.error("DELETE", f"{API}/models/small"))[:2] == (404, "unknown_model_error")
    await until(lambda: not list(api.device.folder.glob(".tmp-*")))


@pytest.mark.parametrize(
    ("method", "path", "query", "data", "expected"),
    [
        ("POST", "/ask", {}, b"no photo", (400, "input_error")),
        ("POST", "/ask", {}, b"", (400, "input_error")),
        ("POST", "/ask", {"model": "nothing"}, PHOTO.read_bytes(), (404, "unknown_model_error")),
        ("POST", "/ask", {"deadline": "0.001"}, PHOTO.read_bytes(), (504, "deadline_error")),
        ("POST", "/ask", {"deadline": "soon"}, PHOTO.read_bytes(), (400, "usage_error")),
        ("POST", "/ask", {"deadline": "nan"}, PHOTO.read_bytes(), (400, "usage_error")),
        ("POST", "/ask", {"top": "0"}, PHOTO.read_bytes(), (400, "usage_error")),
        ("POST", "/ask", {"top": "inf"}, PHOTO.read_bytes(), (400, "usage_error")),
        ("POST", "/models", {}, small_model(), (400, "usage_error")),
        ("POST", "/models", {"name": "a/b"}, small_model(), (422, "model_error")),
        ("POST", "/models", {"name": "text"}, b"no model", (422, "model_error")),
        ("POST", "/models", {"name": "empty"}, b"", (422, "model_error")),
        ("DELETE", "/models/nothing", {}, None, (404, "unknown_model_error")),
        ("GET", "/models/nothing/card", {}, None, (404, "unknown_model_error")),
        ("GET", "/models/nothing/file", {}, None, (404, "unknown_model_error")),
        ("PUT", f"/models/{NAME}/plan", {}, b"no plan", (400, "usage_error")),
        ("GET", "/nowhere", {}, None, (404, "usage_error")),
        ("PATCH", "/status", {}, None, (405, "usage_error")),
    ],
)
async def test_errors_have_one_form(
    api: Api, method: str, path: str, query: dict[str, str], data: bytes | None, expected: tuple[int, str]
) -> None:
    """A status, a code of errors.py and one line, whatever is wrong; nothing of it stays, and the node serves on."""
    assert (await api.error(method, f"{API}{path}", data, **query))[:2] == expected
    assert [record.name for record in api.device.node.core.catalogue.records] == [NAME]
    await until(lambda: not list(api.device.folder.glob(".tmp-*")))
    assert await api.json("GET", "/healthz") == {"ok": True}


async def test_an_input_that_is_too_large_is_refused(api: Api) -> None:
    """Both with its length announced and without."""

    async def endless() -> AsyncIterator[bytes]:
        for _ in range(INPUT_BYTES_MAX // (1 << 20) + 2):
            yield bytes(1 << 20)

    assert (await api.error("POST", f"{API}/ask", bytes(INPUT_BYTES_MAX + 1)))[0] in {400, 413}
    assert (await api.error("POST", f"{API}/ask", endless()))[:2] == (413, "usage_error")


async def test_a_model_larger_than_the_disk_budget_is_refused(tmp_path: Path, stock: Path) -> None:
    """Before it is written where its length is known, else as soon as it is seen; nothing of it stays."""

    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(20):
            yield bytes(1 << 20)

    async with served(tmp_path, stock, disk_bytes=6_000_000) as api:
        for data in (bytes(20 << 20), pieces()):
            status, code, message = await api.error("POST", f"{API}/models", data, name="large")
            assert (status, code) == (500, "node_error")
            assert "--disk" in message
            await until(lambda: not list(api.device.folder.glob(".tmp-*")))
        await api.json("POST", f"{API}/ask", PHOTO.read_bytes())


async def test_a_node_without_a_plan_says_so_and_forgets_who_goes(tmp_path: Path, stock: Path) -> None:
    """503 with what is missing, from add at once and from ask at its deadline; a caller that goes is forgotten."""
    async with served(tmp_path, stock, memory_bytes=200_000) as api:
        await until(lambda: api.device.node.core.book.unplanned(NAME) is not None)
        assert (await api.error("POST", f"{API}/ask", PHOTO.read_bytes(), deadline=0.3))[:2] == (503, "no_plan_error")
        added = await api.error("POST", f"{API}/models", MODEL.read_bytes(), name="again")
        assert added[:2] == (503, "no_plan_error")
        asking = asyncio.create_task(api.call("POST", f"{API}/ask", PHOTO.read_bytes(), model=NAME, deadline=80))
        await until(lambda: api.device.node.plane.stats().open == 1)
        asking.cancel()
        await until(lambda: api.device.node.plane.stats().open == 0)
        assert await api.json("GET", "/healthz") == {"ok": True}


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example"},
        {"Host": ""},
        {"Host": "[::1"},
        {"Host": "127.0.0.1.evil.example"},
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://[broken"},
    ],
    ids=str,
)
async def test_foreign_web_pages_are_refused(api: Api, headers: dict[str, str]) -> None:
    """A Host or Origin that is not this machine's loopback, however it is spelt."""
    response = await api.client.get(f"{API}/status", headers=headers)
    assert (response.status, (await response.json())["error"]["code"]) == (403, "usage_error")


@pytest.mark.parametrize("host", ["localhost:7767", "127.0.0.1", "[::1]:7767"])
async def test_this_machine_may_speak(api: Api, host: str) -> None:
    """Loopback by name and by number, with its own pages."""
    response = await api.client.get(f"{API}/status", headers={"Host": host, "Origin": f"http://{host}"})
    assert response.status == 200


async def test_leave_answers_and_then_ends_the_node(tmp_path: Path, stock: Path) -> None:
    """The caller hears that it worked; the node's life is over, and who still asks hears so."""
    async with served(tmp_path, stock, memory_bytes=200_000) as api:
        asking = asyncio.create_task(api.error("POST", f"{API}/ask", PHOTO.read_bytes(), model=NAME, deadline=80))
        await until(lambda: api.device.node.plane.stats().open == 1)
        assert await api.json("POST", f"{API}/leave") == {"left": True}
        await api.device.life
        status, code, message = await asking
        assert (status, code, "stopping" in message) == (500, "node_error", True)


@pytest.mark.parametrize("path", ["/healthz", "/nowhere", "*"])
async def test_an_expectation_that_is_no_text_is_refused(api: Api, path: str) -> None:
    """417 whether or not the path is served: the library's own answer breaks on bytes that are no text."""
    reader, writer = await asyncio.open_connection("127.0.0.1", api.client.port)
    writer.write(f"OPTIONS {path} HTTP/1.1\r\nHost: localhost\r\n".encode() + b"Expect: \xff\xfe\r\n\r\n")
    assert (await reader.readline()).startswith(b"HTTP/1.1 417 ")
    writer.close()
    await writer.wait_closed()
