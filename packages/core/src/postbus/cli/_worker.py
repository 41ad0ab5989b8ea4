"""`postbus worker`: receive and handle messages."""

from __future__ import annotations

import os
import sys
import threading
from typing import TYPE_CHECKING, Any

import attrs
import click

from postbus.cli._logs import LEVELS, log_to_stderr
from postbus.cli._processes import Processes
from postbus.cli._state import State, common_options, pass_state
from postbus.settings import WorkerSettings
from postbus.worker import Limits

if TYPE_CHECKING:
    from postbus.worker import Worker

__all__ = ["worker"]

_UNITS = {"k": 1024, "m": 1024**2, "g": 1024**3}


def _size(text: str) -> int:
    """Return a number of bytes: of `1048576`, `512M`, `2G`."""
    words = text.lower()
    number, unit = (words[:-1], words[-1]) if words[-1:] in _UNITS else (words, "")
    if not (number.isascii() and number.isdigit()):
        msg = f"{text!r}: expected a number of bytes, or one with K, M or G"
        raise click.BadParameter(msg)
    return int(number) * _UNITS.get(unit, 1)


@click.command()
@click.argument("consumers", metavar="[CONSUMER]...", nargs=-1)
@click.option(
    "--max-messages",
    type=click.IntRange(min=0),
    metavar="N",
    help="End after that many messages.",
)
@click.option(
    "--max-runtime",
    type=click.FloatRange(min=0),
    metavar="SECONDS",
    help="End after that many seconds.",
)
@click.option(
    "--max-memory",
    "max_memory_bytes",
    type=_size,
    metavar="BYTES",
    help="End when the process holds more; K, M and G are understood.",
)
@click.option(
    "--stop-when-empty/--keep-waiting", default=None, help="Whether to end when nothing waits."
)
@click.option("--stop-on-error/--go-on", default=None, help="Whether to end when a message fails.")
@click.option(
    "--processes",
    type=click.IntRange(min=1),
    metavar="N",
    default=1,
    show_default=True,
    help="Run that many of them; one that is killed is started again.",
)
@click.option(
    "--log-level",
    type=click.Choice(LEVELS),
    default="info",
    show_default=True,
    help="What to write to standard error.",
)
@click.option("--supervised", is_flag=True, hidden=True)
@common_options()
@pass_state
def worker(
    state: State,
    /,
    consumers: tuple[str, ...],
    processes: int,
    log_level: str,
    *,
    supervised: bool,
    **limits: Any,
) -> None:
    """Receive messages and handle them, until told to stop.

    Of all consumers in the configuration, or of those named. The options take the place of those
    in [postbus.worker]; 0 is a value.

    SIGTERM and SIGINT: receive no more, finish what has begun, exit with 0; a second one ends at
    once. SIGUSR2 pauses, SIGCONT goes on. It exits with 1 when a message failed that was to end
    it, with 4 when a consumer cannot work as it is configured.
    """
    log_to_stderr(log_level, as_json=state.as_json)
    if processes > 1:
        arguments = [*_common(state), "worker", *_given(consumers, log_level, limits)]
        command = [sys.executable, "-m", "postbus.cli", *arguments, "--supervised"]
        click.get_current_context().exit(Processes(command, processes).run())
    with state.opened() as postbus:
        settings = postbus.project().settings.worker
        made = postbus.worker(limits=_limits(settings, limits), consumers=consumers or None)
        if supervised:
            threading.Thread(target=_stop_with_parent, args=(made,), daemon=True).start()
        made.run()


def _limits(settings: WorkerSettings, given: dict[str, Any]) -> Limits:
    """Return the limits of the configuration, with what was given in their place."""
    own = {field.name: getattr(settings, field.name) for field in attrs.fields(Limits)}
    return Limits(**own | {key: value for key, value in given.items() if value is not None})


def _stop_with_parent(made: Worker) -> None:
    # The supervisor holds the other end of our standard input: it ends when the supervisor does.
    os.read(0, 1)
    made.stop()


def _common(state: State) -> list[str]:
    pairs = (("--app", state.app), ("--config", state.config))
    words = [word for name, value in pairs if value is not None for word in (name, value)]
    return [*words, "--json"] if state.as_json else words


def _given(consumers: tuple[str, ...], log_level: str, limits: dict[str, Any]) -> list[str]:
    """Return what was given as arguments of another process."""
    words = ["--log-level", log_level]
    for name, value in limits.items():
        option = f"--{name.removesuffix('_bytes').replace('_', '-')}"
        if isinstance(value, bool):
            words.append(option if value else _OPPOSITES[name])
        elif value is not None:
            words += [option, str(value)]
    return [*words, *consumers]


_OPPOSITES = {"stop_when_empty": "--keep-waiting", "stop_on_error": "--go-on"}
