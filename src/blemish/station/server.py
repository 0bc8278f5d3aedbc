"""The process that listens: one socket, connections that must not dawdle, an end that drains."""

from __future__ import annotations

import asyncio
import ipaddress
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from ..errors import ArgumentError
from .guard import App
from .limits import Limits
from .secret import read_secret


def read_token(path: Path | None, *, host: str) -> str | None:
    """The token of a file, which must be there where others than this machine can ask. Raises `ArgumentError`."""
    if path is None:
        if not is_loopback(host):
            raise ArgumentError.about(
                "--token-file", expected=f"a file with a token, as other machines can reach {host}", got="none",
                instead="Make one: python -c 'import secrets; print(secrets.token_urlsafe(32))' > token",
            )  # fmt: skip
        return None
    return read_secret(path)


def is_loopback(host: str) -> bool:
    """Whether nobody beyond this machine can ask there."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def bind(host: str, port: int) -> socket.socket:
    """A socket of an address that nobody hears yet, see `listen`. Raises `ArgumentError` where it is taken."""
    with _blaming_the_address(host, port):
        bound = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
        try:
            if os.name == "posix":  # else a restart waits for connections of before; on Windows it would share
                bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if bound.family == socket.AF_INET6:
                bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            bound.bind((host, port))
        except BaseException:
            bound.close()
            raise
    return bound


def listen(bound: socket.socket) -> str:
    """Be heard from now on; gives the address for a browser. Raises `ArgumentError` where another one was first."""
    host, port = bound.getsockname()[:2]
    with _blaming_the_address(host, port):
        bound.listen(512)
    return f"http://{f'[{host}]' if ':' in host else host}:{port}/"


@contextmanager
def _blaming_the_address(host: str, port: int) -> Iterator[None]:
    try:
        yield
    except (OSError, OverflowError, UnicodeError) as error:
        raise ArgumentError.about(
            "--host and --port", expected="an address of this machine that is free", got=f"{host}:{port} ({error})",
            instead="Choose another one; --port 0 takes any that is free.",
        ) from error  # fmt: skip


def make_server(app: App, *, limits: Limits) -> uvicorn.Server:
    """What serves until SIGTERM or Ctrl-C, then answers what was begun, and ends: `.run(sockets=[listener])`."""

    class Connection(H11Protocol):
        """One connection, closed where too many are open, or where no whole head of a request comes in time."""

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._last, self._begun = self.cycle, self.loop.time()
            self._watch = self.loop.call_later(limits.seconds, self._end_if_idle)
            if len(self.connections) > limits.connections:
                transport.close()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self.cycle is not self._last:  # a request has begun
                self._last, self._begun = self.cycle, self.loop.time()

        def connection_lost(self, exc: Exception | None) -> None:
            self._watch.cancel()
            super().connection_lost(exc)

        def _end_if_idle(self) -> None:
            longest = limits.seconds * (1 if self.cycle is None else 2)  # a request comes, and is judged
            is_idle = self.cycle is None or self.cycle.response_complete
            if is_idle and self.loop.time() - self._begun >= longest:
                self.transport.close()
            else:
                self._watch = self.loop.call_later(limits.seconds, self._end_if_idle)

    config = uvicorn.Config(
        app, http=Connection, ws="none", log_config=None, access_log=False, server_header=False, date_header=False,
        proxy_headers=False, timeout_graceful_shutdown=int(2 * limits.seconds) + 1,
    )  # fmt: skip
    return uvicorn.Server(config)
