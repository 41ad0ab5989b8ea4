"""Book rooms, with one transport or the other behind the mail.

    python examples/containers/reception.py examples/containers/memory.toml
    python examples/containers/reception.py examples/containers/zeromq.toml

The two files differ in the sections of the mail's producer and consumer, and nothing else does.
"""

from __future__ import annotations

import sys

from hotel.application import open_hotel
from hotel.messages import BookRoom, CountBookings

from postbus.config import load
from postbus.errors import HandlerFailedError


def main(path: str) -> None:
    with open_hotel(load(path)) as hotel:
        postbus = hotel.postbus()
        taken = postbus.query_bus().dispatch(CountBookings()).result()
        with postbus.worker().running():
            for guest in ("Ada", "Grace", "Edsger"):
                try:
                    postbus.command_bus().dispatch(BookRoom(guest, nights=3))
                except HandlerFailedError as error:
                    print(f"{guest}: {error.code}")
            hotel.admin_bus().dispatch(BookRoom("Barbara", nights=1))
            count = postbus.query_bus().dispatch(CountBookings()).result()
            print(f"{count} rooms are taken")
            print(f"mail to {', '.join(sorted(hotel.mailer().wait_for(count - taken)))}")


if __name__ == "__main__":
    main(*sys.argv[1:])
