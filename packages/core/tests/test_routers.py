"""Routers: who handles a name and where it goes first."""

from __future__ import annotations

import threading
from typing import Any

import attrs
import pytest

from postbus.buses import CommandBus, EventBus
from postbus.errors import NoHandlerError, RoutingError
from postbus.messages import AsyncMessage, Command, Envelope
from postbus.pipeline import Strength, Target
from postbus.plugins import MessageProducerPlugin
from postbus.routers import (
    AsyncSwitchMessageRouter,
    CommandRouter,
    EventRouter,
    QueryRouter,
    RegexRouter,
)
from postbus.testing import RecordingProducer


@attrs.frozen
class Place(Command, name="shop.place"):
    pass


@attrs.frozen
class Report(Command, AsyncMessage, name="shop.report"):
    pass


def one(message: object) -> None: ...


def two(message: object) -> None: ...


def targets(router: Any, name: str) -> list[Any]:
    return [t.to for t in router.handlers(name)]


class TestRoutes:
    @pytest.mark.parametrize("router", [CommandRouter, QueryRouter])
    def test_a_map_or_the_fluent_form_says_who_handles(self, router: type[CommandRouter]) -> None:
        """By class or by name, in the constructor, fluently, or decorated (P01)."""
        made = router({Place: one, "shop.other": two})
        made.route("shop.third").to(one)

        @made.handles("shop.fourth")
        def four(message: object) -> None: ...

        names = ["shop.place", "shop.other", "shop.third", "shop.fourth"]
        assert [[one], [two], [one], [four]] == [targets(made, name) for name in names]
        assert [] == targets(made, "shop.unknown")

    def test_a_route_must_be_ended_before_the_next(self) -> None:
        """Two routes begun are a mistake; so is None as a handler (P02)."""
        router = CommandRouter()
        open_route = router.route(Place)
        with pytest.raises(RoutingError, match=r"shop\.place has no handler yet"):
            router.route("shop.other")
        with pytest.raises(RoutingError, match=r"cannot route shop\.place to None"):
            open_route.to(None)
        open_route.to(one)
        router.route("shop.other").to(two)
        with pytest.raises(RoutingError, match=r"cannot send shop\.place to None"):
            router.send(Place).to(None)

    def test_an_ended_route_leaves_another_one_open(self) -> None:
        """`and_to` of an earlier route does not end a later one."""
        router = EventRouter()
        first = router.route("shop.a").to(one)
        second = router.route("shop.b")
        first.and_to(two)
        with pytest.raises(RoutingError, match=r"shop\.b has no handler yet"):
            router.route("shop.c")
        second.to(one)
        assert [one, two] == targets(router, "shop.a")

    @pytest.mark.parametrize("add", ["route", "send", "handles"])
    def test_an_empty_name_is_refused(self, add: str) -> None:
        """A route needs a name or a class (P03)."""
        with pytest.raises(RoutingError, match="got an empty name"):
            getattr(CommandRouter(), add)("")(one)

    def test_a_second_handler_is_refused(self) -> None:
        """Nothing is overwritten in silence: both handlers are named (P03, T04)."""
        router = CommandRouter({Place: one})
        with pytest.raises(RoutingError, match=r"shop\.place is routed twice.*one.*two"):
            router.route("shop.place").to(two)
        with pytest.raises(RoutingError, match="routed twice"):
            CommandRouter({"shop.*": [one, two]})
        with pytest.raises(RoutingError, match="routed twice"):
            CommandRouter({Place: one}).route(Place).to(one).and_to(two)

    def test_events_have_any_number_of_listeners(self) -> None:
        """As a list, fluently, and from patterns, in the order given (P04)."""
        router = EventRouter({"shop.*": two, Place: [one, two]})
        router.route(Place).to(one).and_to(one)
        assert [two, one, two, one, one] == targets(router, "shop.place")

    def test_a_producer_as_target_is_a_send(self) -> None:
        """In `routes` and in `.to()`; a send says where a name goes first."""
        producer, other = RecordingProducer(), RecordingProducer()
        router = CommandRouter({Place: producer}, {"shop.a.*": other})
        router.route("shop.b").to(Target(producer))
        router.send("shop.c").to("producers.mail")
        assert [] == targets(router, "shop.place")
        sends = {n: [t.to for t in router.sends(f"shop.{n}", str)] for n in ("place", "a.x", "b")}
        assert {"place": [producer], "a.x": [other], "b": [producer]} == sends
        assert ["producers.mail"] == [t.to for t in router.sends("shop.c", str)]

    def test_targets_know_their_route(self) -> None:
        """What an error shows is the table and the key."""
        router = CommandRouter({"shop.*": one}, {"shop.a": RecordingProducer()})
        assert "routes['shop.*']" == router.handlers("shop.b")[0].route
        assert "send['shop.a']" == router.sends("shop.a", str)[0].route


class TestGlobs:
    @pytest.mark.parametrize(
        ("pattern", "yes", "no"),
        [
            ("shop.*", ["shop.a", "shop.a-b"], ["shop", "shop.", "shop.a.b", "xshop.a", "shopxa"]),
            ("shop.send-*", ["shop.send-mail", "shop.send-"], ["shop.send", "shop.send-a.b"]),
            ("shop.*.sent", ["shop.a.sent"], ["shop.sent", "shop.a.b.sent"]),
            ("shop.**", ["shop.a", "shop.a.b.c"], ["shop", "shop.", "shopping.a", "shop.a..b"]),
            ("**.sent", ["a.sent", "a.b.sent"], ["sent", ".sent", "a.unsent"]),
            ("a.**.z", ["a.b.z", "a.b.c.z"], ["a.z", "a..z"]),
            ("**", ["a", "a.b"], ["", "."]),
            ("*.b+c", ["a.b+c"], ["a.bbc"]),
        ],
    )
    def test_a_star_is_one_segment_and_two_are_several(
        self, pattern: str, yes: list[str], no: list[str]
    ) -> None:
        """`*` stays within a dot segment, `**` stands for whole ones; all else is literal."""
        router = CommandRouter({pattern: one})
        assert yes == [name for name in yes if router.handlers(name)]
        assert [] == [name for name in no if router.handlers(name)]

    def test_two_stars_are_a_segment_of_their_own(self) -> None:
        """`shop**` could mean anything, so it means nothing."""
        with pytest.raises(RoutingError, match=r"\*\* stands for whole segments"):
            CommandRouter({"shop**": one})

    def test_exact_beats_pattern(self) -> None:
        """For a command the exact name is it; two patterns are a contradiction (P05)."""
        router = CommandRouter({"shop.*": one, "shop.place": two, "*.other": two})
        assert [two] == targets(router, "shop.place")
        with pytest.raises(RoutingError, match=r"'shop\.\*' and '\*\.other'"):
            router.handlers("shop.other")
        bus = CommandBus()
        bus.utilize(router)
        with pytest.raises(RoutingError, match="matches more than one pattern"):
            bus.dispatch("shop.other")

    def test_a_very_long_name_matches_no_pattern(self) -> None:
        """Names come from outside; matching one is bounded."""
        router = CommandRouter({"**": one, "x" * 300: two})
        assert [one] == targets(router, "x" * 256)
        assert [] == targets(router, "y" * 257)
        assert [two] == targets(router, "x" * 300)


class TestRegex:
    def test_patterns_match_whole_names(self) -> None:
        """A pattern is a regular expression over the whole name (P05, P06)."""
        router = RegexRouter({r"shop\.(place|pay)": one, "mail.*": [two]})
        assert [one] == targets(router, "shop.place")
        assert [] == targets(router, "shop.places")
        assert [two] == targets(router, "mailing")
        assert [one] == targets(RegexRouter({RegexRouter.ALL: one}), "anything")

    def test_two_patterns_for_one_command_are_refused_with_both_named(self) -> None:
        """At the latest when such a command is dispatched (P05, T04)."""
        bus = CommandBus()
        bus.utilize(RegexRouter({"shop.*": one, ".*place": two}))
        bus.dispatch("shop.pay")
        with pytest.raises(RoutingError, match=r"'shop\.\*' and '\.\*place'"):
            bus.dispatch("shop.place")

    def test_every_match_of_an_event_counts(self) -> None:
        """With `many` a name may have several listeners (P05)."""
        got: list[int] = []
        bus = EventBus()
        router = RegexRouter({"shop.*": lambda m: got.append(1)}, many=True)
        router.route(".*placed").to(lambda m: got.append(2)).and_to(lambda m: got.append(3))
        bus.utilize(router)
        bus.dispatch("shop.placed")
        assert [1, 2, 3] == got

    def test_names_and_classes_stay_exact(self) -> None:
        """A key that is the name of a message is no pattern, nor is a class."""
        router = RegexRouter({"shop.pay": one, ".*": two}, names=["shop.pay"])
        assert [one] == targets(router, "shop.pay")
        assert [two] == targets(router, "shopXpay")
        router = RegexRouter({Place: one}, {Report: RecordingProducer()})
        assert [] == targets(router, "shopXplace")
        assert [] == list(router.sends("shopXreport", str))
        assert 1 == len(router.sends("shop.report", str))

    def test_a_pattern_has_an_end(self) -> None:
        """More than 256 characters, or none that compile, are refused."""
        RegexRouter({"a" * 256: one})
        with pytest.raises(RoutingError, match="has 257 characters, at most 256"):
            RegexRouter({"a" * 257: one})
        with pytest.raises(RoutingError, match=r"'\(' is no regular expression"):
            RegexRouter({"(": one})


class TestThreads:
    def test_routes_may_be_added_while_others_are_looked_up(self) -> None:
        """No thread sees a table half changed."""
        router = EventRouter()
        wrong: list[BaseException] = []
        added = threading.Event()

        def look() -> None:
            try:
                while not added.is_set():
                    router.handlers("shop.a.b")
            except RuntimeError as error:
                wrong.append(error)

        looking = [threading.Thread(target=look) for _ in range(2)]
        for thread in looking:
            thread.start()
        for number in range(2_000):
            router.route(f"shop.a{number}.*").to(one)
        added.set()
        for thread in looking:
            thread.join()
        assert [] == wrong

    def test_a_router_tells_every_bus_that_uses_it(self) -> None:
        """A new route counts from the next dispatch on, on two buses, until deactivated."""
        router = CommandRouter()
        first, second = CommandBus(), CommandBus()
        for bus in (first, second):
            bus.utilize(router)
            with pytest.raises(NoHandlerError):
                bus.dispatch("shop.a")
        router.route("shop.a").to(one)
        first.dispatch("shop.a")
        second.dispatch("shop.a")
        assert first.deactivate(router)
        with pytest.raises(NoHandlerError):
            first.dispatch("shop.a")
        second.dispatch("shop.a")


class TestAsyncSwitch:
    def test_marked_messages_go_to_the_producer(self) -> None:
        """Marked classes are sent, with the mark of the older system; others are handled (P09)."""
        got: list[object] = []
        producer = RecordingProducer()
        router = CommandRouter({Place: got.append, Report: got.append})
        bus = CommandBus()
        bus.utilize(AsyncSwitchMessageRouter(router, producer))
        bus.dispatch(Place())
        bus.dispatch(Report(), metadata={"user": 7})
        assert [Place()] == got
        assert b'"handled-async":true' in producer.bodies[0].replace(b" ", b"")
        assert b'"user":7' in producer.bodies[0].replace(b" ", b"")

    def test_the_mark_is_written_and_never_read(self) -> None:
        """What somebody claims in metadata changes nothing (P11, T06)."""
        producer = RecordingProducer()
        bus = CommandBus()
        bus.utilize(AsyncSwitchMessageRouter(CommandRouter({Report: one}), producer))
        bus.dispatch(Report(), metadata={"handled-async": True})
        assert 1 == len(producer.messages)

    def test_a_received_message_is_handled(self) -> None:
        """Being received is how the worker called, not what the message says."""
        got: list[object] = []
        producer = RecordingProducer()
        bus = CommandBus()
        router = CommandRouter()
        bus.utilize(AsyncSwitchMessageRouter(router, producer))
        router.route(Report).to(got.append)
        bus.receive(Envelope(Report()), "memory")
        assert ([Report()], []) == (got, producer.messages)

    def test_it_needs_a_producer(self) -> None:
        """None is no producer; an id is looked up like any."""
        with pytest.raises(RoutingError, match="async switch needs a producer"):
            AsyncSwitchMessageRouter(CommandRouter(), None)


class TestStrength:
    def test_send_beats_switch_beats_plugin_beats_routes(self) -> None:
        """Whatever the order in which they were attached."""
        sent, switched, plugged = (RecordingProducer() for _ in range(3))
        router = CommandRouter({"shop.*": one})
        bus = CommandBus()
        bus.utilize(MessageProducerPlugin(plugged))
        bus.dispatch(Report())
        assert [0, 0, 1] == [len(p.messages) for p in (sent, switched, plugged)]
        bus.utilize(AsyncSwitchMessageRouter(router, switched))
        bus.dispatch(Report())
        assert [0, 1, 1] == [len(p.messages) for p in (sent, switched, plugged)]
        router.send(Report).to(sent)
        bus.dispatch(Report())
        assert [1, 1, 1] == [len(p.messages) for p in (sent, switched, plugged)]
        assert [Strength.SEND, Strength.ASYNC_SWITCH, Strength.PRODUCER_PLUGIN] == sorted(Strength)

    def test_a_route_to_a_producer_beats_switch_and_plugin(self) -> None:
        """It is short for a send, and as strong."""
        routed, plugged = RecordingProducer(), RecordingProducer()
        bus = CommandBus()
        bus.utilize(MessageProducerPlugin(plugged))
        bus.utilize(CommandRouter({Report: routed}))
        bus.dispatch(Report())
        assert [1, 0] == [len(p.messages) for p in (routed, plugged)]
