"""The catalogue: the only way from a name to a class, filled by modules or by hand."""

from __future__ import annotations

import importlib
import sys
import textwrap
from typing import TYPE_CHECKING

import attrs
import msgspec
import pytest

from postbus.catalog import CatalogEntry, MessageCatalog
from postbus.errors import ConfigurationError
from postbus.messages import Command, Event, MessageKind

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@attrs.frozen
class PlaceOrder(Command, name="shop.place-order", key="id", version=2, aliases=("shop.order",)):
    id: int


@attrs.frozen
class OrderPlaced(Event, name="shop.order-placed"):
    id: int


class Reading(msgspec.Struct):
    value: float


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Write modules into this folder; they are forgotten afterwards."""
    monkeypatch.syspath_prepend(str(tmp_path))
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]


def write(path: Path, source: str) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(textwrap.dedent(source), encoding="utf-8")


class TestAdd:
    def test_an_entry_says_what_the_class_statement_said(self) -> None:
        """C22: the registered name, not the path, means the class."""
        catalog = MessageCatalog()
        catalog.add(PlaceOrder)
        entry = CatalogEntry(
            PlaceOrder, "shop.place-order", MessageKind.COMMAND, "id", 2, ("shop.order",)
        )

        assert catalog.find("shop.place-order") == entry
        assert catalog.entry(PlaceOrder) == entry

    def test_an_alias_means_the_same_entry(self) -> None:
        """Messages that were queued before a rename are still understood."""
        catalog = MessageCatalog()
        catalog.add(PlaceOrder)

        assert catalog.find("shop.order") is catalog.find("shop.place-order")
        assert "shop.order" in catalog
        assert catalog.names() == ("shop.place-order",)

    def test_keywords_win_over_the_class_statement(self) -> None:
        """And describe classes that have none."""
        catalog = MessageCatalog()
        catalog.add(
            Reading,
            name="lab.reading",
            kind="event",
            key="value",
            version=4,
            aliases=["lab.value"],
        )

        assert catalog.find("lab.value") == CatalogEntry(
            Reading, "lab.reading", MessageKind.EVENT, "value", 4, ("lab.value",)
        )

    def test_one_alias_may_be_a_text(self) -> None:
        """It is not taken for letters."""
        catalog = MessageCatalog()
        catalog.add(OrderPlaced, aliases="shop.placed")

        assert "shop.placed" in catalog

    def test_an_unknown_name_means_nothing(self) -> None:
        """Neither does a class path: no name imports anything (A6)."""
        catalog = MessageCatalog()
        catalog.add(PlaceOrder)

        for name in ("shop.other", "os.system", f"{__name__}.PlaceOrder", ""):
            assert catalog.find(name) is None
            assert name not in catalog
        assert catalog.entry(OrderPlaced) is None

    def test_a_second_class_for_a_name_is_refused(self) -> None:
        """The error names both, and the catalogue stays as it was."""
        catalog = MessageCatalog()
        catalog.add(PlaceOrder)

        with pytest.raises(ConfigurationError) as caught:
            catalog.add(OrderPlaced, name="shop.place-order", aliases=["shop.order"])

        paths = [problem.path for problem in caught.value.problems]
        assert paths == ["messages.shop.place-order", "messages.shop.order"]
        assert "PlaceOrder" in str(caught.value)
        assert "OrderPlaced" in str(caught.value)
        assert len(catalog) == 1

    def test_a_second_name_for_a_class_is_refused(self) -> None:
        """It would be written under one and routed under the other: aliases are for that."""
        catalog = MessageCatalog()
        catalog.add(PlaceOrder)

        with pytest.raises(ConfigurationError, match="aliases"):
            catalog.add(PlaceOrder, name="shop.other")

    def test_the_same_class_again_is_described_anew(self) -> None:
        """Two modules may both add it; the last word counts."""
        catalog = MessageCatalog()
        catalog.add(PlaceOrder)
        catalog.add(PlaceOrder)
        catalog.add(PlaceOrder, aliases=["shop.buy"])

        assert len(catalog) == 1
        assert "shop.buy" in catalog
        assert "shop.order" not in catalog

    @pytest.mark.parametrize("kind", [None, "commands", ""])
    def test_a_class_without_a_kind_is_refused(self, kind: str | None) -> None:
        """No bus could take it."""
        with pytest.raises(ConfigurationError, match="command, event or query"):
            MessageCatalog().add(Reading, name="lab.reading", kind=kind)

    def test_a_short_name_is_refused(self) -> None:
        """C18: three characters at least."""
        with pytest.raises(ConfigurationError, match="at least 3 characters"):
            MessageCatalog().add(PlaceOrder, name="ab")

    def test_entries_come_in_the_order_they_were_added(self) -> None:
        """Iterating while adding is safe."""
        catalog = MessageCatalog()
        catalog.add(PlaceOrder)
        for entry in catalog:
            assert entry.cls is PlaceOrder
            catalog.add(OrderPlaced)

        assert catalog.names() == ("shop.place-order", "shop.order-placed")
        assert len(catalog) == 2


class TestAddModule:
    def test_a_module_gives_its_commands_events_and_queries(self, modules: Path) -> None:
        """Those it defines, nested ones included, and nothing that it only imports."""
        write(
            modules / "shopmessages.py",
            """
            import attrs
            from postbus.messages import Command, Event, Query

            @attrs.frozen
            class Buy(Command, name="shop.buy"):
                item: str

            class Group:
                @attrs.frozen
                class Bought(Event, name="shop.bought"):
                    item: str

            @attrs.frozen
            class Price(Query[float], name="shop.price"):
                item: str

            def local():
                class Hidden(Command, name="shop.hidden"):
                    pass
                return Hidden

            kept = local()

            class NoMessage:
                pass
            """,
        )

        catalog = MessageCatalog(["shopmessages"])

        assert set(catalog.names()) == {"shop.buy", "shop.bought", "shop.price"}
        assert catalog.find("shop.buy").cls is sys.modules["shopmessages"].Buy  # type: ignore[union-attr]  # it is there

    def test_submodules_count_once_they_are_imported(self, modules: Path) -> None:
        """A package that imports its parts gives all of them; a similar name is no part."""
        write(modules / "store" / "__init__.py", "from store import events")
        write(
            modules / "store" / "events.py",
            """
            from postbus.messages import Event
            class Opened(Event, name="store.opened"): pass
            """,
        )
        write(
            modules / "storefront.py",
            """
            from postbus.messages import Event
            class Seen(Event, name="front.seen"): pass
            """,
        )
        importlib.import_module("storefront")

        assert MessageCatalog(["store"]).names() == ("store.opened",)

    def test_a_module_object_will_do(self, modules: Path) -> None:
        """It needs no path then."""
        write(
            modules / "objectmodule.py",
            """
            from postbus.messages import Event
            class Opened(Event, name="object.opened"): pass
            """,
        )
        module = importlib.import_module("objectmodule")

        assert MessageCatalog([module]).names() == ("object.opened",)

    def test_a_reloaded_module_gives_its_new_classes(self, modules: Path) -> None:
        """What the old ones left behind does not collide with them."""
        write(
            modules / "reloaded.py",
            """
            from postbus.messages import Event
            class Opened(Event, name="reloaded.opened"): pass
            """,
        )
        module = importlib.import_module("reloaded")
        old = module.Opened
        importlib.reload(module)

        catalog = MessageCatalog(["reloaded"])

        assert catalog.find("reloaded.opened").cls is module.Opened  # type: ignore[union-attr]  # it is there
        assert old is not module.Opened

    @pytest.mark.parametrize("source", [None, "raise RuntimeError('broken')", "def"])
    def test_a_module_that_cannot_be_imported_is_a_problem(
        self, modules: Path, source: str | None
    ) -> None:
        """The error names it, whatever importing it raised."""
        if source is not None:
            write(modules / "brokenmodule.py", source)

        with pytest.raises(ConfigurationError, match="brokenmodule") as caught:
            MessageCatalog(["brokenmodule"])

        assert caught.value.problems[0].path == "messages"

    def test_all_problems_of_a_module_come_at_once(self, modules: Path) -> None:
        """Two names that are taken are two problems."""
        source = """
            from postbus.messages import Event
            class First(Event, name="twice.a"): pass
            class Second(Event, name="twice.a"): pass
            class Third(Event, name="twice.a"): pass
            """
        write(modules / "twice.py", source)

        with pytest.raises(ConfigurationError) as caught:
            MessageCatalog(["twice"])

        assert len(caught.value.problems) == 2
