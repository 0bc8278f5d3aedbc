"""A small station for tests: a real server in a thread of this process, and the few words of HTTP to ask it."""

from __future__ import annotations

import http.client
import io
import json
import threading
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
from PIL import Image

from blemish.detector import Detector
from blemish.images.preprocess import Preprocess
from blemish.methods import PaDiM
from blemish.station.app import make_app
from blemish.station.limits import Limits
from blemish.station.logbook import Logbook
from blemish.station.models import Models
from blemish.station.server import bind, listen, make_server
from blemish.station.station import Station

LIMITS = Limits(max_bytes=100_000, max_pixels=1_000_000, pictures=4, seconds=20)
TOKEN = "a-token-that-is-long-enough"


def pictures(count, seed=0, side=32):
    """Normal pictures: soft noise on a gradient."""
    draw = np.random.default_rng(seed)
    ramp = np.linspace(60, 180, side, dtype=np.float32)[:, None, None]
    return [(ramp + draw.normal(0, 8, (side, side, 3))).clip(0, 255).astype(np.uint8) for _ in range(count)]


def png(array, format="PNG"):
    file = io.BytesIO()
    Image.fromarray(array).save(file, format)
    return file.getvalue()


def defect(seed=0):
    array = pictures(1, seed=100 + seed)[0]
    array[8:20, 8:20] = 255 - array[8:20, 8:20]
    return png(array)


def fitted(seed=0, count=30, rate=0.2):
    detector = Detector(method=PaDiM(backbone="filters"), preprocess=Preprocess(32), false_alarm_rate=rate)
    return detector.fit(pictures(count, seed))


class Client:
    """Asks one station, a connection a request."""

    def __init__(self, port, token=None):
        self.port, self.token = port, token

    def __call__(self, method, target, body=None, **headers):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        if self.token is not None:
            headers["authorization"] = f"Bearer {self.token}"
        try:
            connection.request(method, target, body, {k.replace("_", "-"): v for k, v in headers.items()})
            answer = connection.getresponse()
            self.headers, content = answer.headers, answer.read()
        finally:
            connection.close()
        is_json = (answer.headers["content-type"] or "").startswith("application/json")
        return answer.status, json.loads(content) if is_json else content

    def predict(self, content, query="", name="small"):
        return self("POST", f"/v1/models/{name}/predict{query}", content, content_type="image/png")


@contextmanager
def serving(files, folder, *, limits=LIMITS, token=None, names=(), max_bytes=10**9, **changes):
    """A station at a free port; gives its client and the station itself, and ends as at SIGTERM."""
    limits = replace(limits, **changes)
    models = Models(files, max_bytes=max_bytes, batch=limits.batch, max_pixels=limits.max_pixels)
    station = Station(models, Logbook(folder), limits=limits)
    station.watching.patience = 60
    with bind("127.0.0.1", 0) as bound:
        listen(bound)
        server = make_server(make_app(station, token=token, names=names), limits=limits)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
        thread.start()
        try:
            ask = Client(bound.getsockname()[1], token)
            ask.server = server
            yield ask, station
        finally:
            server.should_exit = True
            thread.join()


def form(*files, boundary="bound"):
    """A multipart body of (field, file name, content)."""
    parts = [
        f'--{boundary}\r\nContent-Disposition: form-data; name="{field}"; filename="{name}"\r\n\r\n'.encode() + content
        for field, name, content in files
    ]
    return b"\r\n".join([*parts, f"--{boundary}--\r\n".encode()])
