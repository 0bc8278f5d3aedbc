"""Lines as messages of MQTT, the message bus of many plants (extra `mqtt`: Eclipse's client paho)."""

from __future__ import annotations

import threading
from contextlib import suppress
from typing import Any
from urllib.parse import unquote

from ..errors import ArgumentError, MissingPackageError
from ..station.address import split_address
from ..station.delivery import NotTaken

_SECONDS = 10.0
"""To connect, and to acknowledge a message."""
_LONGEST_TOPIC = 65_535
"""Bytes, by the protocol."""
_PORTS = {"mqtt": 1883, "mqtts": 8883}


class Mqtt:
    """Publishes each line under one topic, with quality of service 1: it was taken when the broker acknowledges it.

    The place is `HOST[:PORT]/TOPIC`, with `mqtts://` before it for an encrypted connection, and `NAME@` before the host
    where the broker asks for a name and `password`. Raises `MissingPackageError`, `ArgumentError`.
    """

    def __init__(self, place: str, *, password: str | None = None, seconds: float = _SECONDS) -> None:
        expected, shown = "[mqtts://][NAME@]HOST[:PORT]/TOPIC, without + and #", place.rpartition("@")[2]
        try:
            found = split_address(place if "://" in place else f"mqtt://{place}")
            host, port, topic = found.hostname, found.port, found.path[1:]
            is_right = 0 < len(topic.encode()) <= _LONGEST_TOPIC and not set("+#?") & set(place)
        except ValueError:
            raise ArgumentError.about("--mqtt", expected=expected, got=shown) from None
        if found.scheme not in _PORTS or not is_right or found.password is not None:
            raise ArgumentError.about("--mqtt", expected=expected, got=shown)
        self._paho = _import_paho()
        self._host, self._port, self._topic = host, port or _PORTS[found.scheme], topic
        self._is_encrypted, self._seconds = found.scheme == "mqtts", seconds
        self._user = None if found.username is None else unquote(found.username)
        self._password = password
        self.name = f"{found.scheme}://{host}:{self._port}/{topic}"
        self._client: Any = None
        self._is_connected = False
        self._acknowledged: set[int] = set()
        self._news = threading.Condition()

    def send(self, line: bytes) -> None:
        """Publish one line. Raises `NotTaken`."""
        try:
            if self._client is None:
                self._client = self._connect()
            number = self._client.publish(self._topic, line, qos=1).mid
        except (OSError, ValueError, RuntimeError) as error:
            self.close()
            raise NotTaken.because(self.name, error) from error
        with self._news:
            self._news.wait_for(lambda: number in self._acknowledged or not self._is_connected, self._seconds)
            is_taken = number in self._acknowledged
            self._acknowledged.clear()
        if not is_taken:
            self.close()  # with it goes the message, which is sent again by whoever has the line
            raise NotTaken(f"{self.name}: the broker acknowledged nothing.")

    def interrupt(self) -> None:
        """Nothing: what is under way ends by itself, in a few seconds."""

    def close(self) -> None:
        """Let the connection go."""
        client, self._client = self._client, None
        if client is not None:
            with suppress(OSError, ValueError, RuntimeError):
                client.disconnect()
            client.loop_stop()

    def _connect(self) -> Any:
        client = self._paho.Client(self._paho.CallbackAPIVersion.VERSION2, reconnect_on_failure=False)
        if self._user is not None:
            client.username_pw_set(self._user, self._password)
        if self._is_encrypted:
            client.tls_set()
        said: list[Any] = []

        def connected(_client: Any, _data: Any, _flags: Any, reason: Any, _properties: Any) -> None:
            with self._news:
                said.append(reason)
                self._is_connected = not reason.is_failure
                self._news.notify()

        def acknowledged(_client: Any, _data: Any, number: int, _reason: Any, _properties: Any) -> None:
            with self._news:
                self._acknowledged.add(number)
                self._news.notify()

        def gone(*_about: Any) -> None:
            with self._news:
                said.append(None)
                self._is_connected = False
                self._news.notify()

        client.on_connect, client.on_publish, client.on_disconnect = connected, acknowledged, gone
        client.connect_timeout = self._seconds
        client.connect(self._host, self._port)
        client.loop_start()
        with self._news:
            self._news.wait_for(lambda: said, self._seconds)
        if not self._is_connected:
            client.loop_stop()
            raise ConnectionError(
                f"the broker refuses: {said[0]}" if said and said[0] else "the broker does not answer"
            )
        return client


def _import_paho() -> Any:
    try:
        from paho.mqtt import client
    except ImportError as error:
        raise MissingPackageError("MQTT needs one more package. Run: pip install 'blemish[mqtt]'.") from error
    return client
