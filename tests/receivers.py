"""Doubles of those who are told of lines: an HTTP receiver, and a broker of MQTT, as much as one client needs."""

from __future__ import annotations

import socket
import struct
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Received:
    """What came, and how to wait for it."""

    def __init__(self):
        self.lines, self.about = [], []
        self._news = threading.Condition()

    def add(self, line, about):
        with self._news:
            self.lines.append(line)
            self.about.append(about)
            self._news.notify_all()

    def wait(self, count):
        with self._news:
            assert self._news.wait_for(lambda: len(self.lines) >= count, 30), self.lines


@contextmanager
def http_receiver(answers=()):
    """A receiver at a free port, which gives these answers first, then 200; gives its address and what came."""
    received, left = Received(), list(answers)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self):
            line = self.rfile.read(int(self.headers["content-length"]))
            received.add(line, dict(self.headers) | {"path": self.path})
            status = left.pop(0) if left else 200
            if status is None:  # goes away without a word
                self.close_connection = True
                return
            self.send_response(status)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_about):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", received
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def broker(*, deaf=0, refuses=0):
    """A broker at a free port; drops the first `deaf` messages and `refuses` so many connections; gives the port."""
    received, listener = Received(), socket.create_server(("127.0.0.1", 0))
    state = {"deaf": deaf, "refuses": refuses}

    def serve():
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection, connection.makefile("rb") as file:
                _talk(connection, file, received, state)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield listener.getsockname()[1], received
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()


def _talk(connection, file, received, state):
    while head := file.read(1):
        length = shift = 0
        while True:
            (byte,) = file.read(1)
            length |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                break
        body, kind = file.read(length), head[0] >> 4
        if kind == 1:  # CONNECT
            state["connect"] = body
            is_refused = state["refuses"] > 0
            state["refuses"] -= 1
            connection.sendall(bytes([0x20, 2, 0, 5 if is_refused else 0]))
            if is_refused:
                return
        elif kind == 3:  # PUBLISH
            (size,) = struct.unpack(">H", body[:2])
            if state["deaf"] > 0:
                state["deaf"] -= 1
                return
            received.add(body[4 + size :], {"topic": body[2 : 2 + size].decode(), "connect": state["connect"]})
            connection.sendall(bytes([0x40, 2]) + body[2 + size : 4 + size])  # PUBACK
        elif kind == 12:  # PINGREQ
            connection.sendall(bytes([0xD0, 0]))
        elif kind == 14:  # DISCONNECT
            return
