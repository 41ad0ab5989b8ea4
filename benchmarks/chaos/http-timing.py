"""Does it take longer to refuse a signature the more of it is right? By hand, on a quiet machine.

Verifies wrong signatures whose first 0 and whose first 31 of 32 bytes are right, in blocks that
take turns, and compares the medians of the blocks by Welch's t. Where |t| is below 4.5 nothing
can be learnt from the time. Prints one JSON line; the exit code is 1 where something can, or
where `--sabotage early-exit`, a comparison that ends at the first wrong byte, is not found out.
"""

from __future__ import annotations

import argparse
import base64
import hmac
import json
import random
import statistics
import sys
import time
from contextlib import suppress

from postbus.errors import UnauthorizedError
from postbus_http import WebhookKeys

KEY = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
BODY = b"{}" * 256
NOW = 1_700_000_000
THRESHOLD = 4.5


def forged(right: int, headers: dict[bytes, bytes]) -> dict[bytes, bytes]:
    """Return *headers* with a signature of which *right* bytes are right and the next is wrong."""
    signature = bytearray(base64.b64decode(headers[b"webhook-signature"].removeprefix(b"v1,")))
    signature[right] ^= 0xFF
    signature[right + 1 :] = random.randbytes(len(signature) - right - 1)
    return {**headers, b"webhook-signature": b"v1," + base64.b64encode(signature)}


def block(keys: WebhookKeys, headers: dict[bytes, bytes], count: int) -> float:
    """Return the median of *count* refusals, in nanoseconds."""
    times: list[int] = []
    for _ in range(count):
        began = time.perf_counter_ns()
        with suppress(UnauthorizedError):
            keys.verify(headers, BODY, tolerance=300, now=NOW)
        times.append(time.perf_counter_ns() - began)
    return statistics.median(times)


def leaky(one: bytes, other: bytes) -> bool:
    """Compare as nobody should."""
    for mine, given in zip(one, other, strict=False):
        if mine != given:
            return False
    return len(one) == len(other)


def welch(one: list[float], other: list[float]) -> float:
    spread = statistics.variance(one) / len(one) + statistics.variance(other) / len(other)
    return (statistics.fmean(one) - statistics.fmean(other)) / spread**0.5


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n", type=int, default=200_000, help="verifications, %(default)s")
    parser.add_argument("--blocks", type=int, default=200, help="in all, default %(default)s")
    parser.add_argument("--seed", type=int, default=7, help="default %(default)s")
    parser.add_argument("--sabotage", choices=("early-exit", ""), default="")
    options = parser.parse_args()
    random.seed(options.seed)
    if options.sabotage:
        hmac.compare_digest = leaky  # type: ignore[assignment]  # the fault
    keys = WebhookKeys([KEY])
    good = {k.encode(): v.encode() for k, v in keys.sign("msg_1", BODY, now=NOW).items()}
    candidates = {right: forged(right, good) for right in (0, 31)}
    times: dict[int, list[float]] = {right: [] for right in candidates}
    size = options.n // options.blocks
    for _ in range(options.blocks // 2):
        # In an order by chance: what else the machine does must not fall on one of them.
        for right in random.sample(list(candidates), 2):
            times[right].append(block(keys, candidates[right], size))
    t = welch(times[31], times[0])
    means = {f"ns_{right}_right": round(statistics.fmean(each)) for right, each in times.items()}
    print(json.dumps({"n": size * options.blocks, **means, "t": round(t, 2)}))
    return int(abs(t) >= THRESHOLD)


if __name__ == "__main__":
    sys.exit(main())
