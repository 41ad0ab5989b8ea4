"""What a section may say, and what is refused when it is read."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from postbus.errors import Problem
from postbus.settings import parse
from postbus_http import HTTPConsumerSettings, HTTPProducerSettings, ResendSettings

KEY = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
URL = "https://example.org/messages"


def problems_of(cls: type, **section: Any) -> list[Problem]:
    """Return what is wrong with a section."""
    problems: list[Problem] = []
    parse(cls, section, "producers.remote", problems)
    return problems


class TestProducer:
    def test_an_address_is_all_it_needs(self) -> None:
        """H05: mandatory is the address; everything else has a default."""
        settings = HTTPProducerSettings(url=URL)
        assert (settings.max_connections, settings.total_timeout) == (16, 30.0)
        (problem,) = problems_of(HTTPProducerSettings)
        assert problem.path == "producers.remote.url"

    @pytest.mark.parametrize(
        "url",
        [
            URL,
            "https://example.org",
            "https://example.org:8443/a?b=c",
            "https://[2606:4700::1111]/",
            "https://b\u00fccher.example/",
            "http://localhost:8000/",
            "http://127.0.0.1:8000/",
            "http://[::1]:8000/",
        ],
    )
    def test_takes_https_and_plain_http_on_this_machine(self, url: str) -> None:
        """What nobody in between can read."""
        assert problems_of(HTTPProducerSettings, url=url) == []

    @pytest.mark.parametrize(
        "url",
        [
            "",
            "example.org",
            "/messages",
            "ftp://example.org/",
            "file:///etc/passwd",
            "https://",
            "https:///messages",
            "https://example.org:99999/",
            "https://example.org:0/",
            "https://example.org/#part",
            "https://user:hunter2@example.org/",
            "https://user@example.org/",
            "https://127.0.0.1@example.org/",
            "https://exa mple.org/",
            "https://example.org/\r\nX: y",
            "http://example.org/",
            "http://10.0.0.1/",
            "http://localhost.example.org/",
            "http://2130706433/",
        ],
    )
    def test_refuses_any_other_address_without_its_secrets(self, url: str) -> None:
        """A15, A18: relative, plain, or with credentials in it."""
        (problem,) = problems_of(HTTPProducerSettings, url=url)
        assert "hunter2" not in str(problem)

    def test_plain_http_elsewhere_must_be_meant(self) -> None:
        """One key says so."""
        section = {"url": "http://10.0.0.1/", "allow_http": True}
        assert problems_of(HTTPProducerSettings, **section) == []

    def test_a_host_must_be_on_the_list(self) -> None:
        """For an address that somebody else configures."""
        assert problems_of(HTTPProducerSettings, url=URL, allowed_hosts=["example.org"]) == []
        (problem,) = problems_of(HTTPProducerSettings, url=URL, allowed_hosts=["example.com"])
        assert "allowed_hosts" in str(problem)

    @pytest.mark.parametrize(
        ("section", "expected"),
        [
            ({"username": "ada"}, "username and password together"),
            ({"password": "hunter2"}, "username and password together"),
            ({"bearer": "t", "auth": httpx.BasicAuth("a", "b")}, "one of bearer"),
            ({"bearer": "t", "username": "a", "password": "hunter2"}, "one of bearer"),
            ({"auth": "hunter2"}, "an httpx.Auth"),
            ({"key_file": "key.pem"}, "certificate_file beside key_file"),
            ({"signing_keys": ["hunter2"]}, "signing keys of whsec_"),
            ({"bearer": "hunter2\r\nX: y"}, "bearer"),
            ({"username": "a:b"}, "username"),
            ({"batch": 0}, "batch"),
            ({"total_timeout": 0.0}, "total_timeout"),
            ({"resend": {"max_attempts": 0}}, "resend.max_attempts"),
        ],
    )
    def test_refuses_what_cannot_be(self, section: dict[str, Any], expected: str) -> None:
        """Each with what was expected, none with a secret."""
        (problem,) = problems_of(HTTPProducerSettings, url=URL, **section)
        assert expected in str(problem)
        assert "hunter2" not in str(problem)

    def test_shows_no_secret(self) -> None:
        """A18: the representation is what a log has."""
        settings = HTTPProducerSettings(
            url="https://example.org/hook?token=hunter2",
            signing_keys=[KEY],
            bearer="hunter2",
            resend=ResendSettings(),
        )
        assert "hunter2" not in repr(settings)
        assert KEY not in repr(settings)


class TestConsumer:
    def test_listens_on_this_machine_only(self) -> None:
        """Unless it says otherwise."""
        settings = HTTPConsumerSettings()
        assert (settings.host, settings.port, settings.path) == ("127.0.0.1", 8000, "/")

    @pytest.mark.parametrize("bind", ["127.0.0.1:0", "localhost:80", "[::1]:8000"])
    def test_a_loopback_address_needs_no_authentication(self, bind: str) -> None:
        """Who can reach it is on this machine."""
        assert problems_of(HTTPConsumerSettings, bind=bind) == []
        assert HTTPConsumerSettings(bind=bind).host in {"127.0.0.1", "localhost", "::1"}

    @pytest.mark.parametrize("bind", ["0.0.0.0:80", "[::]:80", "192.168.0.1:80", "shop.local:80"])
    def test_any_other_does(self, bind: str) -> None:
        """A12: signatures, a token, or that none is meant."""
        (problem,) = problems_of(HTTPConsumerSettings, bind=bind)
        assert "allow_any_peer" in str(problem)
        for way in ({"signing_keys": [KEY]}, {"bearer": "t0ken"}, {"allow_any_peer": True}):
            assert problems_of(HTTPConsumerSettings, bind=bind, **way) == []

    @pytest.mark.parametrize(
        "section",
        [
            {"bind": "127.0.0.1"},
            {"bind": "127.0.0.1:70000"},
            {"bind": "http://127.0.0.1:80"},
            {"bind": ":80"},
            {"path": "messages"},
            {"path": "/a?b"},
            {"key_file": "key.pem"},
            {"signing_keys": ["short"]},
        ],
    )
    def test_refuses_what_cannot_be(self, section: dict[str, Any]) -> None:
        """Each when it is read."""
        assert len(problems_of(HTTPConsumerSettings, **section)) == 1
