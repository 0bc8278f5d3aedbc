"""Who may ask, and how much: what stands before every request, whatever it is about."""

from __future__ import annotations

import hmac
import ipaddress
import json
import socket
from collections.abc import Awaitable, Callable, Collection, Mapping, MutableMapping
from typing import Any

from anyio import fail_after

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

OPEN = frozenset({"/", "/station.css", "/station.js", "/texts.json", "/icon.svg", "/health", "/ready"})
"""What needs no token: the page's own files, which say nothing of pictures or models, and whether it is alive."""
_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (
        b"content-security-policy",
        b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
        b"media-src 'self' blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
)


class Refusal(Exception):
    """A request that is not answered with what it wants; the app makes one line of JSON of it."""

    def __init__(self, status: int, reason: str, *, retry_after: int | None = None) -> None:
        super().__init__(reason)
        self.status, self.reason = status, reason
        self.headers: dict[str, str] = {} if retry_after is None else {"retry-after": str(retry_after)}


class Guard:
    """Refuses requests under a foreign name, from a foreign page or without the token; sets the safe headers.

    Any page that somebody opens can send requests to a service on the same machine, and a name of its own can be made
    to lead there. So `Host` must be an address, `localhost`, this machine's name or one of `names`; where a browser
    says where a request comes `Origin`ally from, it must be the same place.
    """

    def __init__(
        self, app: App, *, token: str | None, names: Collection[str] = (), answered: Callable[[str, int], None]
    ) -> None:
        self._app, self._token, self._answered = app, token, answered
        self._names = {"localhost", socket.gethostname().lower(), *(name.lower() for name in names)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One ASGI connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def sending(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                kept = [pair for pair in message.get("headers", ()) if pair[0].lower() != b"server"]
                message["headers"] = [*kept, *_HEADERS]
                if not any(name.lower() == b"cache-control" for name, _ in kept):
                    message["headers"].append((b"cache-control", b"no-store"))
                self._answered(scope["method"], message["status"])
            await send(message)

        refusal = self._refusal(scope["path"], dict(scope["headers"]))
        if refusal is None:
            await self._app(scope, receive, sending)
        else:
            await refuse(sending, refusal)

    def _refusal(self, path: str, headers: Mapping[bytes, bytes]) -> Refusal | None:
        host = headers.get(b"host", b"").decode("latin-1").lower()
        if not self._is_ours(host):
            return Refusal(421, f"Host: {host or 'none'} is no name of this station. Name it with --allow-host.")
        origin = headers.get(b"origin")
        if origin is not None and origin.decode("latin-1").lower() not in (f"http://{host}", f"https://{host}"):
            return Refusal(
                403,
                "Origin: a page of another place may not ask here. A proxy must hand on the Host that was asked for.",
            )
        if self._token is not None and path not in OPEN:
            scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
            if scheme.lower() != b"bearer" or not hmac.compare_digest(given.strip(), self._token.encode()):
                refusal = Refusal(401, "Authorization: expected `Bearer` and the token of this station.")
                refusal.headers["www-authenticate"] = "Bearer"
                return refusal
        return None

    def _is_ours(self, host: str) -> bool:
        name = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() else host
        try:
            ipaddress.ip_address(name.removeprefix("[").removesuffix("]"))
        except ValueError:
            return name in self._names
        return True


async def refuse(send: Send, refusal: Refusal) -> None:
    """Answer with a refusal. The connection ends, as the rest of the request is not read."""
    body = json.dumps({"error": refusal.reason}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    headers += [(name.encode(), value.encode()) for name, value in refusal.headers.items()]
    await send(
        {"type": "http.response.start", "status": refusal.status, "headers": [*headers, (b"connection", b"close")]}
    )
    await send({"type": "http.response.body", "body": body})


async def read_body(receive: Receive, headers: Mapping[str, str], *, max_bytes: int, seconds: float) -> bytes:
    """The body of a request, if it is small enough and comes in time. Raises `Refusal`."""
    length = headers.get("content-length", "0")
    if not length.isdigit() or int(length) > max_bytes:
        raise _too_large(max_bytes)
    parts: list[bytes] = []
    count = 0
    try:
        with fail_after(seconds):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise Refusal(499, "The caller went away before the request was complete.")
                parts.append(message.get("body", b""))
                count += len(parts[-1])
                if count > max_bytes:
                    raise _too_large(max_bytes)
                if not message.get("more_body", False):
                    return b"".join(parts)
    except TimeoutError:
        raise Refusal(408, f"The request did not come within {seconds:g} s.") from None


def _too_large(max_bytes: int) -> Refusal:
    return Refusal(413, f"A request may have {max_bytes:,} bytes at most.")
