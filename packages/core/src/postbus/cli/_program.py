"""The program: its commands, and the exit code that each kind of error has."""

from __future__ import annotations

from typing import Any

import click

from postbus.cli._checking import check
from postbus.cli._dispatching import query, send
from postbus.cli._failed import failed
from postbus.cli._output import show_error
from postbus.cli._queues import queues
from postbus.cli._routes import routes
from postbus.cli._scheduled import scheduled
from postbus.cli._state import State, common_options
from postbus.cli._topology import topology
from postbus.cli._transports import transports
from postbus.cli._worker import worker
from postbus.errors import ConfigurationError, PostbusError, TransportError
from postbus.settings import mask

__all__ = ["EXIT_CODES", "program"]

#: What the exit codes mean.
EXIT_CODES = {
    0: "done",
    1: "it failed: a message, one of several ids, or `check` has found something",
    2: "the command line is wrong, or the JSON of a message",
    3: "the application or its configuration cannot be used",
    4: "a transport or a store cannot be reached, or refused",
}


class Program(click.Group):
    """The group of all commands, which turns errors of postbus into exit codes."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command that was asked for."""
        try:
            return super().invoke(ctx)
        except PostbusError as error:
            as_json = ctx.ensure_object(State).as_json
            kind = type(error).__name__
            if isinstance(error, ConfigurationError):
                # Its problems hold no secrets, and paths that are worth reading in full.
                show_error(str(error), as_json=as_json, kind=kind)
                ctx.exit(3)
            show_error(mask(str(error)), as_json=as_json, kind=kind)
            ctx.exit(4 if isinstance(error, TransportError) else 1)


@click.group(cls=Program, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="postbus", prog_name="postbus")
@common_options(from_environment=True)
def program() -> None:
    """Work with the messages of an application.

    Every command takes --app, --config and --json, before its name or behind it; the first two
    may also come from the variables POSTBUS_APP and POSTBUS_CONFIG.
    """


for _command in (
    worker,
    send,
    query,
    routes,
    check,
    failed,
    scheduled,
    queues,
    topology,
    transports,
):
    program.add_command(_command)
