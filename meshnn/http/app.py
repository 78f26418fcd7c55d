"""The application of one node: the guards and every protocol family."""

from __future__ import annotations

from aiohttp import web

from meshnn.http.guard import errors, expectation, same_machine
from meshnn.http.native import Native
from meshnn.input_file import INPUT_BYTES_MAX
from meshnn.node.driver import Node


def application(node: Node) -> web.Application:
    """The routes of a node behind its guards."""
    app = web.Application(middlewares=[errors, same_machine], client_max_size=INPUT_BYTES_MAX + 1024)
    app.add_routes(
        web.RouteDef(one.method, one.path, one.handler, {**one.kwargs, "expect_handler": expectation})
        for one in Native(node).routes()
    )
    return app
