"""Django's settings of the example; what is secret comes from the environment."""

from __future__ import annotations

import os

SECRET_KEY = os.environ["DJANGO_SECRET_KEY"]
ALLOWED_HOSTS = ["127.0.0.1", "localhost"]
ROOT_URLCONF = "urls"
INSTALLED_APPS = ["stock"]
MIDDLEWARE: list[str] = []
USE_TZ = True
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": os.environ.get("WAREHOUSE_DATABASE", "warehouse.db"),
        # Two transactions that both read and then write wait for each other from the beginning.
        "OPTIONS": {"transaction_mode": "IMMEDIATE", "timeout": 10},
    }
}
