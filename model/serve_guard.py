"""What every request is checked for, and every answer told, before a page on this machine may be used by a browser.

A page from elsewhere whose name was pointed at this machine (DNS rebinding) sends its own name as Host; one that sends a form
here sends its own Origin. Neither is let in. Answers carry a policy by which a browser runs our script and style alone.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from starlette.responses import JSONResponse

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[^:\[\]/@\s]+)(:[0-9]{1,5})?", re.IGNORECASE)


class Guard:
    """ASGI: lets requests to this machine by its own names through to `app`."""

    def __init__(self, app: App, name: str) -> None:
        """name: of the machine, as it was given to be bound to."""
        self._app, self._names = app, {"localhost", name.lower()}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *((name.encode(), value.encode()) for name, value in HEADERS.items())]
            await send(message)

        fault = self._fault(scope)
        app: App = self._app if fault is None else JSONResponse({"error": fault[1]}, fault[0])
        await app(scope, receive, send_with_headers)

    def _fault(self, scope: Scope) -> tuple[int, str] | None:
        """Status and what is wrong; None for nothing."""
        found: dict[bytes, list[str]] = {b"host": [], b"origin": []}
        for name, value in scope["headers"]:
            if name in found:
                found[name].append(value.decode("latin-1"))
        hosts, origins = found.values()
        if len(hosts) != 1 or not self._is_ours(hosts[0]):
            return 421, "this server goes by another name; open the address that it printed when it started"
        ours = {f"{scheme}://{hosts[0]}".lower() for scheme in ("http", "https")}
        if scope["method"] != "GET" and not {origin.lower() for origin in origins} <= ours:
            return 403, "a page from elsewhere may not ask here"
        return None

    def _is_ours(self, host: str) -> bool:
        """A Host header with an address, which nobody can point elsewhere, or one of this machine's names."""
        match = _HOST.fullmatch(host)
        if match is None:
            return False
        name = match[1].strip("[]").lower()
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return name in self._names
        return True
