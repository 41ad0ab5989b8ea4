"""Ask one query over ZeroMQ and print the answer: the sibling of seed.py.

    python examples/seed_query_server.py      in one terminal
    python examples/seed_query.py             in another

Both take another address as their argument; the default is tcp://127.0.0.1:5555.
"""

from __future__ import annotations

import sys

import attrs

from postbus import MessageProducerPlugin, Query, QueryBus
from postbus.errors import ConnectionFailedError
from postbus_zeromq import ZeroMQContainer


# The answer is a text; anything else that comes back is refused.
@attrs.frozen
class GetText(Query[str], name="example.get-text"):
    number: int


def main(dsn: str = "tcp://127.0.0.1:5555") -> None:
    config = {
        "postbus": {
            "zeromq_producer": {
                "dsn": dsn,  # Address of the ZeroMQ server.
                "persistent_id": "example",  # Producers with the same id share one connection.
                "rpc": True,  # Ask queries; False sends commands and events.
            }
        }
    }

    zeromq = ZeroMQContainer(config=config["postbus"]["zeromq_producer"])
    producer = zeromq.producer()

    query_bus = QueryBus()

    forwarder = MessageProducerPlugin(producer)

    query_bus.utilize(forwarder)

    get_text = GetText(7)
    try:
        answer = query_bus.dispatch(get_text, timeout=10.0).result()
    except ConnectionFailedError as error:
        sys.exit(f"{error}\nHere: python examples/seed_query_server.py {dsn}")
    finally:
        zeromq.close()
    print(f"asked {get_text} at {dsn}: {answer}")


if __name__ == "__main__":
    main(*sys.argv[1:])
