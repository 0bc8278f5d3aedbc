"""Lines as HTTP requests, for whoever wants to be told: an MES, a PLC's gateway, a chat."""

from __future__ import annotations

import base64
import hashlib
import http.client
import socket
from contextlib import suppress
from urllib.parse import unquote

from ..errors import ArgumentError
from .address import split_address
from .delivery import NotTaken, Unwanted

_SECONDS = 10.0
"""To connect, and to answer."""
_UNWANTED = (400, 413, 415, 422)
"""Answers that are about the line itself; others can be different the next time."""


class Webhook:
    """POSTs each line to an address, over one connection.

    The header `Idempotency-Key` is the same when a line is sent again, so that a receiver can tell. A name and password
    in the address become HTTP's Basic authorization, a `token` a Bearer one. Any answer of 200 to 299 means: taken.

    Raises `ArgumentError` for an address that is none.
    """

    def __init__(self, address: str, *, token: str | None = None, seconds: float = _SECONDS) -> None:
        expected = "an address that begins with http:// or https://"
        try:
            found = split_address(address)
        except ValueError:
            raise ArgumentError.about("--webhook", expected=expected, got=address) from None
        if found.scheme not in ("http", "https") or not address.isascii() or " " in address:
            raise ArgumentError.about("--webhook", expected=expected, got=address)
        self.name = f"{found.scheme}://{found.netloc.rpartition('@')[2]}{found.path}"
        self._target = (found.path or "/") + (f"?{found.query}" if found.query else "")
        self._headers = {"Content-Type": "application/json"}
        if token is not None:
            self._headers["Authorization"] = f"Bearer {token}"
        elif found.username is not None:
            both = f"{unquote(found.username)}:{unquote(found.password or '')}"
            self._headers["Authorization"] = f"Basic {base64.b64encode(both.encode()).decode()}"
        kind = http.client.HTTPSConnection if found.scheme == "https" else http.client.HTTPConnection
        self._socket: socket.socket | None = None
        self._is_over = False
        self._connection = kind(found.hostname or "", found.port, timeout=seconds)

    def send(self, line: bytes) -> None:
        """Send one line. Raises `NotTaken`, `Unwanted`."""
        headers = self._headers | {"Idempotency-Key": hashlib.sha256(line).hexdigest()[:32]}
        try:
            self._connection.request("POST", self._target, line, headers)
            self._socket = self._connection.sock
            if self._is_over:
                raise ConnectionAbortedError("this is the end")
            answer = self._connection.getresponse()
            answer.read(1 << 16)
        except (OSError, http.client.HTTPException) as error:
            self.close()
            raise NotTaken.because(self.name, error) from error
        if not answer.isclosed():
            self.close()  # it says more than anybody wants to read
        if answer.status in _UNWANTED:
            raise Unwanted(f"{self.name}: answered {answer.status} to a line.")
        if not 200 <= answer.status < 300:
            raise NotTaken(f"{self.name}: answered {answer.status}.")

    def interrupt(self) -> None:
        """Break off an answer that is under way: each piece of it has its time, and there may be pieces without end."""
        self._is_over = True
        if self._socket is not None:
            with suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Let the connection go."""
        with suppress(OSError):
            self._connection.close()
