"""A reward model behind HTTP: sends texts of conversations, receives scores (format: docs/stages.md)."""

from __future__ import annotations

import json
import math
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from typing import Any

from ftcore.errors import RunError


def ask(url: str, texts: Sequence[str], timeout: float, retries: int) -> list[float]:
    """Scores of texts, in their order.

    Args:
        url: receives ``{"texts": [...]}`` by POST.
        texts: prompt and answer, with the template's control tokens.
        timeout: seconds per request.
        retries: after no response, 5xx or 429; the n-th waits 2^(n-1) / 2 seconds.

    Raises:
        RunError: no scores, or anything but one finite number per text.
    """
    body = json.dumps({"texts": list(texts)}).encode()
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    for turn in range(retries + 1):
        try:
            with urllib.request.urlopen(request, timeout=timeout) as answer:
                return _numbers(url, answer.read(), len(texts))
        except urllib.error.HTTPError as error:
            with error:
                said = error.read(200).decode("utf-8", "replace").strip()
            reason, again = f"HTTP {error.code} {said}".strip(), error.code >= 500 or error.code == 429
        except OSError as error:
            reason, again = str(getattr(error, "reason", error)), True
        if not again:
            break
        if turn < retries:
            time.sleep(2**turn / 2)
    raise RunError(f"the reward model at {url} returned no scores ({turn + 1} tries): {reason}")


def _numbers(url: str, body: bytes, count: int) -> list[float]:
    try:
        content: Any = json.loads(body)
        found = content["scores"]
        scores = [float(score) for score in found if isinstance(score, int | float) and not isinstance(score, bool)]
    except (ValueError, KeyError, TypeError):
        scores, found = [], None
    if found is None or len(scores) != len(found) or len(scores) != count or not all(map(math.isfinite, scores)):
        start = body[:80].decode("utf-8", "replace")
        raise RunError(f'the reward model at {url} must return {{"scores": [{count} numbers]}}, not {start}')
    return scores
