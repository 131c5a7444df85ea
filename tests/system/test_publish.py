"""`rpcd publish --file`: every line confirmed, and never a doubt about where to go on."""

import json
import os
import pathlib
import re
import select
import signal
import subprocess

import pytest
from command import on_terminal, rpcd, running
from peer import Peer

from rpcd.ops.rabbitmq import PrivateNode


def lines_of(path: pathlib.Path, count: int) -> str:
    path.write_text("".join(f'{{"n": {number}}}\n' for number in range(1, count + 1)))
    return str(path)


@pytest.fixture
def file(tmp_path: pathlib.Path) -> pathlib.Path:
    return tmp_path / "lines.jsonl"


def numbers(peer: Peer, queue: str = "inbox") -> list[int]:
    return [message.json["n"] for message in peer.left(queue)]


def test_each_line_of_a_file_is_a_message(url: str, peer: Peer, file: pathlib.Path) -> None:
    peer.channel.queue_declare("inbox", durable=True)
    done = rpcd("publish", "", "inbox", "--file", lines_of(file, 1000), url=url)
    assert (done.returncode, done.stdout, done.stderr) == (0, "1000 messages are published\n", "")
    assert numbers(peer) == list(range(1, 1001))


def test_lines_come_from_standard_input_and_keep_their_numbers_as_written(url: str, peer: Peer) -> None:
    peer.channel.queue_declare("inbox")
    given = '{"n": 123456789012345678901234567890}\n\n  \n[1.10]'
    done = rpcd("publish", "", "inbox", "--file", "-", "--json", url=url, stdin=given)
    assert (done.returncode, json.loads(done.stdout)) == (0, {"ok": True, "published": 2})
    first, second = peer.left("inbox")
    assert (first.body, second.body) == (b'{"n": 123456789012345678901234567890}', b"[1.10]")
    assert first.properties.content_type == "application/json"
    assert first.properties.message_id != second.properties.message_id


def test_a_line_may_be_a_whole_message(url: str, peer: Peer, file: pathlib.Path) -> None:
    peer.channel.queue_declare("inbox")
    peer.channel.queue_declare("other")
    whole = {
        "exchange": "",
        "routing_key": "other",
        "body": {"a": 1},
        "headers": {"n": 5, "t": "x"},
        "message_id": "m-1",
        "correlation_id": "c-1",
        "type": "order",
        "priority": 7,
        "expiration": 60,
        "reply_to": "back",
    }
    file.write_text(f'{json.dumps(whole)}\n{{"body_base64": "AAE="}}\n{{"body": "hi", "content_type": "text/plain"}}\n')
    done = rpcd("publish", "", "inbox", "--messages", "--file", str(file), "--header", "all=1", url=url)
    assert (done.returncode, done.stderr) == (0, "")
    (message,) = peer.left("other")
    found = message.properties
    assert (message.json, found.headers) == ({"a": 1}, {"n": 5, "t": "x"})
    assert (found.message_id, found.correlation_id, found.type, found.priority) == ("m-1", "c-1", "order", 7)
    assert (found.expiration, found.reply_to, found.delivery_mode) == ("60000", "back", 2)
    raw, text = peer.left("inbox")
    assert (raw.body, raw.properties.content_type, raw.headers) == (b"\0\1", "application/octet-stream", {"all": "1"})
    assert (text.body, text.properties.content_type) == (b"hi", "text/plain")


@pytest.mark.parametrize(
    ("arguments", "line", "says"),
    [
        ([], "{bad", "the body is not JSON: "),
        (["--messages"], '{"bdy": 1}', "unknown field `bdy`"),
        (["--messages"], '{"priority": 256}', "`$.priority`"),
        (["--messages"], "5", "Expected `object`, got `int`"),
        (["--messages"], '{"body_base64": "*"}', "body_base64 is not base64"),
        (["--messages"], '{"routing_key": "' + "k" * 256 + '"}', "the routing key has 256 bytes; AMQP allows 255"),
        (["--messages"], '{"headers": {"n": 99999999999999999999}}', "header 'n'"),
    ],
)
def test_the_first_bad_line_ends_it_and_is_named(
    url: str, peer: Peer, file: pathlib.Path, arguments: list[str], line: str, says: str
) -> None:
    peer.channel.queue_declare("inbox")
    good = '{"body": 1}\n' if arguments else "1\n"
    file.write_text(good * 16 + line + "\n" + good * 100)
    done = rpcd("publish", "", "inbox", "--file", str(file), *arguments, url=url)
    assert done.returncode == 2
    first, second = done.stderr.splitlines()
    assert first.startswith("line 17: ")
    assert says in first
    assert second.startswith("16 messages are safely published; go on with --from-line 17")
    assert len(peer.left("inbox")) == 16
    file.write_text(good * 117)
    done = rpcd("publish", "", "inbox", "--file", str(file), *arguments, "--from-line", "17", url=url)
    assert (done.returncode, done.stdout) == (0, "101 messages are published\n")


def test_what_no_queue_takes_ends_it(url: str, peer: Peer, file: pathlib.Path) -> None:
    peer.channel.queue_declare("inbox")
    file.write_text("{}\n" * 3 + '{"routing_key": "nowhere"}\n' + "{}\n" * 3)
    done = rpcd("publish", "", "inbox", "--messages", "--window", "1", "--file", str(file), url=url)
    assert done.returncode == 69
    assert done.stderr.startswith("line 4: no queue takes exchange '', key 'nowhere': 312 NO_ROUTE\n3 messages are safely")
    assert len(peer.left("inbox")) == 3
    done = rpcd("publish", "", "inbox", "--messages", "--unroutable-is-fine", "--file", str(file), url=url)
    assert done.returncode == 0


def test_an_exchange_that_is_not_there_ends_it_with_what_was_safe(url: str, peer: Peer, file: pathlib.Path) -> None:
    peer.channel.queue_declare("inbox")
    file.write_text("{}\n" * 50 + '{"exchange": "nowhere"}\n' + "{}\n" * 50)
    done = rpcd("publish", "", "inbox", "--messages", "--json", "--file", str(file), url=url)
    assert done.returncode == 1
    found = json.loads(done.stdout)
    assert (found["ok"], found["line"]) == (False, 51)
    assert "no exchange 'nowhere'" in found["error"]
    assert found["from_line"] <= 51
    assert len(peer.left("inbox")) >= found["published"] >= found["from_line"] - 1


def test_a_missing_permission_is_told_as_one(url: str, node: PrivateNode, virtual_host: str, file: pathlib.Path) -> None:
    node.ctl("add_user", f"reader-{virtual_host}", "pw")
    node.ctl("set_permissions", "--vhost", virtual_host, f"reader-{virtual_host}", ".*", "^$", ".*")
    reader = node.url(virtual_host, f"reader-{virtual_host}", "pw")
    done = rpcd("publish", "", "inbox", "--file", lines_of(file, 3), url=reader)
    assert done.returncode == 77
    assert "grant the permission `write`" in done.stderr
    assert "0 messages are safely published; go on with --from-line 1\n" in done.stderr


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_tells_where_to_go_on(url: str, peer: Peer, file: pathlib.Path, number: int, code: int) -> None:
    peer.channel.queue_declare("inbox")
    with running("publish", "", "inbox", "--rate", "20", "--file", lines_of(file, 10_000), url=url) as command:
        first = peer.get("inbox")
        command.process.send_signal(number)
        assert command.wait() == code
        _, told = command.err
    (safe, line) = map(int, re.findall(r"\d+", told))
    assert line == safe + 1
    assert [first.json["n"], *numbers(peer)] == list(range(1, safe + 1))
    rest = rpcd("publish", "", "inbox", "--file", str(file), "--from-line", str(line), url=url)
    assert rest.stdout == f"{10_000 - safe} messages are published\n"
    assert numbers(peer) == list(range(line, 10_001))


def test_a_signal_ends_it_though_standard_input_says_nothing(url: str, peer: Peer) -> None:
    peer.channel.queue_declare("inbox")
    with running("publish", "", "inbox", "--file", "-", url=url, stdin=subprocess.PIPE) as command:
        assert command.process.stdin is not None
        command.process.stdin.write("{}\n")
        command.process.stdin.flush()
        peer.get("inbox")
        command.process.send_signal(signal.SIGINT)
        assert command.wait() == 130
        word, told = command.err
    assert word == "interrupted"
    assert told.startswith("1 message is safely published; go on with --from-line 2 (some behind that line may have arrived")


def test_a_lost_connection_ends_it_and_nothing_is_missing_after_going_on(own_node: PrivateNode, file: pathlib.Path) -> None:
    peer = Peer(own_node.url())
    peer.channel.queue_declare("inbox", durable=True)
    with running("publish", "", "inbox", "--rate", "500", "--file", lines_of(file, 5_000), url=own_node.url()) as command:
        peer.get("inbox")
        own_node.kill()
        assert command.wait() == 69
        what, told = command.err
    assert "the connection was lost" in what
    line = int(re.findall(r"--from-line (\d+)", told)[0])
    own_node.start()
    again = Peer(own_node.url())
    rest = rpcd("publish", "", "inbox", "--file", str(file), "--from-line", str(line), url=own_node.url())
    assert rest.returncode == 0
    assert set(range(2, 5_001)) <= set(numbers(again))
    again.close()


def test_a_terminal_shows_a_bar_and_a_pipe_none(url: str, peer: Peer, file: pathlib.Path) -> None:
    peer.channel.queue_declare("inbox")
    code, said = on_terminal("publish", "", "inbox", "--file", lines_of(file, 500), url=url)
    assert code == 0
    assert b" published" in said.replace(b"500 messages are published", b"")
    assert said.endswith(b"500 messages are published\r\n")


def test_what_is_read_ahead_is_bounded(url: str) -> None:
    """Nothing takes from the window, so a file without end must not be read on."""
    with running("publish", "", "nowhere", "--unroutable-is-fine", "--rate", "1", "--file", "/dev/stdin", url=url,
                 stdin=subprocess.PIPE) as command:  # fmt: skip
        assert command.process.stdin is not None
        written = 0
        line = json.dumps({"pad": "x" * 1000}) + "\n"
        descriptor = command.process.stdin.fileno()
        os.set_blocking(descriptor, False)
        while select.select([], [descriptor], [], 3)[1]:
            written += os.write(descriptor, (line * 50).encode())
            assert written < 2_000_000


def test_the_single_form_takes_properties_and_headers(url: str, peer: Peer) -> None:
    peer.channel.queue_declare("inbox")
    options = ["--header", "a=1", "--header", "b:=[1,true]", "--header", "c=", "--message-id", "m", "--correlation-id", "c"]
    options += ["--type", "t", "--priority", "3", "--expiration", "60"]
    done = rpcd("publish", "", "inbox", '{"a": 1.10}', *options, url=url)
    assert (done.returncode, done.stderr) == (0, "")
    (message,) = peer.left("inbox")
    found = message.properties
    assert message.headers == {"a": "1", "b": [1, True], "c": ""}
    assert (found.message_id, found.correlation_id, found.type, found.priority) == ("m", "c", "t", 3)
    assert (found.expiration, message.body) == ("60000", b'{"a": 1.10}')


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "Give either JSON or --file FILE."),
        (["{}", "--file", "-"], "Give either JSON or --file FILE."),
        (["{}", "--messages"], "--messages is about the lines of a --file"),
        (["--file", "/nowhere"], "--file /nowhere: can't be read: No such file or directory"),
        (["--file", "/"], "--file /: is a directory"),
        (["--file", "a", "--from-line", "0"], "0 is not in the range x>=1"),
        (["{}", "--header", "x"], "--header x: expected NAME=VALUE, or NAME:=JSON"),
        (["{}", "--header", "x:=y"], "--header x:=y: x is not JSON"),
        (["{}", "--header", "x:=99999999999999999999"], "header 'x'"),
        (["{}", "--priority", "256"], "256 is not in the range 0<=x<=255"),
        (["{}", "--expiration", "nan"], "expiration"),
        (["{}", "--message-id", "m" * 256], "message_id has 256 bytes; AMQP allows 255"),
        (["\udcff"], "not UTF-8"),
        (["{}", "--type", "\udcff"], "not UTF-8"),
    ],
)
def test_wrong_usage_ends_with_2_before_anything_is_sent(arguments: list[str], says: str) -> None:
    done = rpcd("publish", "shop", "key", *arguments, url="amqp://127.0.0.1:1/")
    assert done.returncode == 2, done.stderr
    assert says in done.stderr
    assert "Traceback" not in done.stderr
