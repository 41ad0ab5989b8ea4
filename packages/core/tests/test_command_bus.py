"""The command bus: one handler, the queue of nested commands, and what is sent."""

from __future__ import annotations

import asyncio
import threading
from datetime import UTC, datetime, timedelta
from functools import partial, wraps
from typing import TYPE_CHECKING, Any

import attrs
import pytest

from postbus.buses import CommandBus
from postbus.catalog import MessageCatalog
from postbus.errors import (
    ClosedError,
    CommandDispatchError,
    ConnectionFailedError,
    EncodeError,
    HandlerFailedError,
    MetadataError,
    NoHandlerError,
    RoutingError,
    TimedOutError,
    TransportError,
    UnsupportedError,
)
from postbus.messages import Command, Envelope, Event, MessageKind
from postbus.pipeline import Target
from postbus.plugins import ServiceLocatorPlugin
from postbus.routers import CommandRouter
from postbus.testing import RecordingProducer
from postbus.transports import AsyncMessageProducer, Capabilities, MessageProducer
from postbus.unit import Lifetime
from postbus.wire import encode

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Generator, Sequence

    from postbus.transports import WireMessage

A_ID = "11111111-2222-4333-8444-555555555555"


@attrs.frozen
class Place(Command, name="shop.place", key="order"):
    order: int = 1


@attrs.frozen
class Mail(Command, name="shop.mail"):
    to: str = "someone"


@attrs.frozen
class Placed(Event, name="shop.placed"):
    pass


class OutOfStockError(Exception):
    code = "out-of-stock"


def make(routes: dict[Any, Any], send: dict[Any, Any] | None = None, **options: Any) -> CommandBus:
    bus = CommandBus(**options)
    bus.utilize(CommandRouter(routes, send))
    return bus


def ways(bus: CommandBus) -> list[Callable[..., None]]:
    """Return dispatch in both colours."""
    return [bus.dispatch, lambda message, **o: asyncio.run(bus.adispatch(message, **o))]


def nothing(message: object) -> None: ...


def fail(message: object) -> None:
    raise OutOfStockError("none left")


async def anothing(message: object) -> None: ...


class TestDispatch:
    def test_the_one_handler_is_called_with_the_command(self) -> None:
        """The handler gets the command, dispatch returns nothing, in both colours (B20)."""
        got: list[object] = []

        async def handle(message: object) -> str:
            await asyncio.sleep(0)
            got.append(message)
            return "an answer nobody gets"

        bus = make({Place: got.append, Mail: handle})
        command, mail = Place(1), Mail()
        assert bus.dispatch(command) is None  # type: ignore[func-returns-value]
        asyncio.run(bus.adispatch(command))
        asyncio.run(bus.adispatch(mail))
        assert [command, command, mail] == got
        assert command is got[0]

    @pytest.mark.parametrize(
        ("message", "name"),
        [
            (Place(), "shop.place"),
            ("shop.text", "shop.text"),
            ("", "builtins.str"),
            ([], "list"),
            ({}, "dict"),
            (0, "int"),
            (None, "NoneType"),
            (OutOfStockError(), f"{__name__}.OutOfStockError"),
        ],
    )
    def test_anything_is_a_message_falsy_ones_too(self, message: Any, name: str) -> None:
        """Its name, its class's, or the text itself leads to the handler (B04, B06, T02)."""
        got: list[object] = []
        bus = CommandBus()
        router = CommandRouter()
        bus.utilize(router)
        if message != "":
            router.route(name).to(got.append)
            bus.dispatch(message)
            asyncio.run(bus.adispatch(message))
            assert [message, message] == got
        else:
            with pytest.raises(NoHandlerError):
                bus.dispatch(message)

    def test_an_object_may_say_its_own_name(self) -> None:
        """`message_name` of an instance beats its class, and is asked for each message (B04)."""

        class Named:
            def __init__(self, name: object) -> None:
                self.message_name = name

        got: list[object] = []
        bus = make({"shop.one": lambda m: got.append(1), "shop.two": lambda m: got.append(2)})
        for name in ("shop.one", "shop.two", "shop.one"):
            bus.dispatch(Named(name))
        assert [1, 2, 1] == got
        with pytest.raises(NoHandlerError, match="Named"):
            bus.dispatch(Named(5))

    def test_a_catalogue_names_classes_that_declare_nothing(self) -> None:
        """What the catalogue calls a class is what routes go by."""
        catalog = MessageCatalog()
        catalog.add(OutOfStockError, name="shop.oops", kind=MessageKind.COMMAND)
        got: list[object] = []
        bus = make({"shop.oops": got.append}, catalog=catalog)
        bus.dispatch(OutOfStockError())
        assert len(got) == 1

    def test_a_command_without_handler_is_an_error(self) -> None:
        """It is named, with its envelope where there is one, in both colours (B21)."""
        bus = make({})
        with pytest.raises(NoHandlerError, match=r"handles the command shop\.place") as caught:
            bus.dispatch(Place(), id=A_ID)
        assert caught.value.envelope is not None
        assert A_ID == caught.value.envelope.id
        with pytest.raises(NoHandlerError):
            asyncio.run(bus.adispatch(Place()))

    def test_an_object_that_nothing_invokes_is_refused(self) -> None:
        """A handler that cannot be called is named (B22)."""
        with pytest.raises(RoutingError, match=r"builtins\.object is not callable"):
            make({Place: object()}).dispatch(Place())

    def test_an_id_that_nothing_answers_to_is_refused(self) -> None:
        """The error names the route and the id (T04, B33)."""
        with pytest.raises(
            RoutingError, match=r"routes\['shop\.place'\]: nothing answers.*'nobody'"
        ):
            make({Place: "nobody"}).dispatch(Place())

    def test_a_service_that_cannot_be_made_is_a_failure_that_may_pass(self) -> None:
        """What the service raises is wrapped, and the next dispatch tries again."""

        class Services:
            def __init__(self) -> None:
                self.errors = [OutOfStockError("later"), RoutingError("ours")]

            def has(self, id_: str, /) -> bool:
                return True

            def get(self, id_: str, /) -> Callable[[object], None]:
                if self.errors:
                    raise self.errors.pop(0)
                return nothing

            def lifetime(self, id_: str, /) -> Any:
                return Lifetime.ONCE

        bus = make({Place: "handler"})
        bus.utilize(ServiceLocatorPlugin(Services()))
        with pytest.raises(HandlerFailedError, match="could not be made: later") as caught:
            bus.dispatch(Place())
        assert caught.value.code == "out-of-stock"
        with pytest.raises(RoutingError, match="ours"):
            bus.dispatch(Place())
        bus.changed()
        bus.dispatch(Place())

    def test_two_routers_that_claim_one_command_are_refused(self) -> None:
        """Both routes are named, and the other commands are handled (T04)."""
        bus = make({Place: nothing, Mail: nothing})
        bus.utilize(CommandRouter({Place: nothing}))
        with pytest.raises(RoutingError, match="more than one route"):
            bus.dispatch(Place())
        bus.dispatch(Mail())

    def test_an_envelope_keeps_its_identity(self) -> None:
        """Dispatching an envelope is dispatching the same message again."""
        producer = RecordingProducer()
        bus = make({}, {Mail: producer})
        envelope = Envelope(Mail(), id=A_ID, metadata={"user": 7}, headers={"attempt": 2})
        bus.dispatch(envelope)
        bus.dispatch(envelope.evolve(received_from="somewhere"), metadata={"user": 8})
        catalog = MessageCatalog()
        catalog.add(Mail)
        first, second = producer.decoded(catalog)
        assert (A_ID, {"user": 7}, 2) == (first.id, dict(first.metadata), first.headers["attempt"])
        assert (A_ID, {"user": 8}) == (second.id, dict(second.metadata))
        assert first.created_at == second.created_at == envelope.created_at

    def test_bad_options_are_refused_at_dispatch(self) -> None:
        """Metadata, ids, priorities and times are checked before anything runs (T08)."""
        bus = make({Place: fail})
        with pytest.raises(MetadataError, match="user"):
            bus.dispatch(Place(), metadata={"user": None})
        refused: list[dict[str, Any]] = [
            {"id": "no id"},
            {"priority": 10},
            {"priority": -1},
            {"delay": -1.0},
            {"timeout": 0.0},
            {"delay": 1.0, "at": datetime.now(UTC)},
            {"at": datetime(2030, 1, 1)},  # noqa: DTZ001  naive on purpose
        ]
        for options in refused:
            with pytest.raises(ValueError, match=r"UUID|priority|delay|timeout|at"):
                bus.dispatch(Place(), **options)

    def test_options_that_say_nothing_change_nothing(self) -> None:
        """Options given as None are as if they were left out."""
        bus = make({Place: nothing})
        bus.dispatch(Place(), id=None, metadata=None, timeout=None, key=None, priority=None)


class TestFailure:
    def test_what_a_handler_raises_is_wrapped(self) -> None:
        """Code, message and envelope for the caller, the original as its cause (B08)."""
        bus = make({Place: fail})
        for run in ways(bus):
            with pytest.raises(HandlerFailedError) as caught:
                run(Place(), id=A_ID)
            error = caught.value
            assert ("out-of-stock", "none left") == (error.code, error.message)
            assert isinstance(error.__cause__, OutOfStockError)
            assert error.envelope is not None
            assert (A_ID, "shop.place") == (error.envelope.id, error.envelope.name)

    def test_codes_come_from_the_configuration_first(self) -> None:
        """A registered class gives its code to subclasses; else the exception's, else "error"."""

        class SoldOutError(OutOfStockError): ...

        class Odd(Exception):  # noqa: N818
            code = 7

        def codes(error: Exception, **options: Any) -> str:
            def handler(message: object) -> None:
                raise error

            with pytest.raises(HandlerFailedError) as caught:
                make({Place: handler}, **options).dispatch(Place())
            return caught.value.code

        assert codes(SoldOutError("x"), errors={OutOfStockError: "registered"}) == "registered"
        assert codes(SoldOutError("x")) == "out-of-stock"
        assert codes(Odd()) == "error"
        assert codes(KeyError("x")) == "error"

    def test_an_error_without_text_is_called_by_its_class(self) -> None:
        """The message of the wrapped error is never empty."""

        def handler(message: object) -> None:
            raise ValueError

        with pytest.raises(HandlerFailedError, match="ValueError"):
            make({Place: handler}).dispatch(Place())

    def test_a_nested_buss_failure_keeps_its_code(self) -> None:
        """A handler that lets another bus's failure pass fails with the same code."""
        inner = make({Mail: fail})
        with pytest.raises(HandlerFailedError) as caught:
            make({Place: lambda m: inner.dispatch(Mail())}).dispatch(Place())
        assert ("out-of-stock", "none left") == (caught.value.code, caught.value.message)

    def test_sync_and_async_errors_of_async_handlers_are_wrapped(self) -> None:
        """An asynchronous handler's error is wrapped, with or without options."""

        async def handler(message: object) -> None:
            await asyncio.sleep(0)
            fail(message)

        bus = make({Place: handler})
        cases: list[dict[str, Any]] = [{}, {"id": A_ID}, {"priority": 3}]
        for options in cases:
            with pytest.raises(HandlerFailedError):
                asyncio.run(bus.adispatch(Place(), **options))


class TestColours:
    def test_dispatch_refuses_an_async_handler_by_name(self) -> None:
        """Nothing is called and no coroutine is lost, whatever makes it asynchronous."""

        class Caller:
            async def __call__(self, message: object) -> None: ...

        for handler, name in (
            (anothing, "anothing"),
            (partial(anothing), "anothing"),
            (Caller(), "Caller"),
        ):
            with pytest.raises(RoutingError, match=rf"{name} is asynchronous.*use adispatch"):
                make({Place: handler}).dispatch(Place())
            asyncio.run(make({Place: handler}).adispatch(Place()))

    def test_dispatch_refuses_a_coroutine_nobody_saw_coming(self) -> None:
        """A lambda, a decorated function or a plain def that returns a coroutine is refused."""

        def decorated(function: Callable[..., Any]) -> Callable[..., Any]:
            @wraps(function)
            def call(message: object) -> Any:
                return function(message)

            return call

        def plain(message: object) -> Any:
            return anothing(message)

        for handler in (lambda m: (m, anothing(m))[1], decorated(anothing), plain):
            with pytest.raises(RoutingError, match="returned a coroutine"):
                make({Place: handler}).dispatch(Place())
            asyncio.run(make({Place: handler}).adispatch(Place()))

    def test_a_generator_function_is_no_handler(self) -> None:
        """Calling one runs nothing of it, so it is refused rather than silently skipped."""

        def generator(message: object) -> Generator[None]:
            yield

        async def agenerator(message: object) -> AsyncGenerator[None]:
            yield

        for handler in (generator, agenerator):
            with pytest.raises(RoutingError, match="is a generator function"):
                make({Place: handler}).dispatch(Place())

    def test_a_plain_answer_that_is_no_coroutine_is_let_go(self) -> None:
        """A handler may return what it likes; nobody gets it."""
        make({Place: lambda m: 5}).dispatch(Place())

    def test_a_class_handles_by_being_called(self) -> None:
        """A class is a callable like others: it is no asynchronous one for its `__call__`."""

        class Handler:
            def __init__(self, message: object) -> None: ...

            async def __call__(self) -> None: ...

        make({Place: Handler}).dispatch(Place())


class TestNested:
    @pytest.mark.parametrize("colour", ["sync", "async"])
    def test_nested_commands_wait_for_the_handler_in_order(self, colour: str) -> None:
        """First in, first out, behind the handler, before the outer dispatch returns (B23)."""
        log: list[str] = []
        bus = CommandBus()

        def outer(message: object) -> None:
            for text in ("shop.a", "shop.b"):
                bus.dispatch(text)
            log.append("outer")

        def middle(message: str) -> None:
            log.append(message)
            if message == "shop.a":
                bus.dispatch("shop.c")

        bus.utilize(CommandRouter({"shop.outer": outer, "shop.*": middle}))
        if colour == "sync":
            bus.dispatch("shop.outer")
        else:
            asyncio.run(bus.adispatch("shop.outer"))
        assert ["outer", "shop.a", "shop.b", "shop.c"] == log

    def test_a_sync_dispatch_inside_adispatch_may_queue_an_async_command(self) -> None:
        """The outermost dispatch runs it; under plain dispatch its turn is refused."""
        log: list[str] = []

        async def mail(message: object) -> None:
            await asyncio.sleep(0)
            log.append("mail")

        bus = CommandBus()
        bus.utilize(CommandRouter({Place: lambda m: bus.dispatch(Mail()), Mail: mail}))
        asyncio.run(bus.adispatch(Place()))
        assert ["mail"] == log
        with pytest.raises(RoutingError, match="mail is asynchronous"):
            bus.dispatch(Place())

    def test_inline_runs_a_nested_command_at_once(self) -> None:
        """`nested = "inline"` turns the queue off, in both colours."""
        log: list[str] = []
        bus = CommandBus(nested="inline")

        def outer(message: object) -> None:
            bus.dispatch(Mail())
            log.append("outer")

        bus.utilize(CommandRouter({Place: outer, Mail: lambda m: log.append("mail")}))
        bus.dispatch(Place())
        asyncio.run(bus.adispatch(Place()))
        assert ["mail", "outer"] * 2 == log

    @pytest.mark.parametrize("colour", ["sync", "async"])
    def test_pending_commands_come_back_once(self, colour: str) -> None:
        """After a failure they are in the error, in order, and gone from the bus (B24, T03)."""
        log: list[object] = []
        bus = CommandBus()

        def outer(message: object) -> None:
            bus.dispatch(Mail("first"))
            bus.dispatch(Mail("second"), id=A_ID)
            fail(message)

        bus.utilize(CommandRouter({Place: outer, Mail: log.append, "shop.x": log.append}))
        run = ways(bus)[colour == "async"]
        with pytest.raises(CommandDispatchError) as caught:
            run(Place())
        error = caught.value
        assert "out-of-stock" == error.code
        assert isinstance(error.__cause__, OutOfStockError)
        assert [Mail("first"), Mail("second")] == [e.message for e in error.pending]
        assert A_ID == error.pending[1].id
        run("shop.x")
        assert ["shop.x"] == log
        for envelope in error.pending:
            run(envelope)
        assert ["shop.x", Mail("first"), Mail("second")] == log

    def test_a_nested_failure_names_the_nested_command(self) -> None:
        """What failed is the nested command; those behind it are pending, whatever it raised."""
        bus = CommandBus()

        def outer(message: object) -> None:
            for text in ("shop.bad", "shop.later"):
                bus.dispatch(text)

        bus.utilize(CommandRouter({Place: outer, "shop.bad": fail, "shop.later": nothing}))
        with pytest.raises(CommandDispatchError) as caught:
            bus.dispatch(Place())
        assert caught.value.envelope is not None
        assert "shop.bad" == caught.value.envelope.name
        assert ["shop.later"] == [e.name for e in caught.value.pending]

    def test_pending_commands_come_back_after_errors_of_ours_as_well(self) -> None:
        """A nested command without handler loses nothing behind it, and stays the cause."""
        bus = CommandBus()

        def outer(message: object) -> None:
            bus.dispatch("shop.nobody")
            bus.dispatch(Mail())

        bus.utilize(CommandRouter({Place: outer}))
        with pytest.raises(CommandDispatchError) as caught:
            bus.dispatch(Place())
        assert isinstance(caught.value.__cause__, NoHandlerError)
        assert [Mail()] == [e.message for e in caught.value.pending]

    def test_a_failure_with_nothing_pending_is_a_plain_one(self) -> None:
        """Only pending commands make it a CommandDispatchError."""
        with pytest.raises(HandlerFailedError) as caught:
            make({Place: fail}).dispatch(Place())
        assert type(caught.value) is HandlerFailedError

    @pytest.mark.parametrize("colour", ["sync", "async"])
    def test_what_is_no_exception_passes_and_clears_the_queue(self, colour: str) -> None:
        """KeyboardInterrupt is not wrapped, and the next dispatch starts with nothing (B26)."""
        log: list[object] = []
        bus = CommandBus()

        def outer(message: object) -> None:
            bus.dispatch(Mail())
            raise KeyboardInterrupt

        bus.utilize(CommandRouter({Place: outer, Mail: log.append, "shop.x": log.append}))

        async def main() -> None:
            with pytest.raises(KeyboardInterrupt):
                await bus.adispatch(Place())
            await bus.adispatch("shop.x")

        if colour == "sync":
            with pytest.raises(KeyboardInterrupt):
                bus.dispatch(Place())
            bus.dispatch("shop.x")
        else:
            asyncio.run(main())
        assert ["shop.x"] == log

    def test_a_falsy_nested_command_is_not_dropped(self) -> None:
        """`""`, 0 and an empty list have their turn (B27, T02)."""
        log: list[object] = []
        bus = CommandBus()

        def outer(message: object) -> None:
            falsy: list[object] = [0, [], {}]
            for each in falsy:
                bus.dispatch(each)

        routes = {"int": log.append, "list": log.append, "dict": log.append}
        bus.utilize(CommandRouter({Place: outer, **routes}))
        bus.dispatch(Place())
        assert [0, [], {}] == log

    def test_two_buses_have_two_queues(self) -> None:
        """A command of another bus runs at once."""
        log: list[str] = []
        other = make({Mail: lambda m: log.append("mail")})

        def outer(message: object) -> None:
            other.dispatch(Mail())
            log.append("outer")

        make({Place: outer}).dispatch(Place())
        assert ["mail", "outer"] == log

    def test_a_received_command_inside_a_handler_stays_received(self) -> None:
        """Its turn in the queue does not send it, which would be a loop."""
        log: list[object] = []
        producer = RecordingProducer()
        bus = CommandBus()
        bus.utilize(
            CommandRouter(
                {Place: lambda m: bus.receive(Envelope(Mail()), "memory"), Mail: log.append},
                {Mail: producer},
            )
        )
        bus.dispatch(Place())
        assert [Mail()] == log
        assert [] == producer.messages

    def test_a_bus_closed_by_a_handler_still_runs_what_waits(self) -> None:
        """What was dispatched before `close` is not lost."""
        log: list[object] = []
        bus = CommandBus()

        def outer(message: object) -> None:
            bus.dispatch(Mail())
            bus.close()

        bus.utilize(CommandRouter({Place: outer, Mail: log.append}))
        bus.dispatch(Place())
        assert [Mail()] == log


class TestSend:
    def test_a_sent_command_is_handled_where_it_is_received(self) -> None:
        """`send` beats the handler, a received message skips it, dispatching it again does not."""
        got: list[object] = []
        producer = RecordingProducer()
        bus = make({Mail: got.append}, {Mail: producer})
        bus.dispatch(Mail())
        asyncio.run(bus.adispatch(Mail()))
        assert ([], 2) == (got, len(producer.messages))
        envelope = Envelope(Mail())
        bus.receive(envelope, "memory")
        asyncio.run(bus.areceive(envelope, "memory"))
        asyncio.run(bus.areceive(envelope, "memory", threads=True))
        assert ([Mail()] * 3, 2) == (got, len(producer.messages))
        assert envelope.received_from is None
        bus.dispatch(envelope.evolve(received_from="memory"))
        assert 3 == len(producer.messages)
        bus.close()

    def test_a_received_command_knows_its_source(self) -> None:
        """The envelope of a received message says where it came from, for information."""
        bus = make({Mail: fail})
        with pytest.raises(HandlerFailedError) as caught:
            bus.receive(Envelope(Mail()), "mail-consumer")
        assert caught.value.envelope is not None
        received = caught.value.envelope
        assert "mail-consumer" == received.received_from
        with pytest.raises(HandlerFailedError) as caught:
            bus.dispatch(received)
        assert caught.value.envelope is not None
        assert caught.value.envelope.received_from is None

    def test_a_received_command_without_handler_is_an_error(self) -> None:
        """A `send` is no handler, nor is a route to a producer."""
        producer = RecordingProducer()
        bus = make({Place: producer, "shop.x": "producer"}, {Mail: producer})
        bus.utilize(ServiceLocatorPlugin(Unseen(producer)))
        for message in (Mail(), Place(), "shop.x"):
            with pytest.raises(NoHandlerError, match="handles the command"):
                bus.receive(Envelope(message), "memory")

    def test_the_producer_gets_the_bytes_and_the_options(self) -> None:
        """Body, id, name, key, headers, delay, priority and expiry are on the wire message."""
        producer = RecordingProducer()
        bus = make({}, {Place: producer})
        envelope = Envelope(Place(7), id=A_ID, headers={"attempt": 2})
        bus.dispatch(envelope)
        bus.dispatch(Place(7), key="other", priority=9, delay=1.5)
        bus.dispatch(Place(7), timeout=60.0)
        bus.dispatch(Place(7), at=datetime.now(UTC) + timedelta(seconds=60))
        bus.dispatch(Place(7), at=datetime.now(UTC) - timedelta(seconds=60))
        plain, full, timed, later, due = producer.messages
        assert (encode(envelope), A_ID, "shop.place", "7") == (
            plain.body,
            plain.id,
            plain.name,
            plain.key,
        )
        assert {"attempt": "2"} == plain.headers
        assert ("other", 9, 1.5) == (full.key, full.priority, full.delay)
        assert timed.expires_at is not None
        assert timed.expires_at.isoformat() == timed.headers["deadline"]
        assert later.delay is not None
        assert 50 < later.delay <= 60
        assert due.delay is None

    def test_a_missing_ordering_field_is_an_encode_error(self) -> None:
        """A message without the field that orders it cannot be sent."""
        catalog = MessageCatalog()
        catalog.add(Mail, key="nowhere")
        with pytest.raises(EncodeError, match="ordered by 'nowhere'"):
            make({}, {Mail: RecordingProducer()}, catalog=catalog).dispatch(Mail())

    def test_what_the_producer_cannot_do_is_refused(self) -> None:
        """Delay and priority are refused, not dropped; a deadline travels in the body."""
        producer = RecordingProducer(capabilities=Capabilities())
        bus = make({}, {Mail: producer})
        refused: list[tuple[dict[str, Any], str]] = [
            ({"delay": 1.0}, "delay"),
            ({"priority": 1}, "priority"),
        ]
        for options, what in refused:
            with pytest.raises(UnsupportedError, match=rf"shop\.mail: a {what} was asked for"):
                bus.dispatch(Mail(), **options)
        bus.dispatch(Mail(), timeout=5.0, delay=0.0)
        (message,) = producer.messages
        assert message.expires_at is None
        assert "deadline" in message.headers

    def test_a_producer_that_takes_queries_only_is_refused(self) -> None:
        """Z02: before anything is encoded or sent."""
        producer = RecordingProducer(capabilities=Capabilities(queries=True, queries_only=True))
        bus = make({}, {Mail: producer})
        with pytest.raises(UnsupportedError, match=r"shop\.mail: RecordingProducer only asks"):
            bus.dispatch(Mail())
        assert producer.messages == []

    def test_a_delay_without_a_send_is_unsupported(self) -> None:
        """A command that is handled here is not handled later."""
        bus = make({Place: nothing})
        with pytest.raises(UnsupportedError, match=r"shop\.place: a delay needs a send"):
            bus.dispatch(Place(), delay=1.0)
        with pytest.raises(UnsupportedError, match=r"shop\.place: a delay needs a send"):
            asyncio.run(bus.adispatch(Envelope(Place()), delay=1.0))

    def test_a_transport_error_has_the_envelope(self) -> None:
        """What a producer raises reaches the caller as it is, with the envelope."""
        error = ConnectionFailedError("no peer")
        bus = make({}, {Mail: RecordingProducer(error=error)})
        for run in ways(bus):
            error.envelope = None
            with pytest.raises(ConnectionFailedError) as caught:
                run(Mail())
            assert caught.value.envelope is not None
            assert Mail() == caught.value.envelope.message
        bus.close()

    def test_a_producers_own_exceptions_do_not_get_out(self) -> None:
        """Anything else that a producer raises becomes a TransportError caused by it."""

        class Buggy(MessageProducer):
            capabilities = Capabilities()

            def send_many(self, messages: Sequence[WireMessage]) -> None:
                raise KeyError("bug")

            def close(self) -> None: ...

        bus = make({}, {Mail: Buggy()})
        for run in ways(bus):
            with pytest.raises(TransportError, match=r"shop\.mail could not be sent") as caught:
                run(Mail())
            assert isinstance(caught.value.__cause__, KeyError)
        bus.close()

    def test_an_asyncio_producer_is_awaited(self) -> None:
        """A producer with calls of its own needs no thread."""
        sent: list[str] = []

        class Async(AsyncMessageProducer):
            capabilities = Capabilities()

            def send_many(self, messages: Sequence[WireMessage]) -> None:
                raise NotImplementedError

            async def asend_many(self, messages: Sequence[WireMessage]) -> None:
                await asyncio.sleep(0)
                sent.extend(m.name for m in messages)

            def close(self) -> None: ...

            async def aclose(self) -> None: ...

        asyncio.run(make({}, {Mail: Async()}).adispatch(Mail()))
        assert ["shop.mail"] == sent

    def test_a_message_of_another_kind_is_not_sent(self) -> None:
        """It would be received by another bus; handled here, it is nobody's business."""
        bus = make({"shop.placed": nothing}, {"shop.sent": RecordingProducer()})
        bus.dispatch(Placed())
        other = make({}, {Placed: RecordingProducer()})
        with pytest.raises(RoutingError, match=r"shop\.placed is a event"):
            other.dispatch(Placed())

    def test_a_send_that_leads_to_no_producer_is_refused(self) -> None:
        """A handler cannot take the place of a producer."""
        bus = make({}, {Mail: "handler"})
        bus.utilize(ServiceLocatorPlugin({"handler": nothing}))
        with pytest.raises(RoutingError, match=r"send\['shop.mail'\]: handler is no message prod"):
            bus.dispatch(Mail())

    def test_a_route_to_a_producer_is_short_for_send(self) -> None:
        """By object, by id, and by an id of which nothing is known before (`routes`)."""
        producer = RecordingProducer()
        for services in ({"mail": producer}, Unseen(producer)):
            bus = make({Mail: "mail"})
            bus.utilize(ServiceLocatorPlugin(services))
            bus.dispatch(Mail())
        make({Mail: producer}).dispatch(Mail())
        assert 3 == len(producer.messages)

    def test_one_command_goes_to_one_producer(self) -> None:
        """Two routers that send one command contradict each other."""
        bus = make({}, {Mail: RecordingProducer()})
        bus.utilize(CommandRouter(send={Mail: RecordingProducer()}))
        with pytest.raises(RoutingError, match="more than one route"):
            bus.dispatch(Mail())


class Unseen:
    """Services that say nothing about what they provide."""

    def __init__(self, producer: MessageProducer) -> None:
        self._producer = producer

    def has(self, id_: str, /) -> bool:
        return True

    def get(self, id_: str, /) -> MessageProducer:
        return self._producer

    def lifetime(self, id_: str, /) -> Any:
        return Lifetime.ONCE


class TestTimeout:
    def test_a_slow_async_handler_is_cancelled(self) -> None:
        """Its time-out is the handler's failure: the route's, or that of the dispatch."""
        ended: list[str] = []

        async def slow(message: object) -> None:
            try:
                await asyncio.Event().wait()
            finally:
                ended.append("ended")

        bus = make({Place: Target(slow, timeout=0.01), Mail: slow})
        for run in (bus.adispatch(Place()), bus.adispatch(Mail(), timeout=0.01)):
            with pytest.raises(HandlerFailedError, match="did not finish") as caught:
                asyncio.run(run)
            assert isinstance(caught.value.__cause__, TimedOutError)
        assert ["ended"] * 2 == ended

    def test_a_handlers_own_time_out_is_its_own(self) -> None:
        """A TimeoutError that the handler raises is not taken for the route's limit."""

        async def handler(message: object) -> None:
            raise TimeoutError("mine")

        with pytest.raises(HandlerFailedError, match="mine") as caught:
            asyncio.run(make({Place: Target(handler, timeout=5.0)}).adispatch(Place()))
        assert type(caught.value.__cause__) is TimeoutError


class TestThreads:
    def test_a_route_with_threads_runs_its_whole_unit_in_one_thread(self) -> None:
        """Handler and nested command run in one other thread; the loop is free meanwhile."""
        threads: list[int] = []
        went_on = threading.Event()
        bus = CommandBus(threads=1)

        def place(message: object) -> None:
            assert went_on.wait(10)
            threads.append(threading.get_ident())
            bus.dispatch(Mail())

        bus.utilize(
            CommandRouter(
                {
                    Place: Target(place, threads=True),
                    Mail: Target(lambda m: threads.append(threading.get_ident()), threads=True),
                }
            )
        )

        async def main() -> None:
            async with asyncio.TaskGroup() as group:
                group.create_task(bus.adispatch(Place()))
                await asyncio.sleep(0)
                went_on.set()

        asyncio.run(main())
        first, second = threads
        assert first == second != threading.get_ident()
        bus.dispatch(Mail())
        assert threading.get_ident() == threads[-1]
        bus.close()

    def test_inside_an_open_dispatch_it_runs_inline(self) -> None:
        """What joins an open unit or queue stays in its task."""
        threads: list[int] = []

        async def place(message: object) -> None:
            await bus.adispatch(Mail())

        mail = Target(lambda m: threads.append(threading.get_ident()), threads=True)
        for nested in ("queue", "inline"):
            bus = make({Place: place, Mail: mail}, nested=nested)
            bus.unit_of_work(NoTransaction)
            asyncio.run(bus.adispatch(Place()))
        assert {threading.get_ident()} == set(threads)

    def test_an_async_step_is_refused_when_the_plan_is_compiled(self) -> None:
        """In every way in: dispatched, awaited and received."""
        bus = make({Place: Target(anothing, threads=True)})
        for run in (
            lambda: bus.dispatch(Place()),
            lambda: asyncio.run(bus.adispatch(Place())),
            lambda: bus.receive(Envelope(Place()), "memory"),
            lambda: asyncio.run(bus.areceive(Envelope(Place()), "memory", threads=True)),
        ):
            with pytest.raises(RoutingError, match=r"but .*anothing is async"):
                run()

    def test_a_worker_uses_threads_unless_the_route_says_false(self) -> None:
        """`areceive(threads=True)` runs plain handlers in threads, asyncio ones in the loop."""
        threads: dict[str, int] = {}

        def note(message: str) -> None:
            threads[message] = threading.get_ident()

        async def anote(message: str) -> None:
            note(message)

        bus = make(
            {
                "shop.plain": note,
                "shop.never": Target(note, threads=False),
                "shop.always": Target(note, threads=True),
                "shop.async": anote,
            }
        )

        async def main() -> None:
            for name in ("shop.plain", "shop.never", "shop.async"):
                await bus.areceive(Envelope(name), "memory", threads=True)
            await bus.areceive(Envelope("shop.always"), "memory")

        asyncio.run(main())
        here = threading.get_ident()
        assert here == threads["shop.never"] == threads["shop.async"]
        assert here not in {threads["shop.plain"], threads["shop.always"]}
        bus.close()


class NoTransaction:
    def __enter__(self) -> None: ...

    def __exit__(self, *outcome: object) -> None: ...


class TestClose:
    def test_after_close_everything_is_refused(self) -> None:
        """ClosedError for local messages too, sync and async; closing twice is fine."""
        bus = make({Place: Target(nothing, threads=True)})
        bus.dispatch(Place())
        asyncio.run(bus.adispatch(Place()))
        bus.close()
        bus.close()
        for run in (
            lambda: bus.dispatch(Place()),
            lambda: asyncio.run(bus.adispatch(Place())),
            lambda: bus.receive(Envelope(Place()), "memory"),
            lambda: asyncio.run(bus.areceive(Envelope(Place()), "memory")),
        ):
            with pytest.raises(ClosedError, match="this command bus is closed"):
                run()

    def test_a_thread_is_refused_when_the_bus_closed_meanwhile(self) -> None:
        """A dispatch that was prepared before `close` does not start threads after it."""
        bus = make({Place: Target(nothing, threads=True)})

        async def main() -> None:
            prepared = bus.adispatch(Place())
            bus.dispatch(Place())
            coroutine = bus.adispatch(Place())
            prepared.close()
            bus.close()
            with pytest.raises(ClosedError, match="threads"):
                await coroutine

        asyncio.run(main())


class TestPlans:
    def test_a_hundred_thousand_names_leave_a_bounded_bus(self) -> None:
        """Names come from outside: what is kept of them has an end."""
        bus = make({"**": nothing}, nested="inline")
        sizes: set[int] = set()
        for number in range(100_000):
            bus.dispatch(f"shop.{number}")
            if number % 5_000 == 0:
                sizes.add(len(bus._plans) + len(bus._invocations))
        assert max(sizes) <= 20_000
        assert len(bus._plans) <= 10_000
        assert len(bus._invocations) <= 10_000

    def test_a_new_route_counts_from_the_next_dispatch_on(self) -> None:
        """Routes may be added at any time, and a missing one is not remembered."""
        got: list[object] = []
        router = CommandRouter()
        bus = CommandBus()
        bus.utilize(router)
        with pytest.raises(NoHandlerError):
            bus.dispatch(Place())
        router.route(Place).to(got.append)
        bus.dispatch(Place())
        assert [Place()] == got

    def test_an_error_is_made_anew_for_each_dispatch(self) -> None:
        """A remembered refusal does not gather the tracebacks of its callers."""
        bus = make({})
        caught: list[BaseException] = []
        for _ in range(2):
            with pytest.raises(NoHandlerError) as info:
                bus.dispatch(Place())
            caught.append(info.value)
        assert caught[0] is not caught[1]
