"""The listeners of one event: who runs, in which unit, and what is reported."""

from __future__ import annotations

from functools import partial
from operator import length_hint
from types import CoroutineType
from typing import TYPE_CHECKING, Any, NoReturn, cast

import attrs

from postbus.errors import ListenersFailedError, TransportError
from postbus.pipeline._calls import checked, is_awaitable
from postbus.pipeline._invocations import Bare, Invocation, limited
from postbus.pipeline._sending import SendOptions
from postbus.unit import arun_in_unit, current_unit, raise_unsent, run_in_unit

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence

    from postbus.messages import Envelope
    from postbus.pipeline._calls import Call, Failures
    from postbus.pipeline._invocations import Function, MakeEnvelope
    from postbus.unit import Opener, Receipt

    InThread = Callable[..., Awaitable[Any]]

# Among the ids of finished listeners: the event was sent, so dispatching it again sends nothing.
SENT = "(sent)"


@attrs.define
class _Report:
    """What came of the listeners of one dispatch."""

    failed: list[tuple[str, Exception]] = attrs.Factory(list[tuple[str, Exception]])
    done: list[str] = attrs.Factory(list[str])
    unsent: list[Exception] = attrs.Factory(list[Exception])


@attrs.frozen
class Listeners:
    """Runs the listeners of one event, in route order, and reports on them.

    Outside an open transaction each listener is a unit of its own, where *opener* is set; inside
    one they are part of it. *sending* sends the event as well, after them.
    """

    name: str
    calls: tuple[Call, ...]
    ids: tuple[str, ...]
    opener: Opener | None
    stops: bool
    failures: Failures
    envelope_of: MakeEnvelope
    in_thread: InThread
    sending: Invocation | None = None

    def invocation(self, shown: Any) -> Invocation:
        """Return the invocation."""
        is_simple = self.opener is None and self.sending is None
        bare = self._quick() if is_simple else None
        return Invocation(
            self.name,
            self.run if bare is None else self._run_quick(bare),
            self._aquick()
            if is_simple and not any(c.is_special for c in self.calls)
            else self.arun,
            shown,
            tuple(c.function for c in self.calls),
            bare=bare,
            blocker=next((c.label for c in self.calls if c.is_async), None),
            sends=self.sending is not None,
            threads=False if any(c.threads is False for c in self.calls) else None,
        )

    def _quick(self) -> Bare:
        """Return the listeners for the common case: no units, and nothing done before."""
        functions = tuple(checked(c) for c in self.calls) or (_nobody,)

        def fail(message: Any, error: Exception, remaining: int) -> NoReturn:
            self._run_after(len(functions) - remaining, error, message)

        return Bare(functions, self.name, fail)

    def _run_quick(self, bare: Bare) -> Callable[..., None]:
        """Return `run` for the common case, which may turn out not to be this time."""

        def run(message: Any, envelope: Envelope | None = None, options: Any = None) -> None:
            if envelope is not None and (options is not None or "done" in envelope.headers):
                self.run(message, envelope, options)
                return
            remaining = iter(bare.functions)
            for function in remaining:
                try:
                    function(message)
                except Exception as error:  # noqa: BLE001  the others still run; raised with theirs
                    reached = len(self.calls) - length_hint(remaining)
                    self._run_after(reached, error, message, envelope)

        return run

    def _run_after(
        self,
        reached: int,
        error: Exception,
        message: Any,
        envelope: Envelope | None = None,
    ) -> NoReturn:
        """Run the listeners after the first *reached*, the last of which raised *error*."""
        *done, failed = self.ids[:reached]
        report = _Report(failed=[(failed, error)], done=done)
        if not self.stops:
            self._run_each(self._listeners()[reached:], message, report)
        self._raise(report, message, envelope)

    def _aquick(self) -> Callable[..., Coroutine[Any, Any, None]]:
        """Return `arun` for the common case: as `_quick`, and no threads or time-outs.

        One listener takes a way of its own, since a loop costs half of what it does.
        """
        first, *rest = [c.acall for c in self.calls] or [_nobody]
        others = tuple(rest)

        async def arun(
            message: Any,
            envelope: Envelope | None = None,
            options: Any = None,
        ) -> None:
            if envelope is not None and (options is not None or "done" in envelope.headers):
                await self.arun(message, envelope, options)
                return
            remaining: Iterable[Function] = others
            try:
                result = first(message)
                if result.__class__ is CoroutineType or is_awaitable(result):
                    await result
                if others:
                    # Counting would cost every dispatch; the iterator knows where it is.
                    remaining = iter(others)
                    for function in remaining:
                        result = function(message)
                        if result.__class__ is CoroutineType or is_awaitable(result):
                            await result
            except Exception as error:  # noqa: BLE001  the others still run; raised with theirs
                reached = len(self.ids) - length_hint(remaining)
                *done, failed = self.ids[:reached]
                report = _Report(failed=[(failed, error)], done=done)
                if not self.stops:
                    await self._arun_each(self._listeners()[reached:], message, report)
                self._raise(report, message, envelope)

        return arun

    def _listeners(self) -> list[tuple[str, Call]]:
        return list(zip(self.ids, self.calls, strict=True))

    def _pending(self, envelope: Envelope | None, report: _Report) -> list[tuple[str, Call]]:
        if envelope is not None:
            before = envelope.headers.get("done", ())
            report.done = [i for i in (*self.ids, SENT) if i in before]
        return [(i, c) for i, c in self._listeners() if i not in report.done]

    def _own_units(self) -> bool:
        if self.opener is None:
            return False
        unit = current_unit()
        return unit is None or not unit.transactional

    def run(self, message: Any, envelope: Envelope | None = None, options: Any = None) -> None:
        """Call every listener that has not finished yet, then send; raise for all that failed."""
        report = _Report()
        receipt = _receipt_in(options)
        self._run_each(self._pending(envelope, report), message, report, receipt)
        if self.sending is not None and self._sends_now(report):
            envelope = self.envelope_of(message, envelope)
            try:
                self.sending.call(message, envelope, options)
                report.done.append(SENT)
            except Exception as error:  # noqa: BLE001  raised with what else went wrong
                report.unsent.append(error)
        if report.failed or report.unsent:
            self._raise(report, message, envelope)

    def _run_each(
        self,
        pending: Sequence[tuple[str, Call]],
        message: Any,
        report: _Report,
        receipt: Receipt | None = None,
    ) -> None:
        own = self._own_units()
        for id_, call in pending:
            kept = None if receipt is None else receipt.of(id_)
            try:
                unsent = self._run_one(call, message, own=own, receipt=kept)
                self._finished(id_, unsent, report, kept)
            except Exception as error:  # noqa: BLE001  every listener runs; raised together
                report.failed.append((id_, error))
                if self.stops:
                    break

    @staticmethod
    def _finished(
        id_: str, unsent: Sequence[TransportError], report: _Report, receipt: Receipt | None
    ) -> None:
        report.unsent += unsent
        # What an inbox holds until it has left is sent when the listener's turn comes again.
        if receipt is None or not unsent:
            report.done.append(id_)

    def _run_one(
        self, call: Call, message: Any, *, own: bool, receipt: Receipt | None
    ) -> Sequence[TransportError]:
        """Return what could not be sent after the commit of the listener's own unit."""
        work = partial(checked(call), message)
        if own or receipt is not None:
            return run_in_unit(self.opener, work, receipt)[1]
        work()
        return ()

    async def arun(
        self,
        message: Any,
        envelope: Envelope | None = None,
        options: Any = None,
    ) -> None:
        """Do what `run` does, awaiting asynchronous listeners in turn."""
        report = _Report()
        receipt = _receipt_in(options)
        await self._arun_each(self._pending(envelope, report), message, report, receipt)
        if self.sending is not None and self._sends_now(report):
            envelope = self.envelope_of(message, envelope)
            try:
                await self.sending.acall(message, envelope, options)
                report.done.append(SENT)
            except Exception as error:  # noqa: BLE001  raised with what else went wrong
                report.unsent.append(error)
        if report.failed or report.unsent:
            self._raise(report, message, envelope)

    async def _arun_each(
        self,
        pending: Sequence[tuple[str, Call]],
        message: Any,
        report: _Report,
        receipt: Receipt | None = None,
    ) -> None:
        own = self._own_units()
        for id_, call in pending:
            kept = None if receipt is None else receipt.of(id_)
            try:
                unsent = await self._arun_one(call, message, own=own, receipt=kept)
                self._finished(id_, unsent, report, kept)
            except Exception as error:  # noqa: BLE001  every listener runs; raised together
                report.failed.append((id_, error))
                if self.stops:
                    break

    async def _arun_one(
        self, call: Call, message: Any, *, own: bool, receipt: Receipt | None
    ) -> Sequence[TransportError]:
        if call.threads and current_unit() is None:
            work = partial(self._run_one, call, message, own=own, receipt=receipt)
            return cast("Sequence[TransportError]", await self.in_thread(work))
        if own or receipt is not None:
            return (await arun_in_unit(self.opener, partial(_acall, call, message), receipt))[1]
        await _acall(call, message)
        return ()

    def _sends_now(self, report: _Report) -> bool:
        return SENT not in report.done and not (report.failed and self.stops)

    def _raise(self, report: _Report, message: Any, envelope: Envelope | None) -> NoReturn:
        """Raise the one error for *report*, with an envelope that runs only the others again."""
        envelope = self.envelope_of(message, envelope)
        done = [i for i in (*self.ids, SENT) if i in report.done]
        again = envelope.evolve(headers={**envelope.headers, "done": done})
        unsent = report.unsent
        for error in unsent:
            if isinstance(error, TransportError) and error.envelope is envelope:
                error.envelope = again
        if not report.failed:
            raise_unsent(unsent)
        wrapped = [self.failures.wrap(error, envelope) for _, error in report.failed]
        bad = [id_ for id_, _ in report.failed]
        text = f"{len(bad)} of {len(self.ids)} listeners of {self.name} failed"
        if unsent:
            text += f", and {len(unsent)} sends: {unsent[0]}"
        ids = [i for i in done if i != SENT]
        failure = ListenersFailedError(text, wrapped, again, bad, ids)
        raise failure from (unsent[0] if unsent else None)


def _nobody(message: Any) -> None:
    """Listen in place of listeners, where an event has none."""


def _receipt_in(options: SendOptions | Receipt | None) -> Receipt | None:
    """Return what a worker gave in the place of options, which a received event has none of."""
    return None if isinstance(options, SendOptions) else options


async def _acall(call: Call, message: Any) -> None:
    result = call.acall(message)
    if is_awaitable(result):
        await (result if call.timeout is None else limited(result, call.timeout, call.label))
