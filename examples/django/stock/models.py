"""What is kept."""

from __future__ import annotations

from django.db import models


class Reservation(models.Model):
    article = models.CharField(max_length=100)

    def __str__(self) -> str:
        return self.article
