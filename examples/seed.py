"""Send one command over ZeroMQ: the example that postbus began with.

    python examples/seed_server.py      in one terminal
    python examples/seed.py             in another

Both take another address as their argument; the default is tcp://127.0.0.1:5555.
"""

from __future__ import annotations

import sys

import attrs

from postbus import Command, CommandBus, MessageProducerPlugin
from postbus.errors import ConnectionFailedError
from postbus_zeromq import ZeroMQContainer


# What stands in a script has the module name __main__, which no other process can find:
# so the message says its name.
@attrs.frozen
class EchoText(Command, name="example.echo-text"):
    text: str


def main(dsn: str = "tcp://127.0.0.1:5555") -> None:
    config = {
        "postbus": {
            "zeromq_producer": {
                "dsn": dsn,  # Address of the ZeroMQ server.
                "persistent_id": "example",  # Producers with the same id share one connection.
                "rpc": False,  # Send; True asks queries, as seed_query.py does.
            }
        }
    }

    zeromq = ZeroMQContainer(config=config["postbus"]["zeromq_producer"])
    producer = zeromq.producer()

    command_bus = CommandBus()

    forwarder = MessageProducerPlugin(producer)

    command_bus.utilize(forwarder)

    echo_text = EchoText("It works")
    try:
        command_bus.dispatch(echo_text)
    except ConnectionFailedError as error:
        sys.exit(f"{error}\nHere: python examples/seed_server.py {dsn}")
    finally:
        zeromq.close()
    print(f"sent {echo_text} to {dsn}")


if __name__ == "__main__":
    main(*sys.argv[1:])
