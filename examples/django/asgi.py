"""Django, and beside it the endpoint that takes messages.

export DJANGO_SETTINGS_MODULE=settings DJANGO_SECRET_KEY=… WAREHOUSE_KEY=whsec_…
django-admin migrate --run-syncdb --pythonpath .
uvicorn asgi:application --http postbus_http.protocol:LimitedHTTPProtocol
curl -X POST http://127.0.0.1:8000/reservations/lamp
"""

from __future__ import annotations

import os
from typing import Any

from django.core.asgi import get_asgi_application

from postbus_http import MessageEndpoint

django = get_asgi_application()

# Models may be imported from here on.
from stock.bus import postbus  # noqa: E402  as Django wants it

endpoint = MessageEndpoint(postbus, signing_keys=[os.environ["WAREHOUSE_KEY"]], inbox="main")


async def application(scope: Any, receive: Any, send: Any) -> None:
    is_message = scope["type"] == "http" and scope["path"] == "/messages/"
    await (endpoint if is_message else django)(scope, receive, send)
