"""The section of one transport, read part by part."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeVar, cast

import attrs

from postbus.errors import ConfigurationError, Problem
from postbus.runtime._sections import attempt, prepare
from postbus.settings import ConsumerSection, ProducerSection, parse, show

if TYPE_CHECKING:
    from collections.abc import Callable

    from postbus.containers._closing import Closer
    from postbus.runtime._sections import Prepared
    from postbus.transports import MessageConsumer, MessageProducer, Transport

T = TypeVar("T")
S = TypeVar("S", ProducerSection, ConsumerSection)


@attrs.frozen
class TransportSection:
    """The section of one transport. What is wrong with a part is said when it is needed."""

    transport: Transport
    config: Any
    closer: Closer

    @property
    def path(self) -> str:
        """Where the section is said to stand."""
        return f"{self.transport.name}_producer"

    def producer(self) -> Prepared[ProducerSection]:
        """Read the producer's part.

        Raises:
            ConfigurationError: with everything wrong with it.
            ClosedError: the container is closed.
        """
        own = {key: value for key, value in self._table().items() if key != "consumer"}
        return self._prepare(ProducerSection, own, self.path)

    def make_producer(self) -> MessageProducer:
        """Make a producer. Raises as `producer`."""
        return self._make(self.producer().producer, self.path)

    def make_consumer(self) -> MessageConsumer:
        """Make a consumer of what stands under `consumer`.

        Raises:
            ConfigurationError: nothing stands there, or with everything wrong with it.
            ClosedError: the container is closed.
        """
        path = f"{self.path}.consumer"
        advice = "add a table with the consumer's keys to receive as well"
        table = self._as_table(self._table().get("consumer"), path, advice)
        return self._make(self._prepare(ConsumerSection, table, path).consumer, path)

    def _table(self) -> Mapping[str, Any]:
        self.closer.refuse_closed()
        return self._as_table(self.config, self.path, "load the configuration before it is used")

    def _as_table(self, value: Any, path: str, advice: str) -> Mapping[str, Any]:
        if not isinstance(value, Mapping):
            raise ConfigurationError([Problem(path, show(value), "expected a table", advice)])
        return cast("Mapping[str, Any]", value)

    def _prepare(self, cls: type[S], table: Mapping[str, Any], path: str) -> Prepared[S]:
        problems: list[Problem] = []
        own = self.transport.name
        named = table.get("transport", own)
        if named != own:
            expected = f"expected {own!r}, whose container this is"
            advice = "leave it out"
            problems.append(Problem(f"{path}.transport", show(named), expected, advice))
        section = parse(cls, {**table, "transport": own}, path, problems)
        prepared = None
        if section is not None:
            prepared = prepare(own, section, self.transport, problems)
        if prepared is None or problems:
            raise ConfigurationError(problems)
        return prepared

    def _make(self, make: Callable[[], T], path: str) -> T:
        problems: list[Problem] = []
        made = attempt(make, path, problems)
        if made is None:
            raise ConfigurationError(problems)
        return made
