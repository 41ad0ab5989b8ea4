"""The endpoint inside of real applications, which also send to it; served for real."""

from __future__ import annotations

import http.client
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from importlib import import_module
from types import ModuleType
from typing import Any

import attrs
import fastapi
import pytest

from postbus import Command, Query, build
from postbus_http import MessageEndpoint

KEY = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
PATIENCE = 30.0


@attrs.frozen
class RegisterUser(Command, name="frameworks.register-user"):
    """A command."""

    user: str


@attrs.frozen
class CountUsers(Query[int], name="frameworks.count-users"):
    """A query."""


class Shop:
    """One application that dispatches here and handles there, by one dict."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.users: list[str] = []
        self.config = {
            "messages": [__name__],
            "producers": {
                "shop": {
                    "transport": "http",
                    "url": f"http://127.0.0.1:{port}/messages/",
                    "signing_keys": [KEY],
                }
            },
            "command_bus": {
                "router": {
                    "routes": {"frameworks.register-user": "register"},
                    "send": {"frameworks.register-user": "producers.shop"},
                }
            },
            "query_bus": {
                "router": {
                    "routes": {"frameworks.count-users": "count"},
                    "send": {"frameworks.count-users": "producers.shop"},
                }
            },
        }
        self.services = {
            "register": lambda command: self.users.append(command.user),
            "count": lambda _: len(self.users),
        }


@pytest.fixture
def shop(free_port: Callable[[], int]) -> Shop:
    """Name the port before anything is served there."""
    return Shop(free_port())


@pytest.fixture
def postbus(shop: Shop) -> Iterator[Any]:
    """Build the application's buses."""
    with build(shop.config, shop.services) as made:
        yield made


def ask(port: int, path: str) -> Any:
    """Call a page of the application."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    with closing(connection):
        connection.request("GET", path)
        answer = connection.getresponse()
        assert answer.status == 200
        return json.loads(answer.read())


class TestFastAPI:
    def test_a_page_dispatches_and_the_endpoint_handles(
        self, shop: Shop, postbus: Any, served: Any
    ) -> None:
        """Mounted below a path, beside the pages of the application."""
        application = fastapi.FastAPI()

        @application.get("/register/{user}")
        async def register(user: str) -> dict[str, int]:
            await postbus.command_bus.adispatch(RegisterUser(user))
            return {"users": await postbus.query_bus.adispatch(CountUsers())}

        application.mount("/messages", MessageEndpoint(postbus, signing_keys=[KEY]))
        server = served(application, bind=shop.port)
        assert ask(server.port, "/register/ada") == {"users": 1}
        assert ask(server.port, "/register/bob") == {"users": 2}
        assert shop.users == ["ada", "bob"]


class TestDjango:
    def test_a_view_dispatches_and_the_endpoint_handles(
        self, shop: Shop, postbus: Any, served: Any
    ) -> None:
        """Beside Django's own application, in `asgi.py`; the view is a plain function."""
        # Django has no types, and nothing of it may be imported before it has settings.
        django: Any = import_module("django")
        settings: Any = import_module("django.conf").settings
        if not settings.configured:
            settings.configure(ALLOWED_HOSTS=["127.0.0.1"], SECRET_KEY="x" * 50, MIDDLEWARE=[])
            django.setup()
        http_: Any = import_module("django.http")
        utils: Any = import_module("django.test.utils")
        path: Any = import_module("django.urls").path

        def register(_: Any, user: str) -> Any:
            postbus.command_bus.dispatch(RegisterUser(user))
            users = postbus.query_bus.dispatch(CountUsers()).result(PATIENCE)
            return http_.JsonResponse({"users": users})

        urls = ModuleType("frameworks_urls")
        urls.urlpatterns = [path("register/<user>", register)]  # type: ignore[attr-defined]  # what Django looks for
        sys.modules[urls.__name__] = urls
        pages = import_module("django.core.asgi").get_asgi_application()
        endpoint = MessageEndpoint(postbus, signing_keys=[KEY])

        async def application(scope: Any, receive: Any, send: Any) -> None:
            is_message = scope["path"] == "/messages/"
            await (endpoint if is_message else pages)(scope, receive, send)

        with utils.override_settings(ROOT_URLCONF=urls.__name__):
            server = served(application, bind=shop.port)
            assert ask(server.port, "/register/ada") == {"users": 1}
        assert shop.users == ["ada"]
