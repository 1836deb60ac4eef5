"""Requests to a model in service from several threads, each answer counted."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import httpx

#: Clients that keep their connection, and that make one for each request; how long each pauses between two.
KEPT, FRESH, PAUSE_SECONDS = 16, 3, 0.2


@dataclass
class Load:
    url: str
    image: bytes
    answered: Counter[str] = field(default_factory=Counter)
    """Answers by the version of the Bento that gave them."""
    postponed: int = 0
    """How often the service was full and said when to come back; the request is then made again."""
    failed: list[str] = field(default_factory=list)
    over: threading.Event = field(default_factory=threading.Event)

    def keep_asking(self) -> None:
        with httpx.Client(timeout=60) as client:
            while not self.over.is_set():
                self.ask(client.post)
                time.sleep(PAUSE_SECONDS)

    def ask_anew(self) -> None:
        while not self.over.is_set():
            self.ask(httpx.post)
            time.sleep(PAUSE_SECONDS)

    def ask(self, post) -> None:
        try:
            response = post(f"{self.url}/predict", files={"image": ("scan.png", self.image)}, timeout=120)
        except httpx.HTTPError as error:
            self.failed.append(f"{type(error).__name__}: {error}")
            return
        if response.status_code == 200:
            self.answered[response.json()["model"]["version"]] += 1
        elif response.status_code == 503 and "the service is busy" in response.text:
            self.postponed += 1
            time.sleep(float(response.headers["Retry-After"]))
            self.ask(post)
        else:
            self.failed.append(f"{response.status_code}: {response.text[:200]}")


@contextmanager
def load(url: str, image: bytes, *, kept: int = KEPT, fresh: int = FRESH) -> Iterator[Load]:
    """Ask all the time in the block."""
    made = Load(url, image)
    threads = [threading.Thread(target=made.keep_asking) for _ in range(kept)]
    threads += [threading.Thread(target=made.ask_anew) for _ in range(fresh)]
    for thread in threads:
        thread.start()
    try:
        yield made
    finally:
        made.over.set()
        for thread in threads:
            thread.join()
