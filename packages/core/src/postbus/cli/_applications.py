"""From `--app` and `--config` to a `Postbus`."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Generator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, cast

from postbus.config import load
from postbus.errors import ConfigurationError, Problem
from postbus.runtime import Postbus, build
from postbus.settings import mask

__all__ = ["open_application"]

# A function may return a context manager that gives a container: no application needs more.
_DEEPEST = 5
_WITHOUT_SERVICES = ("messages", "producers", "consumers", "stores")


@contextmanager
def open_application(
    app: str | None, config: str | None, *, buses: bool = True
) -> Generator[Postbus]:
    """Give the `Postbus` that *app* and *config* describe, and close everything behind it.

    Args:
        app: `module:name`, looked for in the current folder first: a `Postbus`, a container, the
            class of one, or a callable, also one that gives a context manager. None builds one
            from *config* alone, without services.
        config: the path of a file. A container gets it as its `config`, a callable as its
            argument.
        buses: whether to read the sections of the buses where there is no *app*.

    Raises:
        ConfigurationError: what is named is not there, or refuses its configuration.
    """
    with ExitStack() as stack:
        # Python itself does the same for a script; the console script stands elsewhere.
        sys.path.insert(0, str(Path.cwd()))
        stack.callback(sys.path.remove, sys.path[0])
        given = None if config is None else load(config)
        if app is not None:
            yield _open(_imported(app), app, given, stack)
            return
        assert given is not None  # noqa: S101  one of the two is given
        section: Any = given.get("postbus", given)
        if not buses and isinstance(section, Mapping):
            table = cast("Mapping[str, Any]", section)
            section = {key: table[key] for key in _WITHOUT_SERVICES if key in table}
        yield stack.enter_context(build(section))


def _imported(app: str) -> Any:
    module, _, name = app.partition(":")
    if not (module and name):
        raise _refused(app, "expected MODULE:NAME", "for example shop.application:Shop")
    try:
        found: Any = import_module(module)
    except Exception as error:
        said = f"cannot import it ({type(error).__name__}: {mask(str(error))})"
        raise _refused(app, said, "is the folder of the module the current one?") from error
    for part in name.split("."):
        if not hasattr(found, part):
            raise _refused(app, f"there is no {part!r} in it", "")
        found = getattr(found, part)
    return found


def _open(found: Any, app: str, config: Mapping[str, Any] | None, stack: ExitStack) -> Postbus:
    from postbus.containers._finding import is_container, open_container

    is_configured = False
    for _ in range(_DEEPEST):
        if isinstance(found, Postbus):
            if config is not None and not is_configured:
                raise _refused(app, "a Postbus has its configuration", "leave --config out")
            stack.callback(found.close)
            return found
        if is_container(found):
            postbus, close = open_container(found, None if is_configured else config)
            stack.callback(close)
            return postbus
        if isinstance(found, AbstractContextManager):
            found = stack.enter_context(cast("AbstractContextManager[Any]", found))
        elif callable(found):
            found, is_configured = _called(found, app, config), config is not None
        else:
            break
    expected = f"expected a Postbus, a container or a callable, it is a {type(found).__name__}"
    raise _refused(app, expected, "")


def _called(found: Callable[..., Any], app: str, config: Mapping[str, Any] | None) -> Any:
    parameters = inspect.signature(found).parameters.values()
    takes = any(p.kind in {p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD} for p in parameters)
    needs = any(
        p.default is p.empty and p.kind not in {p.VAR_POSITIONAL, p.VAR_KEYWORD}
        for p in parameters
    )
    if config is not None:
        if not takes:
            raise _refused(app, "it takes no configuration", "leave --config out")
        return found(config)
    if needs:
        raise _refused(app, "it wants a configuration", "give --config FILE")
    return found()


def _refused(app: str, expected: str, advice: str) -> ConfigurationError:
    return ConfigurationError([Problem("--app", repr(app), expected, advice)])
