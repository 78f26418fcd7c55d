"""The native API: `/api/v1/...`, what the command line and the library speak to their own node."""

from __future__ import annotations

import asyncio
import os
import tempfile
from pathlib import Path

import msgspec
from aiohttp import web

from meshnn.device.part import discard
from meshnn.device.records import refused
from meshnn.errors import DeadlineError, NodeError, UsageError
from meshnn.http.guard import flag, number
from meshnn.http.patience import pieces
from meshnn.input_file import INPUT_BYTES_MAX, check_size
from meshnn.node.answer import npz_of
from meshnn.node.driver import Node

# How long the file of a model may take to come, in seconds; it comes from this machine.
UPLOAD_S = 600.0
DEADLINE_MAX_S = 3600.0
JSON_BYTES = "X-Json-Bytes"


class Native:
    """The handlers of one node."""

    def __init__(self, node: Node) -> None:
        """The node that does the work."""
        self._node = node

    def routes(self) -> list[web.RouteDef]:
        """Every path of the native API."""
        return [
            web.get("/healthz", self.health),
            web.get("/readyz", self.health),
            web.get("/api/v1/status", self.status),
            web.post("/api/v1/ask", self.ask),
            web.get("/api/v1/plans", self.plans),
            web.get("/api/v1/models", self.models),
            web.post("/api/v1/models", self.add),
            web.delete("/api/v1/models/{name}", self.remove),
            web.get("/api/v1/models/{name}/card", self.card),
            web.get("/api/v1/models/{name}/file", self.file),
            web.get("/api/v1/models/{name}/plan", self.explain),
            web.put("/api/v1/models/{name}/plan", self.pin),
            web.delete("/api/v1/models/{name}/plan", self.unpin),
            web.post("/api/v1/leave", self.leave),
        ]

    async def health(self, request: web.Request) -> web.Response:
        """Alive."""
        del request
        return web.json_response({"ok": True})

    async def status(self, request: web.Request) -> web.Response:
        """What `meshnn status --json` prints."""
        del request
        return _json({**self._node.service.status(), "tasks": len(asyncio.all_tasks())})

    async def plans(self, request: web.Request) -> web.Response:
        """The active plans."""
        del request
        return _json(self._node.service.plans())

    async def models(self, request: web.Request) -> web.Response:
        """The models of the mesh."""
        del request
        return _json(self._node.service.status()["models"])

    async def ask(self, request: web.Request) -> web.Response:
        """Answer the body, a photo or npz; with `tensors=1` the raw tensors follow the JSON as an npz."""
        deadline_s = number(request, "deadline", 30.0, 0.001, DEADLINE_MAX_S)
        self._node.service.refuse_overload(deadline_s)
        data = await _body(request)
        answer = await self._node.service.ask(
            data,
            request.query.get("source", "input"),
            model=request.query.get("model") or None,
            top=int(number(request, "top", 5, 1, 100_000)),
            deadline_s=deadline_s,
        )
        line = msgspec.json.encode(answer.report)
        arrays = await asyncio.to_thread(npz_of, answer) if flag(request, "tensors") else b""
        return web.Response(body=line + arrays, content_type="application/json", headers={JSON_BYTES: str(len(line))})

    async def add(self, request: web.Request) -> web.Response:
        """Take the body as a model file, under `name`."""
        name = request.query.get("name", "")
        if not name:
            raise UsageError("a model needs a name: ?name=NAME")
        replace, wait = flag(request, "replace"), not flag(request, "no_wait")
        deadline_s = number(request, "deadline", 60.0, 0.001, DEADLINE_MAX_S)
        path = await asyncio.to_thread(self._upload_place)
        try:
            await self._receive(request, path)
            return _json(await self._node.service.add(path, name, replace=replace, wait=wait, deadline_s=deadline_s))
        finally:
            await asyncio.to_thread(discard, path)

    def _upload_place(self) -> Path:
        """An empty file for an upload, of a kind that a node's next start clears away; NodeError."""
        folder = self._node.store.folder
        try:
            descriptor, text = tempfile.mkstemp(prefix=".tmp-upload-", dir=folder)
        except OSError as error:
            raise refused(folder, error) from error
        os.close(descriptor)
        return Path(text)

    async def _receive(self, request: web.Request, path: Path) -> None:
        """The body into a file, refused as soon as it is seen not to fit; NodeError, DeadlineError."""
        free_bytes = await asyncio.to_thread(self._node.store.free_bytes)
        size_bytes = request.content_length or 0
        try:
            async with asyncio.timeout(UPLOAD_S):
                with path.open("wb") as file:
                    async for chunk in pieces(request):
                        size_bytes = max(size_bytes, file.tell() + len(chunk))
                        if size_bytes > free_bytes:
                            raise NodeError(
                                f"a model of {size_bytes / 1e6:.1f} MB has no room here: {free_bytes / 1e6:.1f} MB are "
                                "free for models; raise --disk or remove one"
                            )
                        await asyncio.to_thread(file.write, chunk)
        except TimeoutError:
            raise DeadlineError(f"the model's file did not come within {UPLOAD_S:.0f} s") from None
        except ConnectionError:
            raise
        except OSError as error:
            raise refused(path.parent, error) from error

    async def remove(self, request: web.Request) -> web.Response:
        """Forget a model in the whole mesh."""
        self._node.service.remove(request.match_info["name"])
        return _json({"removed": request.match_info["name"]})

    async def card(self, request: web.Request) -> web.Response:
        """A model's card; the name `-` means the one that `ask` without a model would use."""
        name = request.match_info["name"]
        deadline_s = number(request, "deadline", 30.0, 0.001, DEADLINE_MAX_S)
        card = await self._node.service.card(None if name == "-" else name, deadline_s)
        return _json(card)

    async def file(self, request: web.Request) -> web.StreamResponse:
        """A model's whole file."""
        path = await self._node.service.model_file(request.match_info["name"])
        return web.FileResponse(path)

    async def explain(self, request: web.Request) -> web.Response:
        """What the planner weighed for a model, the plan that serves first."""
        return _json(await self._node.service.explain(request.match_info["name"]))

    async def pin(self, request: web.Request) -> web.Response:
        """Run exactly the plan in the body; answered once it serves."""
        name, data = request.match_info["name"], await _body(request)
        await self._node.service.pin(name, data, number(request, "deadline", 60.0, 0.001, DEADLINE_MAX_S))
        return _json({"pinned": name})

    async def unpin(self, request: web.Request) -> web.Response:
        """Give a model back to the planner; answered once the planner's plan serves."""
        name = request.match_info["name"]
        await self._node.service.unpin(name, number(request, "deadline", 60.0, 0.001, DEADLINE_MAX_S))
        return _json({"released": name})

    async def leave(self, request: web.Request) -> web.Response:
        """Say goodbye and end; the node goes once this answer is out."""
        del request
        asyncio.get_running_loop().call_soon(self._node.leave)
        return _json({"left": True})


def _json(value: object) -> web.Response:
    return web.Response(body=msgspec.json.encode(value), content_type="application/json")


async def _body(request: web.Request) -> bytes:
    """The whole body, refused above its bound."""
    check_size(request.content_length, "the input")
    data = bytearray()
    async for piece in pieces(request):
        data += piece
        if len(data) > INPUT_BYTES_MAX:
            raise web.HTTPRequestEntityTooLarge(INPUT_BYTES_MAX, len(data))
    return bytes(data)
