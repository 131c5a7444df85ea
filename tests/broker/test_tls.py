"""TLS: whose certificate is trusted, whose name it must carry, and logging in by one."""

import contextlib
import os
import pathlib
import socketserver
import ssl
import subprocess
import threading
from collections.abc import Iterator

import pytest
from certificates import DAY, Authority
from daemon import RPCD, StartDaemon
from peer import Peer

from rpcd.ops.rabbitmq import PrivateNode, free_ports

HANDLERS = """
    def echo(message):
        return message.body
"""

CONFIG = """
[broker.tls]
{tls}
[queues.work]
type = "classic"
[consumers.work]
queue = "work"
handler = "handlers_of_test:echo"
"""


class TlsBroker:
    """A node that speaks TLS, its authority, and a client's certificate."""

    def __init__(self, directory: pathlib.Path, strict: str | None = None) -> None:
        self.authority = Authority(directory, "ours")
        self.stranger = Authority(directory, "stranger")
        self.client, self.client_key = self.authority.issue("shop")
        certificate, key = self.authority.issue("localhost")
        (self.port,) = free_ports(1)
        self.node = PrivateNode(
            directory / "node",
            ["rabbitmq_auth_mechanism_ssl"],
            f"listeners.ssl.1 = 127.0.0.1:{self.port}\n"
            f"ssl_options.cacertfile = {self.authority.file}\n"
            f"ssl_options.certfile = {certificate}\n"
            f"ssl_options.keyfile = {key}\n"
            "ssl_options.verify = verify_peer\n"
            f"ssl_options.fail_if_no_peer_cert = {'true' if strict else 'false'}\n"
            + (f"ssl_options.versions.1 = {strict}\n" if strict else "")
            + "auth_mechanisms.1 = PLAIN\nauth_mechanisms.2 = EXTERNAL\nssl_cert_login_from = common_name\n",
        )

    def url(self, host: str = "localhost", login: str = "guest:guest@") -> str:
        return f"amqps://{login}{host}:{self.port}/"


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TlsBroker]:
    made = TlsBroker(tmp_path_factory.mktemp("tls"))
    made.node.start()
    yield made
    made.node.stop()


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
def test_security_03_a_broker_with_a_trusted_certificate_is_used(start: StartDaemon, broker: TlsBroker, host: str) -> None:
    start(CONFIG.format(tls=f'ca = "{broker.authority.file}"'), HANDLERS, at=broker.url(host))
    peer = Peer(broker.node.url())
    assert peer.call("work", {"a": 1}).json["data"] == {"a": 1}
    peer.close()


def test_security_05_a_client_certificate_logs_in_by_itself(start: StartDaemon, broker: TlsBroker) -> None:
    broker.node.ctl("add_user", "shop", "unused")
    broker.node.ctl("clear_password", "shop")
    broker.node.ctl("set_permissions", "shop", ".*", ".*", ".*")
    tls = f'ca = "{broker.authority.file}"\ncertificate = "{broker.client}"\nkey = "{broker.client_key}"'
    start(CONFIG.format(tls=tls), HANDLERS, at=broker.url(login=""))
    listed = broker.node.ctl("list_connections", "user", "auth_mechanism")
    assert "shop\tEXTERNAL" in listed


@pytest.fixture(scope="module")
def doors(broker: TlsBroker) -> Iterator[dict[str, int]]:
    """Ports that show another certificate each, and lead nowhere: a handshake that fails gets no further."""
    issue = broker.authority.issue
    shown = {
        "expired": issue("localhost", until=-DAY, file="expired"),
        "early": issue("localhost", since=DAY, until=2 * DAY, file="early"),
        "self-signed": issue("localhost", self_signed=True, file="self-signed"),
        "other": issue("rabbit.example", file="other"),
    }
    with contextlib.ExitStack() as stack:
        yield {name: stack.enter_context(door(*files)) for name, files in shown.items()}


@contextlib.contextmanager
def door(certificate: pathlib.Path, key: pathlib.Path) -> Iterator[int]:
    """Serve TLS handshakes with a certificate; give the port."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)

    class Handshake(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with contextlib.suppress(OSError), context.wrap_socket(self.request, server_side=True) as link:
                link.recv(1)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handshake) as server:
        serving = threading.Thread(target=server.serve_forever)
        serving.start()
        yield server.server_address[1]
        server.shutdown()
        serving.join()


SENTENCES = {
    "stranger": "the broker's certificate is signed by 'ours', who is not trusted; put that CA into {ca} (broker.tls.ca)",
    "system": "the broker's certificate is signed by 'ours', who is not trusted; put that CA into a file and name",
    "elsewhere": "certificate is not for 'elsewhere.example', but for localhost, 127.0.0.1; correct the host, or set",
    "other": "the broker's certificate is not for 'localhost', but for rabbit.example; correct the host, or set",
    "expired": "the broker's certificate has expired (2",
    "early": "the broker's certificate is not valid yet (until 2",
    "self-signed": "the broker's certificate is self-signed; if it is the right one, put it into {ca} (broker.tls.ca)",
}


def trouble(broker: TlsBroker, doors: dict[str, int], name: str) -> tuple[str, str, str]:
    """Return settings of TLS and a URL that lead to a trouble, and what is to be said about it."""
    file = (broker.stranger if name == "stranger" else broker.authority).file
    ca = "" if name == "system" else f'ca = "{file}"\n'
    tls = ca + ('server_name = "elsewhere.example"\n' if name == "elsewhere" else "")
    port = doors.get(name, broker.port)
    return tls, broker.url().replace(str(broker.port), str(port)), SENTENCES[name].format(ca=file)


@pytest.mark.parametrize("name", SENTENCES)
def test_security_03_04_each_trouble_with_a_certificate_has_its_own_sentence(
    start: StartDaemon, broker: TlsBroker, doors: dict[str, int], tmp_path: pathlib.Path, name: str
) -> None:
    tls, url, says = trouble(broker, doors, name)
    daemon = start(CONFIG.format(tls=tls), HANDLERS, at=url, wait=False)
    (line, *_) = daemon.wait_for("trying again in .* connection=work")
    assert says in line
    assert "TLS failed: " in line
    config = str(tmp_path / "rpcd.toml")
    for command in (["check", "--broker", "--config", config], ["call", "work", "{}", "--config", config]):
        done = subprocess.run(
            [str(RPCD), *command], env={**os.environ, "RABBITMQ_URL": url}, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 69
        (told,) = done.stderr.splitlines()
        assert says in told
    assert daemon.stop() == 0


@pytest.mark.parametrize("version", ["tlsv1.3", "tlsv1.2"])
def test_security_05_a_broker_that_refuses_our_certificate_says_so_through_us(
    start: StartDaemon, broker: TlsBroker, tmp_path_factory: pytest.TempPathFactory, version: str
) -> None:
    strict = TlsBroker(tmp_path_factory.mktemp("strict"), strict=version)
    strict.node.start()
    try:
        bare = f'ca = "{strict.authority.file}"'
        certificate, key = strict.stranger.issue("shop")
        cases = [
            (bare, "the broker wants a certificate from its clients; name one that it trusts in broker.tls.certificate"),
            (
                f'{bare}\ncertificate = "{certificate}"\nkey = "{key}"',
                f"the broker refuses the certificate {certificate} (broker.tls.certificate): it does not know who signed it",
            ),
        ]
        for tls, says in cases:
            daemon = start(CONFIG.format(tls=tls), HANDLERS, at=strict.url(), wait=False)
            (line, *_) = daemon.wait_for("trying again in .* connection=work")
            assert says in line
            assert daemon.stop() == 0
    finally:
        strict.node.stop()


def test_security_04_plain_amqp_on_the_port_of_tls_says_so(start: StartDaemon, broker: TlsBroker) -> None:
    daemon = start(CONFIG.format(tls=""), HANDLERS, at=broker.url().replace("amqps:", "amqp:"), wait=False)
    (line, *_) = daemon.wait_for("trying again in .* connection=work")
    assert "the port answers in TLS; write amqps://" in line
    assert daemon.stop() == 0


def test_files_that_are_not_there_exit_78(start: StartDaemon, broker: TlsBroker, tmp_path: pathlib.Path) -> None:
    (tmp_path / "empty.pem").touch()
    tls = f'ca = "{tmp_path}/missing.pem"\ncertificate = "{tmp_path}/empty.pem"\nkey = "{tmp_path}/empty.pem"'
    daemon = start(CONFIG.format(tls=tls), HANDLERS, at=broker.url(), wait=False)
    assert daemon.wait() == 78
    assert f"broker.tls.ca: {tmp_path}/missing.pem can't be read: No such file or directory" in daemon.output
    assert f"broker.tls.certificate: {tmp_path}/empty.pem holds no certificate" in daemon.output
    assert f"broker.tls.key: {tmp_path}/empty.pem is not valid PEM" in daemon.output
