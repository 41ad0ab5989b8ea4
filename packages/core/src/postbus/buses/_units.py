"""A unit of work around the bodies of a plan, where one is needed and none is open."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from postbus.errors import PostbusError
from postbus.unit import arun_in_unit, current_unit, raise_unsent, run_in_unit

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from postbus.messages import Envelope
    from postbus.pipeline import Failures
    from postbus.unit import Opener

    Bodies = tuple[Callable[..., Any], Callable[..., Coroutine[Any, Any, Any]]]


def in_unit(
    bodies: Bodies,
    opener: Opener | None,
    failures: Failures,
    envelope_of: Callable[[Any, Envelope | None], Envelope],
    *,
    kept: bool = False,
) -> Bodies:
    """Return *bodies* so that they join the open unit, or run in one of their own.

    *kept* bodies are those of received messages that an inbox knows: what stands in the place
    of options is the `Receipt`, and the unit is always their own.

    What beginning or committing raises is wrapped as the handler's failure; what the bodies
    raise passes as it is.
    """
    body, abody = bodies

    def seen(error: Exception, inside: Exception | None, message: Any, envelope: Any) -> Exception:
        if error is inside or isinstance(error, PostbusError):
            return error
        return failures.wrap(error, envelope_of(message, envelope))

    def run(message: Any, envelope: Any = None, options: Any = None) -> Any:
        if not kept and _joins(opener):
            return body(message, envelope, options)
        inside: Exception | None = None

        def work() -> Any:
            nonlocal inside
            try:
                return body(message, envelope, options)
            except Exception as error:
                inside = error
                raise

        try:
            result, unsent = run_in_unit(opener, work, options if kept else None)
        except Exception as error:  # noqa: BLE001  raised again, wrapped
            raise seen(error, inside, message, envelope)  # noqa: B904  its cause is set
        finally:
            inside = None
        raise_unsent(unsent)
        return result

    async def arun(message: Any, envelope: Any = None, options: Any = None) -> Any:
        if not kept and _joins(opener):
            return await abody(message, envelope, options)
        inside: Exception | None = None

        async def work() -> Any:
            nonlocal inside
            try:
                return await abody(message, envelope, options)
            except Exception as error:
                inside = error
                raise

        try:
            result, unsent = await arun_in_unit(opener, work, options if kept else None)
        except Exception as error:  # noqa: BLE001  raised again, wrapped
            raise seen(error, inside, message, envelope)  # noqa: B904  its cause is set
        finally:
            inside = None
        raise_unsent(unsent)
        return result

    return run, arun


def _joins(opener: Opener | None) -> bool:
    unit = current_unit()
    return unit is not None and (unit.transactional or opener is None)
