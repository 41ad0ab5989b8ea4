"""Signatures of the Standard Webhooks specification, beside the package of that specification."""

from __future__ import annotations

import base64
import random
import time
from datetime import UTC, datetime
from typing import Any

import pytest
import standardwebhooks
from hypothesis import given
from hypothesis import strategies as st

from postbus.errors import UnauthorizedError
from postbus_http import WebhookKeys

OLD = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
NEW = "whsec_AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwd"
BODY = b'{"message_name": "shop.echo-text"}'
ID = "11111111-1111-4111-8111-111111111111"
NOW = 1_700_000_000.0


def as_bytes(headers: dict[str, str]) -> dict[bytes, bytes]:
    """Return headers as a server has them."""
    return {name.lower().encode(): value.encode() for name, value in headers.items()}


def signed(*keys: str, body: bytes = BODY, now: float = NOW) -> dict[bytes, bytes]:
    """Return the headers of a signed body."""
    return as_bytes(WebhookKeys(keys).sign(ID, body, now=now))


def refused(keys: WebhookKeys, headers: dict[bytes, bytes], body: bytes = BODY) -> str:
    """Return what a refusal says."""
    with pytest.raises(UnauthorizedError) as caught:
        keys.verify(headers, body, tolerance=300, now=NOW)
    return str(caught.value)


class TestOracle:
    """The package `standardwebhooks`, written by others."""

    @given(st.text(min_size=1, max_size=200))
    def test_verifies_what_we_sign(self, text: str) -> None:
        """Any body of text that JSON can be made of."""
        import json

        body = json.dumps({"text": text})
        headers = WebhookKeys([OLD]).sign("msg_1", body.encode())
        assert standardwebhooks.Webhook(OLD).verify(body, headers) == {"text": text}

    @given(st.text(max_size=200))
    def test_signs_what_we_verify(self, body: str) -> None:
        """The same the other way round; a body that UTF-8 has."""
        encoded = body.encode(errors="replace")
        moment = datetime.now(UTC)
        signature = standardwebhooks.Webhook(OLD).sign("msg_1", moment, encoded.decode())
        headers = {
            "webhook-id": "msg_1",
            "webhook-timestamp": str(int(moment.timestamp())),
            "webhook-signature": signature,
        }
        WebhookKeys([NEW, OLD]).verify(as_bytes(headers), encoded, tolerance=300)

    def test_takes_our_signatures_of_two_keys_with_either(self) -> None:
        """While keys change, both are signed with, and each receiver finds its own."""
        headers = WebhookKeys([OLD, NEW]).sign("msg_1", BODY)
        for key in (OLD, NEW):
            assert standardwebhooks.Webhook(key).verify(BODY.decode(), headers)


class TestVerify:
    def test_takes_a_body_that_is_no_text(self) -> None:
        """A signature is over bytes, whatever they say."""
        body = b"\xff\xfe\x00"
        WebhookKeys([OLD]).verify(signed(OLD, body=body), body, tolerance=300, now=NOW)

    def test_takes_any_of_several_keys(self) -> None:
        """Rotation: old and new on either side."""
        for sender in ((OLD,), (NEW,), (OLD, NEW)):
            WebhookKeys([OLD, NEW]).verify(signed(*sender), BODY, tolerance=300, now=NOW)

    @pytest.mark.parametrize("seconds", [-300, 0, 300])
    def test_takes_a_time_within_the_tolerance(self, seconds: float) -> None:
        """Clocks differ."""
        headers = signed(OLD, now=NOW + seconds)
        WebhookKeys([OLD]).verify(headers, BODY, tolerance=300, now=NOW)

    def test_ignores_signatures_of_other_versions(self) -> None:
        """A sender may add an asymmetric one."""
        headers = signed(OLD)
        headers[b"webhook-signature"] = b"v1a,AAAA v2 " + headers[b"webhook-signature"]
        WebhookKeys([OLD]).verify(headers, BODY, tolerance=300, now=NOW)

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("webhook-id", None),
            ("webhook-id", b"other"),
            ("webhook-id", b"with.stop"),
            ("webhook-id", b"a" * 65),
            ("webhook-timestamp", None),
            ("webhook-timestamp", b"1700000001"),
            ("webhook-timestamp", b"1699999699"),
            ("webhook-timestamp", b"1700000301"),
            ("webhook-timestamp", b"-1"),
            ("webhook-timestamp", b"1e9"),
            ("webhook-timestamp", b"9" * 400),
            ("webhook-signature", None),
            ("webhook-signature", b""),
            ("webhook-signature", b"v1"),
            ("webhook-signature", b"v1,"),
            ("webhook-signature", b"v1,not base64"),
            ("webhook-signature", b"v1,\xff\xff"),
            ("webhook-signature", b"v1," + base64.b64encode(b"x" * 32)),
            ("webhook-signature", b"v1a," + base64.b64encode(b"x" * 32)),
            ("webhook-signature", b" ".join([b"v1,AAAA"] * 10_000)),
        ],
    )
    def test_says_the_same_whatever_is_wrong(self, name: str, value: bytes | None) -> None:
        """A11: malformed and wrong are one refusal, and nothing else is raised."""
        headers = signed(OLD)
        headers.pop(name.encode())
        if value is not None:
            headers[name.encode()] = value
        assert refused(WebhookKeys([OLD]), headers) == "the request is not signed as it must be"

    def test_refuses_the_good_one_behind_too_many(self) -> None:
        """A stranger does not make us compute for ever; a rotation has two."""
        headers = signed(OLD)
        headers[b"webhook-signature"] = b"v1,AAAA " * 40 + headers[b"webhook-signature"]
        refused(WebhookKeys([OLD]), headers)

    def test_refuses_another_key_and_none(self) -> None:
        """Who has no key accepts nothing."""
        refused(WebhookKeys([NEW]), signed(OLD))
        refused(WebhookKeys([]), signed(OLD))

    def test_refuses_every_forgery(self) -> None:
        """A9: 10,000 single-bit changes of id, time, body and signature; not one is accepted."""
        keys, chosen = WebhookKeys([OLD]), random.Random(5)
        headers = signed(OLD)
        accepted = 0
        for _ in range(10_000):
            forged, body = dict(headers), bytearray(BODY)
            part = chosen.choice([b"body", *headers])
            target = body if part == b"body" else bytearray(headers[part])
            target[chosen.randrange(len(target))] ^= 1 << chosen.randrange(8)
            if part != b"body":
                forged[part] = bytes(target)
            try:
                keys.verify(forged, bytes(body), tolerance=300, now=NOW)
            except UnauthorizedError:
                continue
            accepted += 1
        assert accepted == 0

    def test_is_by_the_clock_unless_told(self) -> None:
        """Signed now is good now, and signed an hour ago is not."""
        keys = WebhookKeys([OLD])
        keys.verify(as_bytes(keys.sign(ID, BODY)), BODY, tolerance=300)
        with pytest.raises(UnauthorizedError):
            old = keys.sign(ID, BODY, now=time.time() - 3600)
            keys.verify(as_bytes(old), BODY, tolerance=300)


class TestKeys:
    @pytest.mark.parametrize(
        "key",
        [
            "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
            "whsec_",
            "whsec_c2hvcnQ=",
            "whsec_not base64",
            "whsec_\u00e9",
            "whsec_" + base64.b64encode(b"x" * 65).decode(),
        ],
    )
    def test_refuses_what_is_no_key_without_showing_it(self, key: str) -> None:
        """A short key protects nothing."""
        with pytest.raises(ValueError, match="whsec_ and the base64 of 24 to 64") as caught:
            WebhookKeys([key])
        assert key.removeprefix("whsec_")[:5] not in str(caught.value).replace("whsec_", "") or (
            key == "whsec_"
        )

    @pytest.mark.parametrize("message_id", ["", "a.b", "a\r\nb", "a" * 65, "\u00e9", "\ud800"])
    def test_signs_no_id_that_could_be_read_in_two_ways(self, message_id: str) -> None:
        """A16: the full stop delimits what is signed."""
        with pytest.raises(ValueError, match="cannot be signed"):
            WebhookKeys([OLD]).sign(message_id, BODY)

    def test_says_nothing_of_its_keys(self) -> None:
        """A18: not even in its representation."""
        keys: Any = WebhookKeys([OLD])
        assert "MfKQ" not in repr(keys)
        assert bool(keys)
        assert not WebhookKeys([])
