"""What a transport inherits where it implements no more than it must."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

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
    MessageProducer,
    QueryClient,
    Reply,
    WireMessage,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


def make_message(body: bytes = b"{}") -> WireMessage:
    return WireMessage(body, {}, "0f0e0d0c-0000-4000-8000-000000000000", "shop.place-order")


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
