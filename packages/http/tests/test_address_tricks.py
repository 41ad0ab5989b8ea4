"""Addresses that others may configure (A15): no trick leads to a machine that is not public.

Listeners on this machine count who comes, and every attempt to connect is noted beside that, so
that one to another private machine counts too. Nothing here leaves this machine.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest

from postbus.errors import RejectedError, TransportError
from postbus.transports import WireMessage
from postbus_http import HTTPProducer, ResendSettings, StatusError
from postbus_http._targets import is_public

Way = Callable[[HTTPProducer, WireMessage], None]
Make = Callable[..., HTTPProducer]
Message = Callable[..., WireMessage]

# What names mean to the resolver of these tests; all others have no address.
NAMES = {
    "127.0.0.1.wildcard.example": ["127.0.0.1"],
    "loopback.example": ["127.0.0.1"],
    "loopback6.example": ["::1"],
    "private.example": ["10.1.2.3"],
    "mapped.example": ["::ffff:127.0.0.1"],
    "both.example": ["8.8.8.8", "127.0.0.1"],
    "both6.example": ["2606:4700:4700::1111", "::1"],
    "metadata.google.internal": ["169.254.169.254"],
    "instance-data.ec2.internal": ["169.254.169.254"],
    "zoned.example": ["fe80::1%lo"],
}

# {port}: where this machine listens. Each must be refused, or lead nowhere.
TRICKS = (
    # This machine by name.
    "https://localhost:{port}/",
    "https://LOCALHOST:{port}/",
    "https://localhost.:{port}/",
    "https://loc%61lhost:{port}/",
    "https://\uff4c\uff4f\uff43\uff41\uff4c\uff48\uff4f\uff53\uff54:{port}/",
    "https://ip6-localhost:{port}/",
    "https://loopback.example:{port}/",
    "https://loopback6.example:{port}/",
    "https://mapped.example:{port}/",
    "https://127.0.0.1.wildcard.example:{port}/",
    # By number, in every base and length.
    "https://127.0.0.1:{port}/",
    "https://127.0.0.1.:{port}/",
    "https://127.1:{port}/",
    "https://127.0.1:{port}/",
    "https://127.255.255.254:{port}/",
    "https://127.000.000.001:{port}/",
    "https://0:{port}/",
    "https://0.0.0.0:{port}/",
    "https://2130706433:{port}/",
    "https://017700000001:{port}/",
    "https://0177.0.0.1:{port}/",
    "https://0177.1:{port}/",
    "https://0x7f000001:{port}/",
    "https://0x7f.0.0.1:{port}/",
    "https://0x7F.0x0.0x0.0x1:{port}/",
    "https://0x7f.1:{port}/",
    "https://0177.0x0.0.1:{port}/",
    "https://127\u30020\u30020\u30021:{port}/",
    "https://\u2460\u2461\u2466.\u24ea.\u24ea.\u2460:{port}/",
    "https://%31%32%37.0.0.1:{port}/",
    # As IPv6, and what stands for IPv4 in it.
    "https://[::1]:{port}/",
    "https://[0:0:0:0:0:0:0:1]:{port}/",
    "https://[0000:0000:0000:0000:0000:0000:0000:0001]:{port}/",
    "https://[::]:{port}/",
    "https://[::1%25lo]:{port}/",
    "https://[::127.0.0.1]:{port}/",
    "https://[::ffff:127.0.0.1]:{port}/",
    "https://[::ffff:7f00:1]:{port}/",
    "https://[::ffff:0:127.0.0.1]:{port}/",
    "https://[::FFFF:127.0.0.1]:{port}/",
    "https://[2002:7f00:1::]:{port}/",
    "https://[2002:a9fe:a9fe::1]:{port}/",
    "https://[64:ff9b::7f00:1]:{port}/",
    "https://[64:ff9b::10.0.0.1]:{port}/",
    "https://[64:ff9b:1::1]:{port}/",
    "https://[2001:0:7f00:1::]:{port}/",
    # Other machines that are nobody else's business.
    "https://10.0.0.1:{port}/",
    "https://172.16.0.1:{port}/",
    "https://192.168.0.1:{port}/",
    "https://100.64.0.1:{port}/",
    "https://198.18.0.1:{port}/",
    "https://224.0.0.1:{port}/",
    "https://240.0.0.1:{port}/",
    "https://255.255.255.255:{port}/",
    "https://[fc00::1]:{port}/",
    "https://[fe80::1%25lo]:{port}/",
    "https://[fec0::1]:{port}/",
    "https://[ff02::1]:{port}/",
    "https://private.example:{port}/",
    "https://zoned.example:{port}/",
    "https://both.example:{port}/",
    "https://both6.example:{port}/",
    # What clouds keep there.
    "http://169.254.169.254/latest/meta-data/",
    "http://169.254.169.254.:{port}/",
    "http://2852039166/latest/meta-data/",
    "http://0xA9FEA9FE/latest/meta-data/",
    "http://0251.0376.0251.0376/latest/meta-data/",
    "http://[::ffff:a9fe:a9fe]/latest/meta-data/",
    "http://[fd00:ec2::254]/latest/meta-data/",
    "http://100.100.100.200/latest/meta-data/",
    "http://192.0.0.192/opc/v1/instance/",
    "http://metadata.google.internal/computeMetadata/v1/",
    "http://instance-data.ec2.internal/latest/meta-data/",
    # A host that looks like another one.
    "http://example.org@127.0.0.1:{port}/",
    "http://example.org:80@127.0.0.1:{port}/",
    "http://example.org%40127.0.0.1:{port}/",
    "http://127.0.0.1:{port}@example.org/",
    "http://127.0.0.1:{port}\\@example.org/",
    "http://example.org\\@127.0.0.1:{port}/",
    "http://127.0.0.1:{port}#@example.org/",
    "http://example.org#@127.0.0.1:{port}/",
    "http://127.0.0.1%00.example.org:{port}/",
    "http://127.0.0.1%2f.example.org:{port}/",
    "http://127.0.0.1%09:{port}/",
    "http://127.0.0.1\t:{port}/",
    "http://127.0.0.1\r\nHost: example.org:{port}/",
    "http:///127.0.0.1:{port}/",
    "http:127.0.0.1:{port}/",
    "//127.0.0.1:{port}/",
    "gopher://127.0.0.1:{port}/",
    "file:///etc/passwd",
    "http://127.0.0.1:{port}:80/",
    "http://[127.0.0.1]:{port}/",
    "http://[::1]127.0.0.1:{port}/",
)


class Listeners:
    """This machine on both of its loopback addresses, at one port."""

    def __init__(self) -> None:
        four = socket.create_server(("127.0.0.1", 0))
        self.port: int = four.getsockname()[1]
        self._listening = [four]
        if socket.has_ipv6:
            try:
                six = socket.create_server(("::1", self.port), family=socket.AF_INET6)
            except OSError:  # a machine without IPv6
                pass
            else:
                self._listening.append(six)
        self.connections = 0
        self._threads = [
            threading.Thread(target=self._count, args=(each,), daemon=True)
            for each in self._listening
        ]
        for thread in self._threads:
            thread.start()

    def _count(self, listening: socket.socket) -> None:
        while True:
            try:
                connection, _ = listening.accept()
            except OSError:
                return
            self.connections += 1
            connection.close()

    def close(self) -> None:
        """Stop listening."""
        for each in self._listening:
            each.shutdown(socket.SHUT_RDWR)
            each.close()
        for thread in self._threads:
            thread.join(30)


@pytest.fixture
def listeners() -> Iterator[Listeners]:
    """Somebody to count who comes."""
    made = Listeners()
    yield made
    made.close()


@pytest.fixture
def attempts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every address that somebody tried to connect to; only this machine is really tried."""
    found: list[str] = []
    connect = socket.socket.connect

    def note(self: socket.socket, address: Any) -> None:
        if self.family in {socket.AF_INET, socket.AF_INET6}:
            found.append(address[0])
            if address[0] not in {"127.0.0.1", "::1"}:
                raise ConnectionRefusedError(address[0])
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", note)
    return found


class Resolver:
    """Knows some names; numbers are the system's to read, in whatever way they are written."""

    def __init__(self) -> None:
        self._resolve = socket.getaddrinfo
        self.names = {name: [found] for name, found in NAMES.items()}
        self.asked: list[str] = []

    def __call__(self, host: Any, port: Any, *arguments: Any, **options: Any) -> Any:
        """Do what `socket.getaddrinfo` does; of several answers each is given once."""
        self.asked.append(str(host))
        answers = self.names.get(str(host))
        if answers is not None:
            addresses = answers.pop(0) if len(answers) > 1 else answers[0]
            return [_found(address, port) for address in addresses]
        if str(host).lower().rstrip(".").endswith((".example", ".org", ".internal")):
            raise socket.gaierror(socket.EAI_NONAME, "no such name")
        return self._resolve(host, port, *arguments, **options)


def _found(address: str, port: int) -> Any:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    return (family, socket.SOCK_STREAM, 6, "", (address, port))


@pytest.fixture
def resolver(monkeypatch: pytest.MonkeyPatch) -> Resolver:
    """The resolver of these tests in the place of the system's."""
    made = Resolver()
    monkeypatch.setattr(socket, "getaddrinfo", made)
    return made


@pytest.fixture(params=["sync", "async"])
def send(request: pytest.FixtureRequest, run: Callable[[Awaitable[Any]], Any]) -> Way:
    """Send both ways."""
    if request.param == "sync":
        return lambda producer, message: producer.send(message)
    return lambda producer, message: run(producer.asend(message))


@pytest.mark.usefixtures("resolver")
class TestTricks:
    def test_there_are_enough(self) -> None:
        """T21 asks for sixty."""
        assert len(set(TRICKS)) >= 90

    @pytest.mark.parametrize("url", TRICKS)
    def test_none_leads_to_a_machine_that_is_not_public(
        self,
        send: Way,
        producer: Make,
        message: Message,
        listeners: Listeners,
        attempts: list[str],
        url: str,
    ) -> None:
        """It is refused by the settings or when it is used, and nobody is connected to."""
        address = url.format(port=listeners.port)
        with pytest.raises((ValueError, TransportError)):
            send(producer(address, public_only=True, allow_http=True), message())
        assert ([each for each in attempts if not is_public(each)], listeners.connections) == (
            [],
            0,
        )

    def test_without_it_this_machine_is_reached(
        self,
        send: Way,
        producer: Make,
        message: Message,
        listeners: Listeners,
        attempts: list[str],
    ) -> None:
        """So the listeners do count."""
        for host in ("127.1", "2130706433", "loopback.example"):
            with pytest.raises(TransportError):
                send(producer(f"http://{host}:{listeners.port}/", allow_http=True), message())
        assert attempts == ["127.0.0.1"] * 3


class TestResolver:
    @pytest.mark.parametrize(
        "answers",
        [
            [["8.8.8.8"], ["127.0.0.1"]],
            [["127.0.0.1"], ["8.8.8.8"]],
            [["8.8.8.8", "127.0.0.1"], ["8.8.8.8"]],
            [["2606:4700:4700::1111"], ["::1"]],
        ],
    )
    def test_an_answer_that_changes_is_never_believed_twice(
        self,
        send: Way,
        producer: Make,
        message: Message,
        listeners: Listeners,
        attempts: list[str],
        resolver: Resolver,
        answers: list[list[str]],
    ) -> None:
        """What was checked is what is connected to: one look-up for each connection."""
        resolver.names["rebind.example"] = list(answers)
        made = producer(
            f"http://rebind.example:{listeners.port}/", public_only=True, allow_http=True
        )
        for number in range(4):
            with pytest.raises(TransportError):
                send(made, message())
            assert resolver.asked.count("rebind.example") == number + 1
        assert [each for each in attempts if not is_public(each)] == []
        assert listeners.connections == 0

    def test_a_repeated_request_is_checked_again(
        self,
        producer: Make,
        message: Message,
        listeners: Listeners,
        attempts: list[str],
        resolver: Resolver,
    ) -> None:
        """A refusal ends it: it is not worth another attempt."""
        resolver.names["rebind.example"] = [["8.8.8.8"], ["8.8.8.8"], ["127.0.0.1"]]
        made = producer(
            f"http://rebind.example:{listeners.port}/",
            public_only=True,
            allow_http=True,
            resend=ResendSettings(max_attempts=10, initial_delay=0.0),
        )
        with pytest.raises(RejectedError, match="not public"):
            made.send(message())
        assert (attempts, listeners.connections) == (["8.8.8.8", "8.8.8.8"], 0)


class TestRedirects:
    @pytest.mark.parametrize("status", [300, 301, 302, 303, 307, 308])
    def test_a_chain_of_redirects_is_not_followed(
        self,
        send: Way,
        producer: Make,
        message: Message,
        scripted: Any,
        respond: Callable[..., bytes],
        listeners: Listeners,
        status: int,
    ) -> None:
        """Nor any other header that names an address."""
        inside = f"http://127.0.0.1:{listeners.port}/"
        headers = [f"{name}: {inside}" for name in ("Location", "Content-Location")]
        headers += [f"Refresh: 0; url={inside}", f"Link: <{inside}>; rel=preload"]
        headers += [f'Alt-Svc: h2="127.0.0.1:{listeners.port}"; ma=60']
        server = scripted(respond(f"{status} Elsewhere", b"", *headers))
        made = producer(server.url, resend=ResendSettings(max_attempts=3, initial_delay=0.0))
        for _ in range(2):
            with pytest.raises(StatusError) as caught:
                send(made, message())
            assert caught.value.status == status
        assert (len(server.requests), listeners.connections) == (2, 0)


def test_the_loop_asks_the_same_resolver(
    run: Callable[[Awaitable[Any]], Any], resolver: Resolver
) -> None:
    """What these tests rest on."""

    async def look_up() -> Any:
        return await asyncio.get_running_loop().getaddrinfo("loopback.example", 80)

    assert run(look_up())[0][4][0] == "127.0.0.1"
    assert resolver.asked == ["loopback.example"]
