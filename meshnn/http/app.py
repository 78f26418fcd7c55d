"""The application of one node: the guards and every protocol family."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable

from aiohttp import web
from aiohttp.typedefs import Middleware
from aiohttp.web_urldispatcher import MatchInfoError

from meshnn.http.guard import errors, expectation, same_machine
from meshnn.http.native import Native
from meshnn.http.patience import Patience, Reception
from meshnn.input_file import INPUT_BYTES_MAX
from meshnn.net.acceptor import Acceptor
from meshnn.net.tasks import TaskSet
from meshnn.node.driver import Node
from meshnn.telemetry import logger

_log = logger(__name__)


def application(node: Node, reception: Reception | None = None) -> web.Application:
    """The routes of a node behind its guards; `reception` hears when a request is served."""
    guards: list[Middleware] = [errors, same_machine]
    if reception is not None:
        guards.insert(0, reception.middleware)
    app = web.Application(middlewares=guards, client_max_size=INPUT_BYTES_MAX + 1024)
    app.add_routes(
        web.RouteDef(one.method, one.path, one.handler, {**one.kwargs, "expect_handler": expectation})
        for one in Native(node).routes()
    )
    plain = app.router.resolve

    async def resolve(request: web.Request) -> web.UrlMappingMatchInfo:
        found = await plain(request)
        return found if found.http_exception is None else _NowhereError(found.http_exception)

    app.router.resolve = resolve  # type: ignore[method-assign]
    return app


class _NowhereError(MatchInfoError):
    """A path or method that is not served: what its caller expects is looked at by our own rule there too."""

    @property
    def expect_handler(self) -> Callable[[web.Request], Awaitable[web.StreamResponse | None]]:
        """Called before the answer."""
        return expectation


async def listen(
    node: Node, bound: socket.socket, patience: Patience | None = None, stop_s: float = 1.0
) -> web.AppRunner:
    """Serve a node's API on a bound socket until the runner's `cleanup`, which gives requests `stop_s` to be answered.

    A caller that goes away takes its request with it, and one that dawdles is cut off.
    """
    reception = Reception(patience)
    runner = web.AppRunner(
        application(node, reception),
        access_log=None,
        shutdown_timeout=stop_s,
        handler_cancellation=True,
        lingering_time=reception.patience.linger_s,
        logger=_silence(),
    )
    await runner.setup()
    assert runner.server is not None
    reception.serve(runner.server)
    site = _Site(runner, bound, reception)
    await site.start()
    return runner


def _silence() -> logging.Logger:
    """For the library, which tells of every request that is none with a traceback; our guards tell of our faults."""
    quiet = logging.getLogger("meshnn.http.requests")
    quiet.setLevel(logging.CRITICAL)
    return quiet


class _Site(web.BaseSite):
    """A site whose connections come through a reception, and no more of them than there are descriptors for."""

    def __init__(self, runner: web.AppRunner, bound: socket.socket, reception: Reception) -> None:
        super().__init__(runner)
        self._bound = bound
        self._reception = reception
        self._tasks = TaskSet("http")
        self._acceptor = Acceptor(self._let_in, lambda error: _log.warning("http_not_accepting", reason=error))

    @property
    def name(self) -> str:
        """For people."""
        host, port = self._bound.getsockname()
        return f"http://{host}:{port}"

    async def start(self) -> None:
        """Accept from now on."""
        await super().start()
        self._bound.setblocking(False)
        self._acceptor.open([self._bound])

    async def stop(self) -> None:
        """Accept no more."""
        self._acceptor.close()
        await self._tasks.stop()
        await super().stop()

    def _let_in(self, connection: socket.socket, host: str) -> None:
        self._tasks.spawn(self._welcome(connection), host)

    async def _welcome(self, connection: socket.socket) -> None:
        try:
            await asyncio.get_running_loop().connect_accepted_socket(self._reception, connection)
        except OSError as error:  # gone already
            _log.debug("http_caller_gone", reason=str(error))
            connection.close()
