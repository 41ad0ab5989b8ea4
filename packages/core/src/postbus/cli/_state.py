"""What the options that every command has were given as, and the application they name."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any, TypeVar

import attrs
import click

from postbus.cli._applications import open_application
from postbus.runtime import Postbus

__all__ = ["State", "common_options", "limit_option", "offset_option", "pass_state"]

F = TypeVar("F", bound=Callable[..., Any])


@attrs.define
class State:
    """The common options of one run; None and False where an option was not given."""

    app: str | None = None
    config: str | None = None
    as_json: bool = False

    @contextmanager
    def opened(self, *, buses: bool = True) -> Generator[Postbus]:
        """Give the application for the length of a block, and close it.

        Args:
            buses: whether the routes matter; without an `--app` they name services that nobody
                has, so a command that only looks into stores does without.

        Raises:
            UsageError: neither `--app` nor `--config` was given.
            ConfigurationError: what they name cannot be used.
        """
        if self.app is None and self.config is None:
            msg = "which application? give --app MODULE:NAME, --config FILE, or both"
            raise click.UsageError(msg)
        with open_application(self.app, self.config, buses=buses) as postbus:
            yield postbus


def limit_option(default: int) -> Callable[[F], F]:
    """Return the option that bounds a list."""
    return click.option(
        "--limit",
        type=click.IntRange(min=1),
        metavar="N",
        default=default,
        show_default=True,
        help="At most that many.",
    )


offset_option = click.option(
    "--offset",
    type=click.IntRange(min=0),
    metavar="N",
    default=0,
    show_default=True,
    help="Leave out the first.",
)
pass_state = click.make_pass_decorator(State, ensure=True)


def _remember(context: click.Context, parameter: click.Parameter, value: Any) -> None:
    # An option counts before the command and behind it; the one behind, read later, wins.
    if value and parameter.name is not None:
        setattr(context.ensure_object(State), parameter.name, value)


def common_options(*, from_environment: bool = False) -> Callable[[F], F]:
    """Return a decorator that gives a command the options that all have."""

    def variable(name: str) -> str | None:
        return f"POSTBUS_{name}" if from_environment else None

    def decorate(function: F) -> F:
        for option in (
            click.option(
                "--json",
                "as_json",
                is_flag=True,
                expose_value=False,
                callback=_remember,
                help="Print JSON, for programs.",
            ),
            click.option(
                "--config",
                metavar="FILE",
                envvar=variable("CONFIG"),
                expose_value=False,
                callback=_remember,
                help="A TOML, YAML or JSON file: the configuration.",
            ),
            click.option(
                "--app",
                metavar="MODULE:NAME",
                envvar=variable("APP"),
                expose_value=False,
                callback=_remember,
                help="The application: a container, a Postbus, or what returns one.",
            ),
        ):
            function = option(function)
        return function

    return decorate
