"""The pages dispatch messages, and know nothing of where they are handled."""

from __future__ import annotations

from typing import TYPE_CHECKING

from django.http import HttpRequest, JsonResponse
from django.views.decorators.http import require_GET, require_POST

from postbus.errors import HandlerFailedError, RejectedError
from stock.bus import postbus
from stock.messages import CountStock, Reserve

if TYPE_CHECKING:
    from django.http import HttpResponse


@require_GET
def stock(_: HttpRequest, article: str) -> HttpResponse:
    return JsonResponse({"left": postbus.query_bus.dispatch(CountStock(article)).result()})


@require_POST
def reservation(_: HttpRequest, article: str) -> HttpResponse:
    try:
        postbus.command_bus.dispatch(Reserve(article))
    except (HandlerFailedError, RejectedError):
        # The one where it was handled here, the other where it was sent.
        return JsonResponse({"detail": f"{article}: out of stock"}, status=409)
    left = postbus.query_bus.dispatch(CountStock(article)).result()
    return JsonResponse({"left": left}, status=201)
