"""A sum that several tasks of one event loop share, such as bytes of memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Budget:
    """``total`` of something. Who comes first is served first, so that small wishes never starve a large one."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.used = 0
        self._turn = asyncio.Lock()
        self._given_back = asyncio.Event()

    @asynccontextmanager
    async def taken(self, amount: int) -> AsyncIterator[None]:
        """Takes ``amount``, at most ``total``, as soon as it is there, for the block."""
        async with self._turn:
            while self.used + amount > self.total:
                self._given_back.clear()
                await self._given_back.wait()
            self.used += amount
        try:
            yield
        finally:
            self.used -= amount
            self._given_back.set()
