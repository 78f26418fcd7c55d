"""`meshnn join`: become a member of the mesh and stay."""

from __future__ import annotations

import os
import sys

import click

from meshnn import telemetry
from meshnn.config import load


@click.command("join", short_help="Join the mesh and serve until told to leave.")
@click.option("--name", help="What people call this device (default: the host name).")
@click.option("--mesh", help="The mesh to join (default: home).")
@click.option("--memory", help="Most memory for shards, e.g. 256MB (default: half of what there is).")
@click.option("--disk", help="Most disk for models, e.g. 2GB (default: half of what is free).")
@click.option("--threads", help="Threads of the runtime (default: the cores but one).")
@click.option("--peer", "peers", multiple=True, metavar="HOST:PORT", help="A node to call where multicast is blocked.")
@click.option("--state-dir", help="Where key, models and terms are kept.")
@click.option("--interface", help="The one address to use, e.g. 127.0.0.1 (default: every interface).")
@click.option("--port", help="Peers' port (default: 7766 or the next free one).")
@click.option("--http-port", help="Port of the HTTP API on this machine (default: 7767 or the next free one).")
@click.option("--log", help="debug, info, warning or error (default: info).")
@click.option("--config", help="A TOML file with these settings.")
def command(**flags: object) -> None:
    """Join the mesh: nothing to configure.

    Devices of one network find each other by themselves. The node prints one line when it is ready and serves
    until `meshnn leave`, Ctrl-C or SIGTERM.
    """
    from meshnn.http.daemon import run

    config = load(flags, os.environ)
    telemetry.configure(sys.stderr, config.log_level)
    run(config, _announce)


def _announce(line: str) -> None:
    click.echo(line)
    sys.stdout.flush()
