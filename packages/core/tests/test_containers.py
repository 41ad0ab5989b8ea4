"""A configuration, and a transport, as containers of `dependency_injector`."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import attrs
import pytest
from dependency_injector import containers, providers

from postbus import (
    Capabilities,
    Command,
    Event,
    EventBus,
    MessageCatalog,
    MessageProducerPlugin,
    Query,
    Stage,
)
from postbus.containers import (
    ContainerServices,
    MemoryContainer,
    PostbusContainer,
    TransportContainer,
)
from postbus.errors import (
    ClosedError,
    ConfigurationError,
    HandlerFailedError,
    Problem,
)
from postbus.memory import MEMORY, MemoryProducerSettings
from postbus.testing import RecordingProducer
from postbus.unit import Lifetime

# The module whose messages the configurations name: this one.
HERE = __name__


@attrs.frozen
class RegisterUser(Command, name="app.register-user"):
    """A command."""

    user: str


@attrs.frozen
class UserRegistered(Event, name="app.user-registered"):
    """An event."""

    user: str


@attrs.frozen
class CountUsers(Query[int], name="app.count-users"):
    """A query."""


CONFIG: dict[str, Any] = {
    "messages": [HERE],
    "producers": {"mail": {"transport": "memory", "address": HERE}},
    "command_bus": {"router": {"routes": {"app.register-user": "register_user"}}},
}
YAML = f"""
postbus:
  messages: [{HERE}]
  producers:
    mail: {{transport: memory, address: {HERE}}}
  command_bus:
    router:
      routes:
        app.register-user: register_user
"""


class Application(containers.DeclarativeContainer):
    """An application with its own configuration, its services, and postbus in it."""

    __self__ = providers.Self()
    config = providers.Configuration()
    handled: providers.Singleton[list[Any]] = providers.Singleton(list)
    register_user = providers.Callable(lambda handled, message: handled.append(message), handled)
    postbus = providers.Container(PostbusContainer, config=config.postbus, services=__self__)


def by_constructor(services: dict[str, Any], folder: Path) -> Any:
    """Give the configuration to the constructor."""
    return PostbusContainer(config=CONFIG, services=services)


def by_from_dict(services: dict[str, Any], folder: Path) -> Any:
    """Fill the configuration from a dict."""
    container: Any = PostbusContainer(services=services)
    container.config.from_dict(CONFIG)
    return container


def by_from_yaml(services: dict[str, Any], folder: Path) -> Any:
    """Fill the configuration from a file."""
    (folder / "app.yaml").write_text(YAML, encoding="utf-8")
    container: Any = PostbusContainer(services=services)
    container.config.from_yaml(folder / "app.yaml")
    return container


def nested(services: dict[str, Any], folder: Path) -> Any:
    """Stand in an application's container, which has the configuration and the services."""
    application: Any = Application()
    application.config.from_dict({"postbus": CONFIG})
    application.register_user.override(providers.Object(services["register_user"]))
    return application.postbus


GIVEN = [by_constructor, by_from_dict, by_from_yaml, nested]


def shut_down(container: Any) -> None:
    """Close it as an application closes its resources."""
    container.shutdown_resources()


def with_block(container: Any) -> None:
    """Close it as a context manager."""
    # An application's container knows its part as a provider: what that stands for is entered.
    inner = container.container if isinstance(container, providers.Container) else container
    with inner as entered:
        assert entered is inner


def close(container: Any) -> None:
    """Close it by its method."""
    container.close()


class TestPostbusContainer:
    """A whole configuration as providers."""

    @pytest.mark.parametrize("way", [close, with_block, shut_down])
    @pytest.mark.parametrize("given", GIVEN)
    def test_it_works_however_it_is_given_and_closed(
        self, given: Any, way: Callable[[Any], None], tmp_path: Path
    ) -> None:
        """Four ways to give a configuration, three to close what was made of it."""
        handled: list[Any] = []
        container = given({"register_user": handled.append}, tmp_path)
        postbus = container.postbus()
        producer = postbus.producers["mail"]

        container.command_bus().dispatch(RegisterUser("Ada"))
        assert handled == [RegisterUser("Ada")]

        way(container)
        way(container)

        assert postbus.is_closed
        for name in (
            "postbus",
            "catalog",
            "producers",
            "routers",
            "plugins",
            "command_bus",
            "event_bus",
            "query_bus",
            "worker",
        ):
            with pytest.raises(ClosedError):
                getattr(container, name)()
        with pytest.raises(ClosedError):
            container.check()
        with pytest.raises(ClosedError):
            producer.send(None)

    def test_an_application_s_own_shutdown_closes_what_stands_in_it(self) -> None:
        """`shutdown_resources()` of the application reaches every child."""
        application: Any = Application()
        application.config.from_dict({"postbus": CONFIG})
        postbus = application.postbus.postbus()
        application.postbus.command_bus().dispatch(RegisterUser("Ada"))

        application.shutdown_resources()

        assert application.handled() == [RegisterUser("Ada")]
        assert postbus.is_closed
        with pytest.raises(ClosedError):
            application.postbus.command_bus()

    def test_an_application_may_begin_again(self) -> None:
        """Its own resources are not kept from it by ours; ours stay closed."""
        application: Any = Application()
        application.config.from_dict({"postbus": CONFIG})
        application.postbus.postbus()
        application.shutdown_resources()
        application.init_resources()

        with pytest.raises(ClosedError):
            application.postbus.postbus()
        application.shutdown_resources()

    def test_closed_before_it_was_used_it_stays_closed(self) -> None:
        """Nothing is built any more."""
        container = PostbusContainer()
        container.close()

        with pytest.raises(ClosedError):
            container.postbus()

    def test_every_provider_gives_a_part_of_the_one_postbus(self) -> None:
        """The same objects, however they are asked for."""
        with PostbusContainer(
            config={**CONFIG, "consumers": CONFIG["producers"]}, services={"register_user": print}
        ) as container:
            postbus = container.postbus()

            assert container.postbus() is postbus
            assert container.catalog() is postbus.catalog
            assert dict(container.producers()) == dict(postbus.producers)
            assert container.routers() == postbus.routers
            assert container.plugins() == postbus.plugins
            assert container.command_bus() is postbus.command_bus
            assert container.event_bus() is postbus.event_bus
            assert container.query_bus() is postbus.query_bus
            assert container.worker() is not container.worker()

    def test_without_a_configuration_there_are_plain_buses(self) -> None:
        """F02: none at all, and an empty one."""
        for container in (PostbusContainer(), PostbusContainer(config={})):
            container.event_bus().dispatch(UserRegistered("Ada"))
            container.close()

    def test_a_broken_configuration_is_refused_by_the_constructor(self) -> None:
        """There and then, where it is given."""
        with pytest.raises(ConfigurationError) as caught:
            PostbusContainer(config={"commnd_bus": {}})

        assert [problem.path for problem in caught.value.problems] == ["commnd_bus"]

    @pytest.mark.parametrize("name", ["postbus", "catalog", "producers", "event_bus", "worker"])
    def test_filled_later_it_is_refused_in_full_by_the_first_provider(self, name: str) -> None:
        """And by the next one again: nothing half-built stands."""
        container: Any = PostbusContainer()
        container.config.from_dict({"commnd_bus": {}, "messages": ["no.such.module"]})

        for _ in range(2):
            with pytest.raises(ConfigurationError) as caught:
                getattr(container, name)()
            paths = [problem.path for problem in caught.value.problems]
            assert paths == ["commnd_bus", "messages[0]"]
        with pytest.raises(ConfigurationError):
            container.check()
        container.close()

    def test_a_configuration_that_was_not_loaded_is_refused(self) -> None:
        """An application that forgets its section gets no empty bus."""
        application: Any = Application()

        with pytest.raises(ConfigurationError) as caught:
            application.postbus.check()

        assert [problem.path for problem in caught.value.problems] == ["postbus"]

    def test_threads_get_one_postbus(self) -> None:
        """Eight of them, at once."""
        together = threading.Barrier(8)
        container: Any = PostbusContainer(services={"register_user": print})
        container.config.from_dict(CONFIG)

        def ask(_: int) -> Any:
            together.wait(10)
            return container.postbus()

        with container, ThreadPoolExecutor(8) as pool:
            assert len(set(pool.map(ask, range(8)))) == 1

    def test_a_catalogue_of_the_application_is_filled_further(self) -> None:
        """Given as a provider of the container, or of the application."""
        catalog = MessageCatalog()
        catalog.add(int, name="plain.number", kind="command")

        with PostbusContainer(
            config=CONFIG, services={"register_user": print}, catalog=catalog
        ) as container:
            assert container.postbus().catalog is catalog
            assert container.catalog() is catalog
            assert {"plain.number", "app.register-user"} <= set(catalog.names())

    def test_two_of_one_class_share_nothing(self) -> None:
        """Each has its own configuration and its own life."""
        services = {"register_user": print}
        first = PostbusContainer(config=CONFIG, services=services)
        second = PostbusContainer(config={"messages": [HERE]})
        assert list(second.producers()) == []
        first.close()

        second.command_bus().close()
        second.close()

    def test_a_subclass_is_closed_like_its_parent(self) -> None:
        """What an application adds to it does not get in the way."""

        class Extended(PostbusContainer):
            greeting = providers.Object("hello")

        with Extended(config={}) as container:
            postbus = container.postbus()
            assert container.greeting() == "hello"

        assert postbus.is_closed

    def test_replacing_a_producer_needs_no_new_container(self) -> None:
        """In a test, on buses that exist already."""
        config = {
            **CONFIG,
            "command_bus": {"router": {"send": {"app.register-user": "producers.mail"}}},
        }
        with PostbusContainer(config=config) as container:
            bus = container.command_bus()
            with container.postbus().replacing("mail", RecordingProducer()) as sent:
                bus.dispatch(RegisterUser("Ada"))

        assert [message.name for message in sent.messages] == ["app.register-user"]


class Session:
    """A session that says what became of it."""

    log: list[tuple[str, int]]

    def __enter__(self) -> Self:
        self.log.append(("begin", id(self)))
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self.log.append(("commit" if kind is None else "rollback", id(self)))


@pytest.fixture
def session_log(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Return what the sessions of this test say."""
    log: list[tuple[str, int]] = []
    monkeypatch.setattr(Session, "log", log, raising=False)
    return log


class Handler:
    """A handler with something of its own."""

    def __init__(self, seen: list[Any], session: Session | None = None) -> None:
        self.seen = seen
        self.session = session

    def __call__(self, message: RegisterUser) -> None:
        self.seen.append((self, self.session, message.user))
        if message.user == "nobody":
            raise ValueError(message.user)


class EnteredHandler(Handler):
    """A handler that is its own unit."""

    def __enter__(self) -> Self:
        self.seen.append("entered")
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self.seen.append("left" if kind is None else "left with an error")


def bus_over(services: Any, **section: Any) -> Any:
    """Return a container whose command bus handles with `register_user` of *services*."""
    router = {"routes": {"app.register-user": "register_user"}}
    config = {"messages": [HERE], "command_bus": {"router": router, **section}}
    return PostbusContainer(config=config, services=services)


class TestLifetimes:
    """Lifetimes are the provider's."""

    def dispatch_in_threads(self, container: Any) -> None:
        """Dispatch eight messages in eight threads at once."""
        together = threading.Barrier(8)

        def dispatch(number: int) -> None:
            together.wait(10)
            container.command_bus().dispatch(RegisterUser(f"user {number}"))

        with container, ThreadPoolExecutor(8) as pool:
            list(pool.map(dispatch, range(8)))

    @pytest.mark.parametrize(
        "kind", [providers.Singleton, providers.ThreadSafeSingleton, providers.Resource]
    )
    def test_a_singleton_or_resource_is_made_once(self, kind: Any) -> None:
        """Also where eight threads need it at the same moment."""
        seen: list[Any] = []
        begun: list[int] = []
        another = threading.Event()

        def make() -> Handler:
            begun.append(threading.get_ident())
            if len(begun) > 1:
                another.set()
            # Give the others time to come here too.
            another.wait(0.2)
            return Handler(seen)

        services = containers.DynamicContainer()
        services.register_user = kind(make)

        self.dispatch_in_threads(bus_over(services))

        assert len(begun) == 1
        assert len(seen) == 8
        assert len({id(handler) for handler, _, _ in seen}) == 1

    def test_a_resource_is_shut_down_by_its_application(self) -> None:
        """Not by us: whose it is closes it."""
        seen: list[Any] = []

        def make() -> Iterator[Handler]:
            yield Handler(seen)
            seen.append("shut down")

        services = containers.DynamicContainer()
        services.register_user = providers.Resource(make)
        with bus_over(services) as container:
            container.command_bus().dispatch(RegisterUser("Ada"))
        assert len(seen) == 1
        services.shutdown_resources()

        assert seen[1:] == ["shut down"]

    def test_an_object_is_the_handler_itself(self) -> None:
        """`providers.Object` gives what it was given."""
        seen: list[Any] = []
        handler = Handler(seen)
        services = containers.DynamicContainer()
        services.register_user = providers.Object(handler)
        with bus_over(services) as container:
            container.command_bus().dispatch(RegisterUser("Ada"))

        assert seen == [(handler, None, "Ada")]

    def test_a_factory_makes_a_handler_per_message(self) -> None:
        """Never one for two threads."""
        seen: list[Any] = []
        services = containers.DynamicContainer()
        services.register_user = providers.Factory(Handler, seen)

        self.dispatch_in_threads(bus_over(services))

        assert len({id(handler) for handler, _, _ in seen}) == 8

    def test_a_factory_s_context_manager_is_left_with_the_outcome(self) -> None:
        """Entered before, left after, with the error where there is one."""
        seen: list[Any] = []
        services = containers.DynamicContainer()
        services.register_user = providers.Factory(EnteredHandler, seen)
        with bus_over(services) as container:
            container.command_bus().dispatch(RegisterUser("Ada"))
            with pytest.raises(HandlerFailedError):
                container.command_bus().dispatch(RegisterUser("nobody"))

        told = [each for each in seen if isinstance(each, str)]
        assert told == ["entered", "left", "entered", "left with an error"]

    def test_a_session_of_the_unit_is_shared_by_its_handlers(
        self, session_log: list[tuple[str, int]]
    ) -> None:
        """A session per message in eight threads, the same for handler and unit."""
        seen: list[Any] = []
        services = containers.DynamicContainer()
        services.session = providers.ContextLocalSingleton(Session)
        services.register_user = providers.Factory(Handler, seen, session=services.session)

        self.dispatch_in_threads(bus_over(services, unit_of_work="session"))

        sessions = {id(session) for _, session, _ in seen}
        assert len(sessions) == 8
        for outcome in ("begin", "commit"):
            assert {id_ for what, id_ in session_log if what == outcome} == sessions

    def test_a_failing_handler_rolls_its_session_back(
        self, session_log: list[tuple[str, int]]
    ) -> None:
        """Its own, and no other's."""
        services = containers.DynamicContainer()
        services.session = providers.ContextLocalSingleton(Session)
        services.register_user = providers.Factory(Handler, [], session=services.session)
        with bus_over(services, unit_of_work="session") as container:
            container.command_bus().dispatch(RegisterUser("Ada"))
            with pytest.raises(HandlerFailedError):
                container.command_bus().dispatch(RegisterUser("nobody"))
            container.command_bus().dispatch(RegisterUser("Bob"))

        outcomes = [what for what, _ in session_log if what != "begin"]
        assert outcomes == ["commit", "rollback", "commit"]

    def test_a_session_from_before_the_unit_is_not_in_it(
        self, session_log: list[tuple[str, int]]
    ) -> None:
        """What the caller's context had before stays there, and is untouched."""
        seen: list[Any] = []
        services = containers.DynamicContainer()
        services.session = providers.ContextLocalSingleton(Session)
        services.register_user = providers.Factory(Handler, seen, session=services.session)
        before = services.session()
        with bus_over(services, unit_of_work="session") as container:
            container.command_bus().dispatch(RegisterUser("Ada"))

        ((_, session, _),) = seen
        assert session is not before
        assert services.session() is before
        assert {id_ for _, id_ in session_log} == {id(session)}

    @pytest.mark.parametrize("kind", [providers.Factory, providers.ThreadLocalSingleton])
    def test_a_unit_may_be_made_by_another_provider(
        self, kind: Any, session_log: list[tuple[str, int]]
    ) -> None:
        """A Factory makes a new one each time; what a thread keeps is entered again."""
        services = containers.DynamicContainer()
        services.session = kind(Session)
        services.register_user = providers.Object(Handler([]))
        with bus_over(services, unit_of_work="session") as container:
            container.command_bus().dispatch(RegisterUser("Ada"))
            container.command_bus().dispatch(RegisterUser("Ada"))

        assert [what for what, _ in session_log] == ["begin", "commit"] * 2

    def test_a_callable_is_a_handler_with_what_is_injected(self) -> None:
        """Called with the message beside it."""
        seen: list[Any] = []
        services = containers.DynamicContainer()
        services.register_user = providers.Callable(
            lambda greeting, message: seen.append((greeting, message.user)), "hello"
        )
        with bus_over(services) as container:
            container.command_bus().dispatch(RegisterUser("Ada"))

        assert seen == [("hello", "Ada")]

    def test_a_handler_may_take_the_bus_in_its_constructor(self) -> None:
        """The provider of the bus is injected into the provider of the handler."""
        heard: list[Any] = []

        class Registers:
            """A handler that announces."""

            def __init__(self, events: EventBus) -> None:
                self.events = events

            def __call__(self, message: RegisterUser) -> None:
                self.events.dispatch(UserRegistered(message.user))

        class App(containers.DeclarativeContainer):
            __self__ = providers.Self()
            config = providers.Configuration()
            postbus: Any = providers.Container(
                PostbusContainer, config=config.postbus, services=__self__
            )
            register_user = providers.ThreadSafeSingleton(Registers, postbus.event_bus)
            note = providers.Object(heard.append)

        application: Any = App()
        router = {"routes": {"app.user-registered": "note"}}
        application.config.from_dict({"postbus": {**CONFIG, "event_bus": {"router": router}}})
        application.postbus.command_bus().dispatch(RegisterUser("Ada"))
        application.shutdown_resources()

        assert heard == [UserRegistered("Ada")]


class TestContainerServices:
    """Ids that lead into containers."""

    @staticmethod
    def services() -> tuple[Any, ContainerServices]:
        """Return an application with a part of its own, and its services."""

        class Handlers(containers.DeclarativeContainer):
            register_user: Any = providers.Factory(dict)
            deeper: Any = providers.Container(Application)

        class Late(containers.DeclarativeContainer):
            sender: Any = providers.Object("sender")

        class App(containers.DeclarativeContainer):
            handlers: Any = providers.Container(Handlers)
            late: Any = providers.DependenciesContainer()
            never: Any = providers.DependenciesContainer()
            number: Any = providers.Object(5)

        application: Any = App(late=Late())
        return application, ContainerServices(application)

    def test_dotted_ids_walk_child_containers(self) -> None:
        """As deep as they stand, also into containers that are given later."""
        _, services = self.services()

        for id_ in ("number", "handlers.register_user", "handlers.deeper.handled", "late.sender"):
            assert services.has(id_)
        assert services.get("late.sender") == "sender"
        assert services.get("handlers.deeper.handled") == []
        for id_ in ("numbr", "number.x", "zzz.x", "handlers.zzz", "never.sender", "", ".number"):
            assert not services.has(id_)

    def test_a_typo_in_a_dotted_id_is_answered_with_the_nearest(self) -> None:
        """All ids of the application and its parts can be offered."""
        application, _ = self.services()
        router = {"routes": {"app.register-user": "handlers.register_usr"}}

        with pytest.raises(ConfigurationError) as caught:
            PostbusContainer(
                config={"messages": [HERE], "command_bus": {"router": router}},
                services=application,
            )

        (problem,) = caught.value.problems
        assert problem.suggestion == "did you mean 'handlers.register_user'?"

    def test_an_id_that_is_not_there_is_refused_by_name(self) -> None:
        """What somebody asks for without `has`."""
        _, services = self.services()

        with pytest.raises(ConfigurationError) as caught:
            services.get("zzz")

        assert caught.value.problems == (
            Problem("zzz", "", "expected a provider of the container", "add the provider"),
        )

    @pytest.mark.parametrize(
        ("provider", "lifetime"),
        [
            (providers.Singleton(dict), Lifetime.ONCE),
            (providers.ThreadSafeSingleton(dict), Lifetime.ONCE),
            (providers.Object(1), Lifetime.ONCE),
            (providers.Resource(dict), Lifetime.ONCE),
            (providers.Callable(dict), Lifetime.ONCE),
            (providers.Factory(dict), Lifetime.PER_UNIT),
            (providers.ContextLocalSingleton(dict), Lifetime.SHARED_IN_UNIT),
            (providers.ThreadLocalSingleton(dict), Lifetime.SHARED_IN_UNIT),
        ],
    )
    def test_the_kind_of_provider_is_the_lifetime(self, provider: Any, lifetime: Lifetime) -> None:
        """Overrides count as they stand."""
        container: Any = containers.DynamicContainer()
        container.one = provider
        container.other = providers.Selector(lambda: "x")
        container.other.override(provider)
        services = ContainerServices(container)

        assert services.lifetime("one") is lifetime
        assert services.lifetime("other") is lifetime
        assert services.provides("other") is provider.provides

    def test_overrides_of_a_test_are_used(self) -> None:
        """A handler replaced before its route is first used."""
        seen: list[Any] = []
        application: Any = Application()
        application.config.from_dict({"postbus": CONFIG})
        with application.register_user.override(providers.Object(seen.append)):
            application.postbus.command_bus().dispatch(RegisterUser("Ada"))
        application.shutdown_resources()

        assert seen == [RegisterUser("Ada")]

    def test_hand_written_services_are_taken_as_they_are(self) -> None:
        """Anything with `has`, `get` and `lifetime`."""
        seen: list[Any] = []

        class Services:
            """One service."""

            def has(self, id_: str, /) -> bool:
                return id_ == "register_user"

            def get(self, id_: str, /) -> Any:
                return seen.append

            def lifetime(self, id_: str, /) -> Lifetime:
                return Lifetime.ONCE

        with PostbusContainer(config=CONFIG, services=Services()) as container:
            container.command_bus().dispatch(RegisterUser("Ada"))

        assert seen == [RegisterUser("Ada")]

    def test_an_asyncio_handler_is_found_behind_a_factory(self) -> None:
        """Its colour is known before one is made: `dispatch` refuses it by its id."""
        made: list[Any] = []

        class Asynchronous:
            """A handler for `adispatch`."""

            def __init__(self) -> None:
                made.append(self)

            async def __call__(self, message: RegisterUser) -> None:
                raise AssertionError

        services = containers.DynamicContainer()
        services.register_user = providers.Factory(Asynchronous)
        with bus_over(services) as container, pytest.raises(Exception, match="register_user"):
            container.command_bus().dispatch(RegisterUser("Ada"))

        assert made == []


class OneWay(type(MEMORY)):  # type: ignore[misc]  # the class of the record is not exported
    """The memory transport without answers."""

    def make_producer(self, settings: Any, common: Any) -> Any:
        return RecordingProducer(capabilities=Capabilities())


class OneWayContainer(TransportContainer):
    """A transport that only sends."""

    transport = OneWay()


class OnlyAsks(type(MEMORY)):  # type: ignore[misc]  # as above
    """The memory transport for queries."""

    def make_producer(self, settings: Any, common: Any) -> Any:
        return RecordingProducer(capabilities=Capabilities(queries=True, queries_only=True))


class OnlyAsksContainer(TransportContainer):
    """A transport that only asks."""

    transport = OnlyAsks()


class TestTransportContainer:
    """One transport from one section."""

    @staticmethod
    @contextmanager
    def container(request: pytest.FixtureRequest, **section: Any) -> Generator[Any]:
        """Open a container on an address of the test's own."""
        with MemoryContainer(config={"address": request.node.nodeid, **section}) as container:
            yield container

    def test_everything_goes_to_the_producer(self, request: pytest.FixtureRequest) -> None:
        """Without routes each bus sends what it is given."""
        with self.container(request) as container:
            container.producer.override(providers.Object(sent := RecordingProducer()))
            container.command_bus().dispatch(RegisterUser("Ada"))
            container.event_bus().dispatch(UserRegistered("Ada"))
            promise = container.query_bus().dispatch(CountUsers())

            names = ["app.register-user", "app.user-registered", "app.count-users"]
            assert [message.name for message in sent.messages] == names
            assert promise.exception() is not None

    def test_its_parts_are_made_once(self, request: pytest.FixtureRequest) -> None:
        """Except the section's settings and consumers, which are new each time."""
        with self.container(request, consumer={"address": "x"}) as container:
            for name in (
                "producer",
                "plugin",
                "router",
                "event_router",
                "command_bus",
                "event_bus",
                "query_bus",
            ):
                assert getattr(container, name)() is getattr(container, name)()
            assert isinstance(container.plugin(), MessageProducerPlugin)
            assert container.router() is container.plugin()
            assert container.settings() == MemoryProducerSettings(address=request.node.nodeid)
            assert container.consumer() is not container.consumer()

    def test_threads_get_one_of_each(self, request: pytest.FixtureRequest) -> None:
        """Eight of them, at once."""
        together = threading.Barrier(8)
        with self.container(request) as container, ThreadPoolExecutor(8) as pool:

            def ask(_: int) -> Any:
                together.wait(10)
                return container.event_bus(), container.command_bus(), container.producer()

            assert len(set(pool.map(ask, range(8)))) == 1

    def test_routes_of_the_section_are_its_router(self, request: pytest.FixtureRequest) -> None:
        """Names of all kinds stand in one table; ids lead to services and to the producer."""
        handled: list[Any] = []
        router = {
            "routes": {
                "app.register-user": "note",
                "app.user-registered": ["note", "also"],
            },
            "send": {"app.count-users": "producers.memory"},
        }
        with self.container(request, router=router) as container:
            container.services.override({"note": handled.append, "also": handled.append})
            container.command_bus().dispatch(RegisterUser("Ada"))
            container.event_bus().dispatch(UserRegistered("Ada"))
            promise = container.query_bus().dispatch(CountUsers(), timeout=0.01)

            assert handled == [RegisterUser("Ada"), *[UserRegistered("Ada")] * 2]
            with pytest.raises(TimeoutError):
                promise.result(10)

    def test_routes_that_lead_nowhere_are_refused(self, request: pytest.FixtureRequest) -> None:
        """When a bus is asked for, all at once."""
        router = {"routes": {"app.x": "zzz"}, "send": {"app.*": "producers.mail"}}
        with self.container(request, router=router) as container:
            for name in ("router", "event_bus", "command_bus"):
                with pytest.raises(ConfigurationError) as caught:
                    getattr(container, name)()
                assert [problem.path for problem in caught.value.problems] == [
                    'memory_producer.router.routes."app.x"',
                    'memory_producer.router.send."app.*"',
                ]
            assert container.producer() is not None

    def test_a_producer_without_answers_has_no_query_bus(self) -> None:
        """T11: refused when that provider is called; the others work."""
        with OneWayContainer() as container:
            container.command_bus().dispatch(RegisterUser("Ada"))
            with pytest.raises(ConfigurationError) as caught:
                container.query_bus()

        (problem,) = caught.value.problems
        assert problem.path == "memory_producer.query_bus"
        assert "brings no answers back" in problem.expected
        assert problem.suggestion.startswith("set rpc")

    @pytest.mark.parametrize("bus", ["command_bus", "event_bus"])
    def test_a_producer_that_only_asks_has_a_query_bus_and_no_other(self, bus: str) -> None:
        """Z02, T11: refused when that provider is called; after a close it is closed."""
        with OnlyAsksContainer() as container:
            assert container.query_bus() is not None
            with pytest.raises(ConfigurationError) as caught:
                getattr(container, bus)()

        (problem,) = caught.value.problems
        assert problem.path == f"memory_producer.{bus}"
        assert problem.expected == "memory as configured takes queries only"
        assert problem.suggestion.startswith("leave rpc out")
        with pytest.raises(ClosedError):
            getattr(container, bus)()

    @pytest.mark.parametrize(
        ("section", "provider", "path", "expected", "advice"),
        [
            ({}, "consumer", "memory_producer.consumer", "expected a table", "add a table"),
            (
                {"consumer": 5},
                "consumer",
                "memory_producer.consumer",
                "expected a table",
                "add a table",
            ),
            (
                {"consumer": {"adress": "x"}},
                "consumer",
                "memory_producer.consumer.adress",
                "not a known key",
                "did you mean 'address'?",
            ),
            (
                {"adress": "x"},
                "producer",
                "memory_producer.adress",
                "not a known key",
                "did you mean 'address'?",
            ),
            (
                {"requires": ["durable"]},
                "command_bus",
                "memory_producer.requires[0]",
                "memory does not have it as configured",
                "choose a transport that has it",
            ),
            (
                {"transport": "zeromq"},
                "settings",
                "memory_producer.transport",
                "expected 'memory', whose container this is",
                "leave it out",
            ),
            (
                {"concurrency": 4},
                "plugin",
                "memory_producer.concurrency",
                "not a key here",
                "it belongs to a consumer",
            ),
        ],
    )
    def test_what_a_section_lacks_is_refused_by_the_provider_that_needs_it(
        self,
        section: dict[str, Any],
        provider: str,
        path: str,
        expected: str,
        advice: str,
    ) -> None:
        """With path, expectation and remedy."""
        with (
            MemoryContainer(config=section) as container,
            pytest.raises(ConfigurationError) as caught,
        ):
            getattr(container, provider)()

        (problem,) = caught.value.problems
        assert problem.path == path
        assert problem.expected.startswith(expected)
        assert problem.suggestion.startswith(advice)

    def test_what_the_transport_refuses_is_a_problem_of_the_section(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Not an exception of the transport's own."""

        def refuse(*_: Any) -> Any:
            raise ClosedError("not today")

        monkeypatch.setattr(OneWay, "make_producer", refuse)
        with OneWayContainer() as container, pytest.raises(ConfigurationError, match="not today"):
            container.producer()

    def test_the_whole_section_may_name_its_own_transport(self) -> None:
        """A section of `[postbus.producers]` can be handed over as it stands."""
        with MemoryContainer(config={"transport": "memory", "address": "x"}) as container:
            assert container.settings().address == "x"

    def test_a_section_that_was_not_loaded_is_refused(self) -> None:
        """An application that forgets its section gets no default."""

        class App(containers.DeclarativeContainer):
            config = providers.Configuration()
            memory: Any = providers.Container(MemoryContainer, config=config.memory)

        application: Any = App()

        with pytest.raises(ConfigurationError) as caught:
            application.memory.command_bus()

        (problem,) = caught.value.problems
        assert problem.suggestion == "load the configuration before it is used"

    @pytest.mark.parametrize("way", [close, with_block, shut_down])
    def test_closed_it_makes_nothing_and_what_it_made_is_closed(
        self, request: pytest.FixtureRequest, way: Callable[[Any], None]
    ) -> None:
        """By each of the three ways, and again without effect."""
        with self.container(request, consumer={}) as container:
            producer, bus = container.producer(), container.command_bus()
            bus.attach(Stage.ROUTE, lambda context: setattr(context, "handler", print))

            way(container)
            way(container)

            for name in ("settings", "consumer", "event_bus", "query_bus"):
                with pytest.raises(ClosedError):
                    getattr(container, name)()
            with pytest.raises(ClosedError):
                producer.send(None)
            with pytest.raises(ClosedError):
                bus.dispatch(RegisterUser("Ada"))

    def test_several_stand_side_by_side_in_an_application(
        self, request: pytest.FixtureRequest
    ) -> None:
        """Each with its section; the application's shutdown closes them all."""

        class App(containers.DeclarativeContainer):
            config = providers.Configuration()
            mail: Any = providers.Container(MemoryContainer, config=config.mail)
            reports: Any = providers.Container(MemoryContainer, config=config.reports)

        application: Any = App()
        address = request.node.nodeid
        application.config.from_dict(
            {"mail": {"address": f"{address}1"}, "reports": {"address": f"{address}2"}}
        )
        mail, reports = application.mail.producer(), application.reports.producer()
        assert mail is not reports
        assert application.mail.settings().address == f"{address}1"
        assert application.reports.settings().address == f"{address}2"

        application.shutdown_resources()

        for producer in (mail, reports):
            with pytest.raises(ClosedError):
                producer.send(None)

    def test_a_class_without_a_transport_is_no_container(self) -> None:
        """Said when it is made, with what to do."""
        with pytest.raises(TypeError, match="derive a class that sets it"):
            TransportContainer()

    def test_what_is_made_while_it_closes_is_closed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Whoever comes too late gets `ClosedError`, and leaves nothing open."""
        made = RecordingProducer()

        def make(*_: Any) -> Any:
            container.closables().close()
            return made

        monkeypatch.setattr(OneWay, "make_producer", make)
        with OneWayContainer() as container, pytest.raises(ClosedError):
            container.producer()

        assert made.is_closed
