"""Write orders.jsonl, the same every time: python examples/shop/make_orders.py"""

from __future__ import annotations

import json
import random
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID

ORDERS = 300
FILE = Path(__file__).with_name("orders.jsonl")

FIRST_NAMES = (
    *("Ada", "Amina", "Bruno", "Chiara", "Daniel", "Elif", "Femke", "Gaspard", "Hana", "Ingrid"),
    *("Jonas", "Katarzyna", "Lucía", "Mateo", "Nadia", "Oskar", "Priya", "Quentin", "Rosa"),
    *("Søren", "Tomáš", "Ulrike", "Viktor", "Wanda", "Yusuf", "Zoë"),
)
LAST_NAMES = (
    *("Andersen", "Baumann", "Costa", "Dvořák", "Eriksson", "Fontaine", "García", "Haddad"),
    *("Ibrahim", "Jansen", "Kowalska", "Lindqvist", "Moreau", "Nowak", "O'Brien", "Petrov"),
    *("Rossi", "Sánchez", "Tanaka", "Virtanen", "Weber", "Zielińska"),
)
COMPANIES = (
    *("Baumann Orgelbau GmbH", "Café Moreau SARL", "Fjord & Fisk ApS", "Haddad Import BV"),
    *("Librería Sánchez S.L.", "Nowak i Córki", "Rossi Cicli S.r.l.", "Tanaka Ceramics Ltd"),
)
ARTICLES = (
    *(("ENV-C5-100", "6.90"), ("ENV-DL-250", "12.40"), ("BOX-S", "0.85"), ("BOX-M", "1.35")),
    *(("BOX-L", "2.10"), ("TAPE-48", "3.20"), ("LABEL-A6-500", "18.75"), ("STAMP-ROLL", "85.00")),
    *(("SCALE-5KG", "34.90"), ("TWINE-100M", "4.45"), ("WRAP-50M", "21.00"), ("PEN-BLUE", "1.15")),
)


def make_order(rng: random.Random, placed_at: datetime) -> dict[str, object]:
    """Make one order: most people buy little, one in four buys for a company."""
    first, last = rng.choice(FIRST_NAMES), rng.choice(LAST_NAMES)
    company = rng.choice(COMPANIES) if rng.random() < 1 / 4 else None
    largest = 40 if company else 4
    articles = rng.sample(ARTICLES, k=min(len(ARTICLES), 1 + int(rng.expovariate(0.7))))
    return {
        "order_id": str(UUID(int=rng.getrandbits(128), version=4)),
        "customer": {
            "name": f"{first} {last}",
            "email": f"customer-{rng.randrange(10_000):04}@example.com",
            "company": company,
        },
        "lines": [
            {"sku": sku, "quantity": rng.randint(1, largest), "unit_price": price}
            for sku, price in articles
        ],
        "placed_at": placed_at.isoformat(),
    }


def main() -> None:
    rng = random.Random(5555)  # noqa: S311  sample data, the same every time
    placed_at = datetime(2025, 3, 3, 8, tzinfo=UTC)
    rows: list[str] = []
    for _ in range(ORDERS):
        placed_at += timedelta(seconds=int(rng.expovariate(1 / 240)))
        rows.append(json.dumps(make_order(rng, placed_at), ensure_ascii=False))
    FILE.write_text("\n".join([*rows, ""]), encoding="utf-8")


if __name__ == "__main__":
    main()
