"""The pages."""

from __future__ import annotations

from django.urls import path
from stock.views import reservation, stock

urlpatterns = [path("stock/<article>", stock), path("reservations/<article>", reservation)]
