"""Connections that end: a client that never finishes its request, or never reads its answer, must not keep a place from others."""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

PATIENCE = 90  # seconds for a request and its answer: SECONDS of serve_app for it to arrive, then its turn and what is sent back


class Connection(H11Protocol):
    """uvicorn's, which ends by itself only where nothing at all comes after an answer."""

    patience: float = PATIENCE
    _before: RequestResponseCycle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._later = self.loop.call_later(self.patience, self._look)

    def connection_lost(self, exc: Exception | None) -> None:
        self._later.cancel()
        super().connection_lost(exc)

    def _look(self) -> None:
        """End it where no request has begun since the last look: what there is has had its time, also a half of the next one's head."""
        if self.cycle is self._before:
            self.transport.abort()
            return
        self._before = self.cycle
        self._later = self.loop.call_later(self.patience, self._look)
