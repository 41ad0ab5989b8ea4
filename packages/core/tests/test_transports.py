"""What a transport inherits where it implements no more than it must."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import attrs
import pytest

from postbus.errors import ClosedError, PartiallySentError, RejectedError, UnsupportedError
from postbus.promises import Promise
from postbus.transports import (
    AsyncMessageProducer,
    AsyncQueryClient,
    Capabilities,
    CommonSettings,
    Delivery,
    MessageConsumer,
    MessageProducer,
    QueryClient,
    Reply,
    WireMessage,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


def make_message(body: bytes = b"{}", **fields: Any) -> WireMessage:
    message_id = "0f0e0d0c-0000-4000-8000-000000000000"
    return WireMessage(body, {}, message_id, "shop.place-order", **fields)


class LeastProducer(MessageProducer):
    """Implements what is abstract and nothing else; refuses empty bodies."""

    capabilities = Capabilities()

    def __init__(self) -> None:
        self.sent: list[bytes] = []

    def send_many(self, messages: Sequence[WireMessage]) -> None:
        for message in messages:
            if message.body == b"closed":
                raise ClosedError("closed")
            if not message.body:
                raise PartiallySentError("1 of 1", {0: RejectedError("empty")})
            self.sent.append(message.body)

    def close(self) -> None:
        pass


class LeastAsyncProducer(AsyncMessageProducer, LeastProducer):
    async def asend_many(self, messages: Sequence[WireMessage]) -> None:
        self.send_many(messages)

    async def aclose(self) -> None:
        pass


class LeastDelivery(Delivery):
    def ack(self) -> None:
        pass

    def settled(self) -> Promise[None]:
        return Promise.resolved(None)


class LeastConsumer(MessageConsumer):
    capabilities = Capabilities()

    async def receive(self, max_messages: int) -> Sequence[Delivery]:
        return []

    async def aclose(self) -> None:
        pass


class TestMessageProducer:
    def test_send_hands_over_one_message(self) -> None:
        """`send` is `send_many` of one."""
        producer = LeastProducer()
        producer.send(make_message(b"1"))
        assert [b"1"] == producer.sent

    def test_send_raises_the_error_of_the_message_itself(self) -> None:
        """One message is taken or refused: nobody who sends one has to unpack a group."""
        with pytest.raises(RejectedError, match="empty") as caught:
            LeastProducer().send(make_message(b""))
        assert isinstance(caught.value.__cause__, PartiallySentError)

    def test_send_passes_other_errors_on(self) -> None:
        """What stopped the whole batch is raised as it is."""
        with pytest.raises(ClosedError):
            LeastProducer().send(make_message(b"closed"))


class TestAsyncMessageProducer:
    def test_asend_hands_over_one_message(self) -> None:
        """`asend` is `asend_many` of one."""
        producer = LeastAsyncProducer()
        asyncio.run(producer.asend(make_message(b"1")))
        assert [b"1"] == producer.sent

    def test_asend_raises_the_error_of_the_message_itself(self) -> None:
        """The same promise as `send`."""
        with pytest.raises(RejectedError, match="empty"):
            asyncio.run(LeastAsyncProducer().asend(make_message(b"")))


class TestDelivery:
    @pytest.mark.parametrize(
        "call",
        [
            lambda d: d.nack(),
            lambda d: d.retry(make_message()),
            lambda d: d.reply(Reply(b"1")),
            lambda d: d.extend(1.0),
        ],
        ids=["nack", "retry", "reply", "extend"],
    )
    def test_what_a_transport_lacks_is_refused(self, call: Callable[[Delivery], None]) -> None:
        """A capability that is False shows as `UnsupportedError` that names the source (T12)."""
        with pytest.raises(UnsupportedError, match="tcp://here"):
            call(LeastDelivery(b"", {}, "tcp://here"))

    def test_it_is_ours_and_cannot_reply_by_default(self) -> None:
        """Without leases nothing is lost; without a channel nothing can be answered."""
        delivery = LeastDelivery(b"1", {"a": "b"}, "tcp://here", redelivered=True)
        assert (False, False, True) == (delivery.lost, delivery.can_reply, delivery.redelivered)
        assert (b"1", {"a": "b"}) == (delivery.body, delivery.headers)


class TestMessageConsumer:
    @pytest.mark.parametrize(
        "call",
        [lambda c: c.count(), lambda c: c.peek("mail"), lambda c: c.purge("mail")],
        ids=["count", "peek", "purge"],
    )
    def test_what_a_transport_lacks_is_refused(
        self, call: Callable[[MessageConsumer], object]
    ) -> None:
        """A consumer that only receives says so, with its name."""
        with pytest.raises(UnsupportedError, match="LeastConsumer cannot"):
            call(LeastConsumer())


class TestRefusal:
    """What capabilities exclude, in the same words for every transport."""

    EVERYTHING = Capabilities(priority=True, delay=1.0, expiry=True, max_size_bytes=3)

    @pytest.mark.parametrize(
        "fields",
        [
            {},
            {"body": b"123"},
            {"priority": 0},
            {"priority": 9},
            {"delay": 1.0},
            {"expires_at": datetime.now(UTC)},
        ],
    )
    def test_what_they_have_is_not_refused(self, fields: dict[str, Any]) -> None:
        """Up to the limits themselves."""
        assert None is self.EVERYTHING.refusal(make_message(**{"body": b"", **fields}), "a shelf")

    @pytest.mark.parametrize("priority", [-1, 10])
    def test_a_priority_that_there_is_not_is_rejected(self, priority: int) -> None:
        """0 to 9."""
        refusal = self.EVERYTHING.refusal(make_message(priority=priority), "a shelf")
        assert isinstance(refusal, RejectedError)
        assert str(refusal).endswith(f": priority must be 0 to 9, got {priority}")

    def test_a_body_that_is_too_large_is_rejected(self) -> None:
        """With the setting that says how large it may be."""
        message = make_message(b"1234", priority=-1)
        refusal = self.EVERYTHING.refusal(message, "a shelf", size_key="shelf_bytes")
        assert isinstance(refusal, RejectedError)
        assert str(refusal) == (
            f"{message.name} {message.id}: the body has 4 bytes, at most 3 are configured "
            "(`shelf_bytes`)"
        )
        assert None is Capabilities().refusal(make_message(bytes(10_000_000)), "a shelf")

    @pytest.mark.parametrize(
        ("fields", "what"),
        [
            ({"priority": 0}, "priorities"),
            ({"priority": 10}, "priorities"),
            ({"delay": 0.1}, "delays"),
            ({"expires_at": datetime.now(UTC)}, "expiry"),
        ],
    )
    def test_what_they_deny_is_unsupported(self, fields: dict[str, Any], what: str) -> None:
        """And the error names the system; a delay of nothing is none."""
        refusal = Capabilities().refusal(make_message(**fields), "a shelf")
        assert isinstance(refusal, UnsupportedError)
        assert str(refusal).endswith(f": a shelf has no {what}")
        assert None is Capabilities().refusal(make_message(delay=0.0), "a shelf")


class TestRecords:
    def test_capabilities_default_to_cannot(self) -> None:
        """What a transport does not claim it cannot do."""
        assert [None, False] == sorted(
            set(attrs.asdict(Capabilities()).values()), key=lambda value: value is not None
        )

    def test_a_query_client_is_known_by_its_method(self) -> None:
        """A producer answers queries when it has `request`; nothing is registered."""

        class Asks:
            def request(self, message: WireMessage, reply: Promise[Reply]) -> None: ...

        class AsksOnLoop(Asks):
            async def arequest(self, message: WireMessage) -> Reply:
                return Reply(b"1")

        assert isinstance(Asks(), QueryClient)
        assert not isinstance(Asks(), AsyncQueryClient)
        assert isinstance(AsksOnLoop(), AsyncQueryClient)
        assert not isinstance(LeastProducer(), QueryClient)

    def test_common_settings_have_a_name(self) -> None:
        """Whatever a transport says to people can name the section it came from."""
        assert "mail" == CommonSettings(name="mail").name
