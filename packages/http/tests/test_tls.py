"""TLS: verified always, by which authorities is configuration; and HTTP/2, which needs it."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import threading
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import attrs
import pytest
import trustme

from postbus.errors import ConnectionFailedError, RejectedError, TransportError, UnsupportedError
from postbus.transports import CommonSettings, WireMessage
from postbus_http import HTTP, HTTPConsumerSettings, HTTPProducer

PATIENCE = 30.0
Make = Callable[..., HTTPProducer]
Message = Callable[..., WireMessage]
Run = Callable[[Awaitable[Any]], Any]


@attrs.frozen
class Files:
    """An authority, a certificate of it for this machine, and one for a client."""

    authority: str
    server: str
    client: str
    key: str
    locked: str


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    """Write them once."""
    folder = tmp_path_factory.mktemp("tls")
    authority = trustme.CA()
    server = authority.issue_cert("localhost", "127.0.0.1")
    client = authority.issue_cert("client@example.org")

    def path(name: str) -> str:
        return str(folder / name)

    authority.cert_pem.write_to_path(path("ca.pem"))
    server.private_key_and_cert_chain_pem.write_to_path(path("server.pem"))
    client.cert_chain_pems[0].write_to_path(path("client.pem"))
    client.private_key_pem.write_to_path(path("client.key"))
    locked = b"-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n"
    Path(path("locked.key")).write_bytes(locked)
    return Files(
        authority=path("ca.pem"),
        server=path("server.pem"),
        client=path("client.pem"),
        key=path("client.key"),
        locked=path("locked.key"),
    )


async def echo(scope: Any, receive: Any, send: Any) -> None:
    """Answer with what was sent, and over which HTTP."""
    body = b""
    while True:
        event = await receive()
        body += event.get("body", b"")
        if not event.get("more_body"):
            break
    headers = [(b"x-version", scope["http_version"].encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


@pytest.fixture(params=["sync", "async"])
def ask(request: pytest.FixtureRequest, run: Run) -> Callable[[HTTPProducer, WireMessage], bytes]:
    """Ask both ways."""

    def by_thread(producer: HTTPProducer, message: WireMessage) -> bytes:
        from postbus.promises import Promise
        from postbus.transports import Reply

        promise: Promise[Reply] = Promise()
        producer.request(message, promise)
        return promise.result(PATIENCE).body

    def by_loop(producer: HTTPProducer, message: WireMessage) -> bytes:
        async def twice() -> bytes:
            await producer.asend(message)
            return (await producer.arequest(message)).body

        body: bytes = run(twice())
        return body

    return by_thread if request.param == "sync" else by_loop


def url_of(server: Any, host: str = "localhost") -> str:
    """Return the address of a server with TLS."""
    return f"https://{host}:{server.port}/"


class TestProducer:
    @pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
    def test_own_authority(
        self, ask: Any, served: Any, producer: Make, message: Message, files: Files, host: str
    ) -> None:
        """By name and by address; a body larger than a record both ways."""
        server = served(echo, ssl_certfile=files.server)
        body = b"x" * 500_000
        made = producer(url_of(server, host), ca_file=files.authority)
        assert ask(made, message(body)) == body

    def test_a_stranger_s_certificate_is_refused(
        self, ask: Any, served: Any, producer: Make, message: Message, files: Files
    ) -> None:
        """A23: the usual authorities do not know it."""
        server = served(echo, ssl_certfile=files.server)
        with pytest.raises(ConnectionFailedError, match="certificate"):
            ask(producer(url_of(server)), message())

    def test_a_certificate_for_another_host_is_refused(
        self, ask: Any, served: Any, producer: Make, message: Message, files: Files
    ) -> None:
        """A23: even of the right authority."""
        server = served(echo, ssl_certfile=files.server)
        made = producer(url_of(server, "localhost."), ca_file=files.authority)
        other = producer(url_of(server, "127.0.0.2"), ca_file=files.authority)
        for each in (made, other):
            # The final dot of a name is no part of a certificate.
            with contextlib.suppress(ConnectionFailedError):
                ask(each, message())
        with pytest.raises(TransportError):
            ask(other, message())

    def test_a_certificate_of_its_own(
        self, ask: Any, served: Any, producer: Make, message: Message, files: Files
    ) -> None:
        """A server that wants to know who it is talking to."""
        server = served(
            echo,
            ssl_certfile=files.server,
            ssl_ca_certs=files.authority,
            ssl_cert_reqs=ssl.CERT_REQUIRED,
        )
        with pytest.raises(TransportError):
            ask(producer(url_of(server), ca_file=files.authority), message())
        made = producer(
            url_of(server),
            ca_file=files.authority,
            certificate_file=files.client,
            key_file=files.key,
        )
        assert ask(made, message(b"known")) == b"known"

    def test_an_answer_may_end_with_its_connection(
        self, ask: Any, producer: Make, message: Message, files: Files
    ) -> None:
        """Said goodbye to by TLS, so that nobody in between can have cut it off."""
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(files.server)
        listening = socket.create_server(("127.0.0.1", 0))

        def serve() -> None:
            while True:
                try:
                    plain, _ = listening.accept()
                except OSError:
                    return
                with (
                    contextlib.suppress(OSError),
                    context.wrap_socket(plain, server_side=True) as secured,
                ):
                    secured.recv(65_536)
                    secured.sendall(b"HTTP/1.1 200 OK\r\n\r\nto the end")
                    secured.unwrap()

        thread = threading.Thread(target=serve)
        thread.start()
        made = producer(
            f"https://localhost:{listening.getsockname()[1]}/", ca_file=files.authority
        )
        try:
            assert ask(made, message()) == b"to the end"
        finally:
            made.close()
            listening.shutdown(socket.SHUT_RDWR)
            listening.close()
            thread.join(PATIENCE)

    def test_plain_http_is_no_tls(
        self, ask: Any, served: Any, producer: Make, message: Message, files: Files
    ) -> None:
        """A handshake with somebody who has none fails."""
        server = served(echo)
        with pytest.raises(ConnectionFailedError):
            ask(producer(url_of(server), ca_file=files.authority), message())

    def test_a_server_that_never_shakes_hands_is_a_time_out(
        self, ask: Any, scripted: Any, producer: Make, message: Message, files: Files
    ) -> None:
        """By `connect_timeout`, TLS included."""
        over = threading.Event()
        server = scripted(lambda *_: over.wait(PATIENCE))
        made = producer(
            f"https://127.0.0.1:{server.port}/", ca_file=files.authority, connect_timeout=0.2
        )
        with pytest.raises(TransportError):
            ask(made, message())
        over.set()

    def test_files_that_cannot_be_used_are_told_when_it_is_built(
        self, producer: Make, files: Files, tmp_path: Any
    ) -> None:
        """Not with the first message; and nobody is asked for a passphrase."""
        none = str(tmp_path / "none.pem")
        for settings in (
            {"ca_file": none},
            {"ca_file": files.key},
            {"certificate_file": none},
            {"certificate_file": files.client, "key_file": files.locked},
        ):
            with pytest.raises(RejectedError, match="cannot be used"):
                producer("https://example.org/", **settings)

    def test_old_tls_is_not_spoken(self, producer: Make) -> None:
        """A23: 1.2 or later."""
        context = producer("https://example.org/")._plan.context
        assert context is not None
        assert context.minimum_version >= ssl.TLSVersion.TLSv1_2
        assert context.verify_mode is ssl.CERT_REQUIRED
        assert context.check_hostname


class TestConsumer:
    def test_serves_https(self, producer: Make, message: Message, files: Files, run: Run) -> None:
        """With a certificate by configuration."""

        async def scenario() -> None:
            settings = HTTPConsumerSettings(bind="127.0.0.1:0", certificate_file=files.server)
            consumer: Any = HTTP.make_consumer(settings, CommonSettings(name="inbound"))
            receiving = asyncio.ensure_future(consumer.receive(1))
            await asyncio.sleep(0)
            made = producer(f"https://localhost:{consumer.address[1]}/", ca_file=files.authority)
            sending = asyncio.create_task(made.asend(message()))
            (delivery,) = await receiving
            delivery.ack()
            await sending
            await consumer.aclose()

        run(scenario())


class HypercornServer:
    """An ASGI application under hypercorn, which has HTTP/2, in a thread."""

    def __init__(self, application: Any, files: Files, port: int) -> None:
        import hypercorn.asyncio
        import hypercorn.config

        config = hypercorn.config.Config()
        config.bind = [f"127.0.0.1:{port}"]
        config.certfile, config.keyfile = files.server, files.server
        config.alpn_protocols = ["h2"]
        config.loglevel = "CRITICAL"
        self.port = port
        ready: Future[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = Future()

        async def serve() -> None:
            stop = asyncio.Event()
            ready.set_result((asyncio.get_running_loop(), stop))
            await hypercorn.asyncio.serve(
                application, config, shutdown_trigger=stop.wait, mode="asgi"
            )

        self._thread = threading.Thread(target=lambda: asyncio.run(serve()))
        self._thread.start()
        self._loop, self._stop = ready.result(PATIENCE)

    def close(self) -> None:
        """Stop it."""
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(PATIENCE)


class TestHTTP2:
    @pytest.fixture
    def server(self, files: Files, free_port: Callable[[], int]) -> Iterator[HypercornServer]:
        """Serve HTTP/2 and nothing else."""
        made = HypercornServer(echo, files, free_port())
        yield made
        made.close()

    def test_is_spoken_where_it_is_configured(
        self, ask: Any, server: HypercornServer, producer: Make, message: Message, files: Files
    ) -> None:
        """One request after the other over a connection."""
        from postbus_http import ResendSettings

        made = producer(
            url_of(server),
            ca_file=files.authority,
            http2=True,
            # Until the server listens.
            resend=ResendSettings(max_attempts=100, initial_delay=0.1, max_delay=0.1),
        )
        assert ask(made, message(b"over two")) == b"over two"
        assert ask(made, message(b"again")) == b"again"

    def test_its_package_must_be_there(
        self, producer: Make, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The extra is named when the application is built."""
        monkeypatch.setattr("postbus_http._client.find_spec", lambda _: None)
        with pytest.raises(UnsupportedError, match=r"postbus-http\[http2\]"):
            producer("https://example.org/", http2=True)
