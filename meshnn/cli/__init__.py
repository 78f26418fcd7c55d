"""The command line: click, with every command imported only when it is called."""

from __future__ import annotations

import importlib
import sys

import click

from meshnn import __version__
from meshnn.errors import MeshError

COMMANDS = {
    "join": "meshnn.cli.join",
    "leave": "meshnn.cli.leave",
    "ask": "meshnn.cli.ask",
    "status": "meshnn.cli.status",
    "models": "meshnn.cli.models",
    "plan": "meshnn.cli.plan",
    "bench": "meshnn.cli.bench",
}
SIGINT_EXIT = 130
EPILOG = (
    "Exit codes: 0 ok, 1 failure, 2 usage, 3 no node or mesh, 4 model unknown or invalid, 5 no plan fits, "
    "6 deadline, 7 input unreadable, 130 interrupted, 143 terminated."
)


class _Lazy(click.Group):
    """A group whose commands are modules."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The commands in the order of use."""
        del ctx
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of a name, imported now."""
        del ctx
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(COMMANDS[cmd_name]).command
        return command


@click.group(cls=_Lazy, epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="meshnn")
def group() -> None:
    """Devices of one home, lab or factory run neural networks together."""


def main() -> None:
    """Run the command line: an error is one line on stderr and its exit code."""
    try:
        code = group.main(prog_name="meshnn", standalone_mode=False)
    except click.exceptions.Abort:
        sys.exit(SIGINT_EXIT)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except MeshError as error:
        click.echo(f"meshnn: {error}", err=True)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(SIGINT_EXIT)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(1)
    sys.exit(code if isinstance(code, int) else 0)
