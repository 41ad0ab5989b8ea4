"""Checks of messages, before anything handles them."""

from __future__ import annotations

from types import CoroutineType
from typing import TYPE_CHECKING, Any

from postbus.errors import RoutingError, ValidationFailedError
from postbus.pipeline import Stage, label_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from postbus.pipeline import DispatchContext

    Validator = Callable[[Any], Any]


class ValidationPlugin:
    """Calls validators with a message before it is handled or sent, received ones included.

    A validator refuses a message by raising, or by returning False; then nothing handles it, and
    dispatch raises `ValidationFailedError` from what was raised. Validators run after guards, so
    what nobody may dispatch is not examined either. They are plain functions, usable from any
    thread.

    Args:
        validator: for every message.
        validators: by message class or name, for those messages; they run after *validator*.
    """

    def __init__(
        self,
        validator: Validator | None = None,
        validators: Mapping[type | str, Validator] | None = None,
    ) -> None:
        self._always = () if validator is None else (validator,)
        self._own = dict(validators or {})

    def attach(self, bus: Any) -> None:
        """Check the messages of *bus*: `bus.utilize(plugin)`."""
        bus.attach(Stage.INVOKE, self._validate)

    def _validate(self, context: DispatchContext) -> None:
        keys = (context.message.__class__, context.name)
        for validator in (*self._always, *(self._own[key] for key in keys if key in self._own)):
            self._ask(validator, context)

    def _ask(self, validator: Validator, context: DispatchContext) -> None:
        try:
            verdict = validator(context.message)
        except Exception as error:
            msg = f"{context.name} is not valid: {str(error) or type(error).__name__}"
            raise ValidationFailedError(msg, context.envelope) from error
        if verdict is False:
            msg = f"{context.name} is not valid: {label_of(validator)} refused it"
            raise ValidationFailedError(msg, context.envelope)
        if isinstance(verdict, CoroutineType):
            verdict.close()
            msg = f"{label_of(validator)} is asynchronous, and validators are plain functions"
            raise RoutingError(msg, context.envelope)
