"""The one seam to kombu's AMQP side, which is typed in part: a connection, and its errors in ours.

Everything here belongs to one thread at a time; whoever uses a `Link` sees to that.
"""

from __future__ import annotations

import importlib
import select
import socket
import ssl
import threading
from contextlib import contextmanager, suppress
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, Protocol

import attrs

from postbus.errors import (
    ConnectionFailedError,
    RejectedError,
    TimedOutError,
    TransportError,
)
from postbus_kombu._properties import Content, encode

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Mapping

# py-amqp has no types, and kombu has some: to the type checkers both are anything.
amqp: Any = importlib.import_module("amqp")
framing: Any = importlib.import_module("amqp.method_framing")
kombu: Any = importlib.import_module("kombu")

__all__ = ["Address", "Channel", "Link", "Waker", "amqp", "translate", "translated"]

# A peer that stops in the middle of a frame is waited for so long, then we look again.
_FRAME_TIMEOUT = 1.0
# What is published is written when so much has gathered: a few calls a window, and the broker
# works meanwhile.
_FLUSH_BYTES = 32_768
# What is read at once: a message has nine pieces, each of which py-amqp would ask the system for.
# Small, since it copies the rest with each of them.
_READ_BYTES = 8192


class Channel(Protocol):
    """What is used of py-amqp's channel, which has no types."""

    events: dict[str, set[Callable[..., None]]]
    is_open: bool
    channel_id: int

    def close(self) -> None: ...
    def confirm_select(self) -> None: ...
    def basic_qos(self, prefetch_size: int, prefetch_count: int, a_global: bool) -> None: ...  # noqa: FBT001  py-amqp's names
    def basic_consume(self, queue: str, **options: Any) -> str: ...
    def basic_cancel(self, consumer_tag: str) -> None: ...
    def basic_ack(self, delivery_tag: int, multiple: bool) -> None: ...  # noqa: FBT001  py-amqp's names
    def basic_reject(self, delivery_tag: int, requeue: bool) -> None: ...  # noqa: FBT001  py-amqp's names
    def queue_declare(self, queue: str, **options: Any) -> Any: ...
    def queue_bind(self, queue: str, **options: Any) -> Any: ...
    def exchange_bind(self, destination: str, **options: Any) -> Any: ...
    def queue_purge(self, queue: str) -> int: ...
    def exchange_declare(self, exchange: str, type: str, **options: Any) -> Any: ...  # noqa: A002  py-amqp's name


@attrs.frozen(kw_only=True)
class Address:
    """Where a broker is, and how patient to be with it. *heartbeat* 0 is none; seconds."""

    url: str = attrs.field(repr=False)
    connect_timeout: float
    io_timeout: float
    heartbeat: int = 0
    ca_file: str | None = None
    certificate_file: str | None = None
    key_file: str | None = None

    @classmethod
    def of(cls, settings: Any, io_timeout: float, heartbeat: int = 0) -> Address:
        """Return the address that a producer's or consumer's settings name."""
        return cls(
            url=settings.url,
            connect_timeout=settings.connect_timeout,
            io_timeout=io_timeout,
            heartbeat=heartbeat,
            ca_file=settings.ca_file,
            certificate_file=settings.certificate_file,
            key_file=settings.key_file,
        )

    @property
    def place(self) -> str:
        """Host, port and virtual host, for people; no user and no password."""
        connection = kombu.Connection(self.url)
        port = connection.port or (5671 if self.has_tls else 5672)
        return f"{connection.hostname}:{port}/{connection.virtual_host}"

    @property
    def has_tls(self) -> bool:
        """Whether the URL asks for TLS."""
        return self.url.startswith("amqps:")

    def tls(self) -> dict[str, Any]:
        """Return what py-amqp makes a context of that checks the certificate and its name."""
        return {
            "server_hostname": kombu.Connection(self.url).hostname,
            "cert_reqs": ssl.CERT_REQUIRED,
            "ca_certs": self.ca_file,
            "certfile": self.certificate_file,
            "keyfile": self.key_file,
            "tls_minimum_version": ssl.TLSVersion.TLSv1_2,
        }


class Waker:
    """Ends a wait from another thread. `wake` may be called at any time, from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._ends: tuple[socket.socket, socket.socket] | None = None

    def open(self) -> int:
        """Return the descriptor to wait for."""
        with self._lock:
            if self._ends is None:
                self._ends = socket.socketpair()
                for end in self._ends:
                    end.settimeout(0)
            return self._ends[0].fileno()

    def wake(self) -> None:
        """Make the descriptor readable."""
        with self._lock:
            if self._ends is not None:
                # Full: it is readable already.
                with suppress(BlockingIOError):
                    self._ends[1].send(b"\0")

    def clear(self) -> None:
        """Make the descriptor unreadable until the next `wake`."""
        with self._lock:
            if self._ends is not None:
                with suppress(BlockingIOError):
                    self._ends[0].recv(4096)

    def close(self) -> None:
        """Let go of the descriptors. Idempotent."""
        with self._lock:
            self.abandon()

    def abandon(self) -> None:
        """Do as `close` does where the lock may be held for ever: in a forked child."""
        ends, self._ends = self._ends, None
        for end in ends or ():
            end.close()


class Frames:
    """What py-amqp's writer of frames writes to: it gathers."""

    def __init__(self) -> None:
        self.gathered = bytearray()

    def write(self, frames: memoryview) -> None:
        """Add *frames*."""
        self.gathered += frames


class Link:
    """One AMQP connection. It connects when it is made.

    Args:
        address: where to.
        waker: what ends `read` before its time.

    Raises:
        TransportError: the broker cannot be reached, or refuses us.
    """

    def __init__(self, address: Address, waker: Waker | None = None) -> None:
        self.is_blocked = False
        self._address = address
        self._waker = waker
        options: dict[str, Any] = {
            "on_blocked": self._blocked,
            "on_unblocked": self._unblocked,
        }
        broker = kombu.Connection(
            address.url,
            connect_timeout=address.connect_timeout,
            heartbeat=address.heartbeat,
            ssl=address.tls() if address.has_tls else False,
            transport_options=options,
        )
        with translated(f"connect to {address.place}"):
            # Not `Connection.connect`: it tries several times, whatever the time-out.
            self._connection: Any = broker.transport.establish_connection()
        self._socket: socket.socket = self._connection.sock
        self._transport = self._connection.transport
        receive = self._transport._quick_recv  # noqa: SLF001  it has no other way
        self._transport._quick_recv = partial(_read_more, receive)  # noqa: SLF001  as above
        # A record of TLS may hold several frames: the socket is empty then, and the rest is here.
        self._decrypted: Callable[[], int] | None = getattr(self._socket, "pending", None)
        # What waits for an answer, and every write, ends after this time.
        self._socket.settimeout(address.io_timeout)
        self._poll = select.poll()
        self._poll.register(self._socket, select.POLLIN)
        if waker is not None:
            self._poll.register(waker.open(), select.POLLIN)
        self._frames = Frames()
        self._write_frame: Callable[..., None] = framing.frame_writer(
            self._connection, self._frames
        )

    def _blocked(self, _: str) -> None:
        self.is_blocked = True

    def _unblocked(self) -> None:
        self.is_blocked = False

    def channel(self) -> Channel:
        """Open a channel.

        Raises:
            TransportError: the connection is broken.
        """
        with translated(f"open a channel to {self._address.place}"):
            channel: Any = self._connection.channel()
        # Else what says that it is UTF-8 comes as text.
        channel.auto_decode = False
        opened: Channel = channel
        return opened

    def publish(
        self,
        channel: Channel,
        body: bytes,
        properties: Mapping[str, Any],
        *,
        exchange: str,
        routing_key: str,
        mandatory: bool,
    ) -> None:
        """Add a message to what the next `flush` writes.

        Not `basic_publish`, which for each message looks, without a time-out, for what the broker
        said, and makes a system call: many messages go with one call here.

        Raises:
            TransportError: the connection is broken, or takes nothing for too long.
        """
        if not channel.is_open:
            raise ConnectionFailedError("could not publish: the broker closed the channel")
        method = (1, channel.channel_id, amqp.spec.Basic.Publish)
        arguments = _arguments(exchange, routing_key, mandatory)
        self._write_frame(*method, arguments, Content(body, encode(properties)))
        if len(self._frames.gathered) >= _FLUSH_BYTES:
            self.flush()

    def flush(self) -> None:
        """Write what was published.

        Raises:
            TransportError: the connection is broken, or takes nothing for too long.
        """
        frames = self._frames.gathered
        if frames:
            self._frames.gathered = bytearray()
            with translated("publish"):
                self._connection.transport.write(frames)

    def read(self, seconds: float) -> bool:
        """Handle all that the broker said; wait up to *seconds* for it to say something.

        Returns whether it did. A waker ends the wait.

        Raises:
            TransportError: the connection is broken, or the broker closed a channel.
        """
        found = self._look(seconds)
        with translated(f"read from {self._address.place}"):
            if not found:
                return False
            # Not when a frame has begun and does not go on.
            with suppress(TimeoutError):
                while found:
                    # One frame. Not `drain_events`, which after a heartbeat waits for a message.
                    self._connection.blocking_read(_FRAME_TIMEOUT)
                    found = self._look(0)
        return True

    def _look(self, seconds: float) -> bool:
        if self._transport._read_buffer or (self._decrypted and self._decrypted()):  # noqa: SLF001  as above
            return True
        descriptors = [found for found, _ in self._poll.poll(max(0.0, seconds) * 1000)]
        return self._socket.fileno() in descriptors

    def beat(self) -> None:
        """Send a heartbeat where one is due.

        Raises:
            TransportError: the broker missed its own.
        """
        with translated(f"keep up the connection to {self._address.place}"):
            self._connection.heartbeat_tick()

    def close(self, *, politely: bool = True) -> None:
        """Disconnect; *politely*: when the broker has said goodbye too. Raises nothing."""
        if politely:
            with suppress(Exception):
                self._connection.close()
        with suppress(Exception):
            self._connection.collect()
        self._socket.close()

    def abandon(self) -> None:
        """Let go of a connection that is a parent process's. It goes on there."""
        # Not `close`, which would end the parent's side too.
        self._socket.close()


def _read_more(receive: Callable[[int], bytes], size: int) -> bytes:
    return receive(max(size, _READ_BYTES))


def translate(error: Any, doing: str) -> TransportError:
    """Return what *error* of py-amqp is to postbus."""
    if isinstance(error, amqp.ChannelError):
        return RejectedError(f"could not {doing}: {error.reply_text}")
    if isinstance(error, TimeoutError):
        return TimedOutError(f"could not {doing}: the broker did not answer in time")
    if isinstance(error, amqp.AMQPError):
        return ConnectionFailedError(f"could not {doing}: {error.reply_text or error}")
    return ConnectionFailedError(f"could not {doing}: {type(error).__name__}: {error}")


@contextmanager
def translated(doing: str) -> Generator[None, None, None]:
    """Raise what py-amqp raises as an error of postbus. *doing* completes "could not ...".

    Raises:
        TransportError: in the place of everything that a broken connection makes py-amqp raise.
    """
    try:
        yield
    # A connection that is gone is None inside py-amqp: its pieces are missing then.
    except (OSError, AttributeError, amqp.AMQPError) as error:
        raise translate(error, doing) from error


@lru_cache(1024)
def _arguments(exchange: str, routing_key: str, mandatory: bool) -> bytes:  # noqa: FBT001  a cache wants them so
    """Return the arguments of `basic.publish` on the wire."""
    encoded: bytes = amqp.serialization.dumps(
        "Bssbb", (0, exchange, routing_key, mandatory, False)
    )
    return encoded
