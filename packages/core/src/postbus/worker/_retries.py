"""When a failed message is handled again, and when it is given up."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import attrs

from postbus.errors import ListenersFailedError
from postbus.routers._patterns import glob

__all__ = ["NeverRetry", "Retries", "RetryPolicy", "RetryRule", "causes_of"]

_LONGEST_WAIT = 1e9


def _between(least: float, most: float) -> Callable[[Any, attrs.Attribute[float], float], None]:
    def check(_: Any, attribute: attrs.Attribute[float], value: float) -> None:
        if not least <= value <= most:
            msg = f"{attribute.name} must be from {least:g} to {most:g}, got {value!r}"
            raise ValueError(msg)

    return check


class NeverRetry(Exception):  # noqa: N818  a mark on an application's errors, no error of its own
    """Marks an exception class: a message that failed with one is given up at once.

    class CardDeclined(NeverRetry): ...
    """


@attrs.frozen(kw_only=True)
class RetryPolicy:
    """How often and when a failed message is handled again. Times are seconds.

    Args:
        max_attempts: in all, the first included.
        initial_delay: before the second attempt.
        multiplier: from one delay to the next.
        max_delay: the longest.
        jitter: the share of a delay, 0 to 1, by which chance shortens it, so that what failed
            together does not come back together.
    """

    max_attempts: int = attrs.field(default=5, validator=attrs.validators.ge(1))
    initial_delay: float = attrs.field(default=0.5, validator=_between(0.0, _LONGEST_WAIT))
    multiplier: float = attrs.field(default=2.0, validator=_between(1.0, 1000.0))
    max_delay: float = attrs.field(default=60.0, validator=_between(0.0, _LONGEST_WAIT))
    jitter: float = attrs.field(default=0.1, validator=_between(0.0, 1.0))

    def delay(self, attempt: int) -> float:
        """Return the seconds to wait after the failed *attempt*, the first being 1."""
        # Past a thousand doublings a float overflows; every longest delay is reached before.
        longest = self.initial_delay * self.multiplier ** min(attempt - 1, 64)
        share = 1.0 - self.jitter * random.random()  # noqa: S311  nothing secret about a delay
        return min(self.max_delay, longest) * share


@attrs.frozen(kw_only=True)
class RetryRule:
    """Another policy for some failures.

    Args:
        match: a glob over the names of messages, such as `shop.report.*`; None for every name.
        error: the exception that the handler raised is one of these; None for every one.
        policy: what to do then; None gives up at once.
    """

    match: str | None = None
    error: type[BaseException] | tuple[type[BaseException], ...] | None = None
    policy: RetryPolicy | None = None

    def fits(self, name: str, cause: BaseException) -> bool:
        """Tell whether it speaks of *cause* in handling *name*."""
        if self.match is not None and glob(self.match).fullmatch(name) is None:
            return False
        return self.error is None or isinstance(cause, self.error)


class Retries:
    """The policies of one consumer: the first rule that fits, else its own."""

    def __init__(self, policy: RetryPolicy | None, rules: Sequence[RetryRule]) -> None:
        self._policy = policy
        self._rules = tuple(rules)

    def policy(self, name: str, causes: Sequence[BaseException]) -> RetryPolicy | None:
        """Return what goes for *name* that failed with *causes*; None gives up.

        Of several causes, listeners of one event, the first that may be tried again decides.
        """
        found = (self._policy_of(name, cause) for cause in causes)
        return next((each for each in found if each is not None), None)

    def _policy_of(self, name: str, cause: BaseException) -> RetryPolicy | None:
        if isinstance(cause, NeverRetry):
            return None
        rule = next((each for each in self._rules if each.fits(name, cause)), None)
        return self._policy if rule is None else rule.policy


def causes_of(error: BaseException) -> tuple[BaseException, ...]:
    """Return what handlers raised: the causes of one error, or of a group of them."""
    errors = error.exceptions if isinstance(error, ListenersFailedError) else (error,)
    return tuple(each.__cause__ or each for each in errors)
