"""Lines that others want arrive, in their order, whatever the receiver does meanwhile; none is lost by a restart."""

from __future__ import annotations

import errno
import json
import socket
import ssl
import threading
from contextlib import ExitStack
from pathlib import Path

import pytest

from blemish.edges.mqtt import Mqtt
from blemish.errors import ArgumentError, MissingPackageError, OutputError
from blemish.station.delivery import Delivery, NotTaken, Unwanted
from blemish.station.secret import read_secret
from blemish.station.webhook import Webhook
from faults import WriteFault, failing, watching
from receivers import broker, http_receiver


def stranger(*_args, **_options):
    raise ssl.SSLCertVerificationError(1, "self-signed certificate")


@pytest.mark.parametrize(
    ("outlet", "opens"),
    [(lambda: Webhook("https://mes/in"), "http.client.HTTPSConnection.connect"),
     (lambda: Mqtt("mqtts://broker/line"), "paho.mqtt.client.Client.connect")],
)  # fmt: skip
def test_a_plant_with_an_authority_of_its_own_is_told_what_to_do(outlet, opens, monkeypatch):
    monkeypatch.setattr(opens, stranger)
    with pytest.raises(NotTaken, match=r"self-signed certificate.*\. SSL_CERT_FILE=FILE names an authority"):
        outlet().send(b"{}")


def lines(*numbers):
    return [b'{"n": %d}' % number for number in numbers]


def add(path, *numbers):
    with path.open("ab") as file:
        file.write(b"".join(line + b"\n" for line in lines(*numbers)))


class Recorder:
    """An outlet that does, at each line, what it was told to do; then it takes all."""

    name = "recorder"

    def __init__(self, *errors):
        self.errors, self.got, self.tried = list(errors), [], 0

    def send(self, line):
        self.tried += 1
        error = self.errors.pop(0) if self.errors else None
        if error is not None:
            raise error
        self.got.append(line)

    def interrupt(self):
        pass

    def close(self):
        pass


def deliver(path, outlet, *numbers, **options):
    """One run that adds lines; gives what it said."""
    said = []
    with Delivery(path, outlet, kind="webhook", say=said.append, waits=(0,), **options) as delivery:
        add(path, *numbers)
        delivery.tell()
    return said


def test_new_lines_are_sent_once_and_in_order_also_by_later_runs(tmp_path):
    path, outlet = tmp_path / "l.jsonl", Recorder()
    add(path, 0, 1)  # before anybody wanted them
    deliver(path, outlet, 2, 3)
    deliver(path, outlet)
    deliver(path, outlet, *range(4, 300))
    assert outlet.got == lines(*range(2, 300))


def test_a_line_that_does_not_arrive_is_sent_again_before_all_others(tmp_path):
    outlet = Recorder(None, NotTaken("gone."), NotTaken("gone."), NotTaken("gone."))
    said = deliver(tmp_path / "l.jsonl", outlet, 1, 2, 3)
    assert (outlet.got, outlet.tried) == (lines(1, 2, 3), 6)
    assert said == ["gone. It is tried again and again; the lines wait.", "recorder: lines arrive again."]


def test_a_line_that_is_refused_for_good_is_said_and_stops_nothing(tmp_path):
    outlet = Recorder(None, Unwanted("answered 422 to a line."))
    said = deliver(tmp_path / "l.jsonl", outlet, 1, 2, 3)
    assert outlet.got == lines(1, 3)
    assert said == ["answered 422 to a line. The line is passed over.", "1 lines were refused by recorder."]


class Never(Recorder):
    def send(self, line):
        self.tried += 1
        raise NotTaken("gone.")


def test_what_was_not_sent_at_the_end_is_said_and_sent_by_the_next_run(tmp_path):
    path = tmp_path / "l.jsonl"
    said = deliver(path, Never(), 1, 2, patience=0)
    assert said[-1] == "2 lines wait for recorder: the next start sends them."
    outlet = Recorder()
    with path.open("ab") as file:
        file.write(b'{"torn": ')  # by a kill; whoever goes on begins a new line
    with Delivery(path, outlet, kind="webhook", say=said.append, waits=(0,)) as delivery:
        with path.open("ab") as file:
            file.write(b"\n")
        add(path, 3)
        delivery.tell()
    assert outlet.got == lines(1, 2, 3)


def test_a_kill_costs_no_line(tmp_path):
    path = tmp_path / "l.jsonl"
    deliver(path, Recorder(), 1)
    place = (tmp_path / "l.jsonl.webhook").read_bytes()
    deliver(path, Recorder(), 2, 3)
    (tmp_path / "l.jsonl.webhook").write_bytes(place)  # killed before it was written down
    outlet = Recorder()
    deliver(path, outlet, 4)
    assert outlet.got == lines(2, 3, 4)


@pytest.mark.parametrize("content", [b"", b'{"n": 7}\n', b'{"n": 7}\n{"n": 8}\n{"n": 9}\n'])
def test_another_file_of_that_name_is_sent_from_its_beginning(tmp_path, content):
    path, outlet = tmp_path / "l.jsonl", Recorder()
    deliver(path, outlet, 1, 2)
    path.write_bytes(content)
    deliver(path, outlet)
    assert outlet.got == lines(1, 2) + content.splitlines()


def test_a_file_that_is_replaced_meanwhile_is_noticed(tmp_path):
    path, outlet, said = tmp_path / "l.jsonl", Recorder(), []
    deliver(path, outlet, 1)
    with Delivery(path, outlet, kind="webhook", say=said.append) as delivery:
        path.unlink()
        add(path, 5, 6)
        delivery.tell()
    assert outlet.got == lines(1, 5, 6)
    assert said == [f"{path}: is another file than before; it is sent from its beginning."]


def test_a_file_that_goes_while_it_is_opened_ends_nothing(tmp_path, monkeypatch):
    path, outlet, opens = tmp_path / "l.jsonl", Recorder(), Path.open

    def open_late(self, *args, **given):  # `write_bytes`, of what says how far lines were sent, comes here too
        if self == path and not outlet.got:
            path.unlink()
            outlet.got.append(b"gone")
        return opens(self, *args, **given)

    add(path, 1)
    with Delivery(path, outlet, kind="webhook", say=print) as delivery:
        monkeypatch.setattr(Path, "open", open_late)
        while not outlet.got:
            delivery.tell()
        monkeypatch.undo()
        add(path, 5, 6)
        delivery.tell()
    assert outlet.got == [b"gone", *lines(5, 6)]


@pytest.mark.parametrize(
    "text", ["", "[]", '{"version": 1}', '{"version": 2, "sent": 1, "last": ""}', '{"version": 1, "sent": "x"}']
)
def test_a_damaged_place_is_refused(tmp_path, text):
    (tmp_path / "l.jsonl.webhook").write_text(text)
    with pytest.raises(ArgumentError, match=r"l\.jsonl\.webhook: expected how far"):
        Delivery(tmp_path / "l.jsonl", Recorder(), kind="webhook", say=print)


def test_a_fault_while_sending_is_said(tmp_path, monkeypatch):
    def fail(_self):
        raise OSError("no disk.")

    monkeypatch.setattr(Delivery, "_send_all", fail)
    said = deliver(tmp_path / "l.jsonl", Recorder(), 1)
    assert said[0] == "no disk. Nothing is sent to recorder before the next start."


# HTTP


def test_a_webhook_posts_json_over_one_connection_and_marks_what_is_sent_again():
    with http_receiver([200, 503, 200, 204]) as (address, received):
        hook = Webhook(f"{address.replace('//', '//me:s%20t@')}/in?x=1")
        hook.send(b"{}")
        for status in (503, 200, 204):
            if status == 503:
                with pytest.raises(NotTaken, match=r"127\.0\.0\.1:\d+/in: answered 503\.$"):
                    hook.send(b'{"a": 1}')
            else:
                hook.send(b'{"a": 1}')
        hook.close()
    assert received.lines == [b"{}", b'{"a": 1}', b'{"a": 1}', b'{"a": 1}']
    first, *others = [about["Idempotency-Key"] for about in received.about]
    assert len(set(others)) == 1
    assert first not in others
    assert received.about[0]["path"] == "/in?x=1"
    assert received.about[0]["Content-Type"] == "application/json"
    assert received.about[0]["Authorization"] == "Basic bWU6cyB0"


def test_a_token_is_sent_and_a_refusal_of_the_line_is_one():
    with http_receiver([422, None, 301]) as (address, received):
        hook = Webhook(address, token="secret")
        with pytest.raises(Unwanted, match="answered 422 to a line"):
            hook.send(b"{}")
        with pytest.raises(NotTaken):
            hook.send(b"{}")
        with pytest.raises(NotTaken, match="answered 301"):
            hook.send(b"{}")
        hook.send(b"{}")
        hook.close()
    assert received.about[0]["Authorization"] == "Bearer secret"
    with pytest.raises(NotTaken, match=r"http://.*refused"):
        hook.send(b"{}")  # nobody is there any more


@pytest.mark.parametrize(
    "address",
    [
        "",
        "ftp://a/b",
        "http:///x",
        "localhost:80",
        "http://a:99999/",
        "http://a/\n",
        "http://a..b/",
        f"http://{'a' * 64}/",
    ],
)
def test_no_address_of_a_webhook(address):
    with pytest.raises(ArgumentError, match="--webhook: expected an address"):
        Webhook(address)


# MQTT


def test_lines_are_published_and_acknowledged():
    with broker() as (port, received):
        bus = Mqtt(f"me@127.0.0.1:{port}/plant/line 3", password="secret")
        for line in lines(1, 2, 3):
            bus.send(line)
        bus.close()
    assert received.lines == lines(1, 2, 3)
    assert {about["topic"] for about in received.about} == {"plant/line 3"}
    assert received.about[0]["connect"].endswith(b"\x00\x02me\x00\x06secret")
    assert "secret" not in bus.name


def test_what_is_not_acknowledged_is_not_taken_and_can_be_sent_again():
    with broker(deaf=1, refuses=1) as (port, received):
        bus = Mqtt(f"127.0.0.1:{port}/t")
        with pytest.raises(NotTaken, match="the broker refuses: Not authorized"):
            bus.send(b"{}")
        with pytest.raises(NotTaken, match="the broker acknowledged nothing"):
            bus.send(b"{}")
        bus.send(b"{}")
        bus.close()
    assert received.lines == [b"{}"]
    with pytest.raises(NotTaken, match="refused"):
        bus.send(b"{}")


@pytest.mark.parametrize(
    "place", ["", "host", "host/", "http://host/t", "host/a/#", "host/a+", "host:x/t", "a:b@host/t"]
)
def test_no_place_of_mqtt(place):
    with pytest.raises(ArgumentError, match=r"--mqtt: expected \[mqtts"):
        Mqtt(place)


def test_without_the_client_it_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "paho.mqtt", None)
    with pytest.raises(MissingPackageError, match=r"blemish\[mqtt\]"):
        Mqtt("host/t")


def test_secrets_are_read_from_files(tmp_path):
    (tmp_path / "t").write_text(" secret\n")
    assert read_secret(tmp_path / "t", least=1) == "secret"
    with pytest.raises(ArgumentError, match="at least 16 letters"):
        read_secret(tmp_path / "t")


def test_the_file_says_how_far_lines_were_sent(tmp_path):
    deliver(tmp_path / "l.jsonl", Recorder(), 1, 2)
    about = json.loads((tmp_path / "l.jsonl.webhook").read_text())
    assert (about["version"], about["sent"]) == (1, (tmp_path / "l.jsonl").stat().st_size)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["l.jsonl", "l.jsonl.webhook"]


def test_the_end_does_not_wait_for_an_answer_that_never_comes(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(30)
        outlet = Webhook(f"http://127.0.0.1:{server.getsockname()[1]}/", seconds=3600)
        delivery = Delivery(tmp_path / "l.jsonl", outlet, kind="webhook", say=lambda _: None, patience=0)
        delivery.__enter__()
        add(tmp_path / "l.jsonl", 1)
        delivery.tell()
        connection, _ = server.accept()
        connection.recv(1)
        ending = threading.Thread(target=delivery.__exit__, args=(None, None, None), daemon=True)
        ending.start()
        ending.join(60)
        is_over = not ending.is_alive()
        connection.close()
    assert is_over


@pytest.mark.parametrize("error", [ZeroDivisionError("the judge"), KeyboardInterrupt(), None])
def test_a_full_disk_at_the_end_hides_no_error_before_it(error, tmp_path):
    """The place cannot be written down then: that is said, and is the error where there is no other one."""
    said, outlets = [], [Recorder(), Recorder()]

    def judge():
        fault = WriteFault(tmp_path, stop=failing(errno.ENOSPC))
        with watching(fault), ExitStack() as held:
            for kind, outlet in zip(("webhook", "mqtt"), outlets, strict=True):
                delivery = Delivery(tmp_path / "lines", outlet, kind=kind, say=said.append)
                outlet.close = lambda outlet=outlet: outlet.got.append(b"closed")
                held.enter_context(delivery)
            fault.at = 0
            if error is not None:
                raise error

    with pytest.raises(OutputError if error is None else type(error)) as found:
        judge()
    assert error is None or found.value is error
    assert [outlet.got for outlet in outlets] == [[b"closed"]] * 2
    assert {text.partition(": ")[0] for text in said} >= {
        str(tmp_path / f"lines.{kind}") for kind in ("webhook", "mqtt")
    }
    assert not [thread for thread in threading.enumerate() if thread.name in ("blemish-webhook", "blemish-mqtt")]
