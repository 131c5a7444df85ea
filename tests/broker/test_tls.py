"""TLS: whose certificate is trusted, whose name it must carry, and logging in by one."""

import pathlib
from collections.abc import Iterator

import pytest
from certificates import Authority
from daemon import StartDaemon
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

    def __init__(self, directory: pathlib.Path) -> None:
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
            "ssl_options.fail_if_no_peer_cert = false\n"
            "auth_mechanisms.1 = PLAIN\nauth_mechanisms.2 = EXTERNAL\nssl_cert_login_from = common_name\n",
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
def test_a_broker_with_a_trusted_certificate_is_used(start: StartDaemon, broker: TlsBroker, host: str) -> None:
    start(CONFIG.format(tls=f'ca = "{broker.authority.file}"'), HANDLERS, at=broker.url(host))
    peer = Peer(broker.node.url())
    assert peer.call("work", {"a": 1}).json["data"] == {"a": 1}
    peer.close()


def test_a_client_certificate_logs_in_by_itself(start: StartDaemon, broker: TlsBroker) -> None:
    broker.node.ctl("add_user", "shop", "unused")
    broker.node.ctl("clear_password", "shop")
    broker.node.ctl("set_permissions", "shop", ".*", ".*", ".*")
    tls = f'ca = "{broker.authority.file}"\ncertificate = "{broker.client}"\nkey = "{broker.client_key}"'
    start(CONFIG.format(tls=tls), HANDLERS, at=broker.url(login=""))
    listed = broker.node.ctl("list_connections", "user", "auth_mechanism")
    assert "shop\tEXTERNAL" in listed


@pytest.mark.parametrize(
    ("ca", "host", "says"),
    [
        ("stranger", "localhost", "TLS failed: certificate verify failed; broker.tls.ca must have signed it"),
        ("ours", "ip6-localhost", "VerificationError"),
    ],
)
def test_a_broker_that_cannot_show_who_it_is_is_refused(
    start: StartDaemon, broker: TlsBroker, ca: str, host: str, says: str
) -> None:
    authority = broker.authority if ca == "ours" else broker.stranger
    tls = f'ca = "{authority.file}"\n' + ('server_name = "elsewhere.example"' if host != "localhost" else "")
    daemon = start(CONFIG.format(tls=tls), HANDLERS, at=broker.url(), wait=False)
    (line, *_) = daemon.wait_for("trying again in .* connection=work")
    assert says in line
    assert daemon.stop() == 0


def test_plain_amqp_on_the_port_of_tls_says_so(start: StartDaemon, broker: TlsBroker) -> None:
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
