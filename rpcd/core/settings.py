"""The frozen tree of settings: names, types, defaults, and one sentence each.

The sentences are for operators: `rpcd check`, error messages and the reference page show them. Times are seconds unless a
name says otherwise; `arguments` are AMQP's own words and units. What needs more than one setting to be checked is checked
in `load`.
"""

from typing import Any, Literal

import attrs

from rpcd.core.consumers import Archive, Consumer, KillSwitch, Retry
from rpcd.core.setting import Name, Positive, Seconds, sentences, setting

__all__ = [
    "Archive",
    "Binding",
    "Broker",
    "Consumer",
    "Exchange",
    "KillSwitch",
    "Logging",
    "Name",
    "Positive",
    "Queue",
    "Retry",
    "Seconds",
    "Service",
    "Settings",
    "Tls",
    "sentences",
]


@attrs.frozen
class Tls:
    """`[broker.tls]`: how the broker is recognised, and how rpcd shows who it is."""

    ca: str | None = setting(
        "File with the certificates (PEM) that may have signed the broker's; the system's own if not set.", None
    )
    certificate: str | None = setting(
        "File with rpcd's own certificate (PEM); with a key it logs in by SASL EXTERNAL.", None
    )
    key: str | None = setting("File with the private key of `certificate` (PEM).", None)
    server_name: str | None = setting("The name that the broker's certificate must carry, if it is not the host's.", None)


@attrs.frozen
class Broker:
    """`[broker]`: which broker, and as whom."""

    url: str = setting(
        "amqp:// or amqps:// URL; several hosts separated by commas are tried in random order.",
        "amqp://guest:guest@localhost:5672/",
        secret=True,
    )
    username: str | None = setting("Wins over the URL's user name.", None)
    password: str | None = setting("Wins over the URL's password.", None, secret=True)
    virtual_host: str | None = setting("Wins over the URL's virtual host.", None)
    heartbeat: int = setting(
        "Seconds between heartbeats; 0 switches them off. RABBITMQ_HEARTBEAT and the URL's `heartbeat` win.", 15
    )
    login_patience: Seconds = setting(
        "How long a refused login is tried again at first start before it is believed.", Seconds(60.0)
    )
    connect_timeout: Seconds = setting("How long one host may take to accept a connection and a login.", Seconds(10.0))
    tls: Tls = setting("Certificates for amqps://.", Tls())
    fernet_keys: list[str] = setting(
        "Fernet keys that encrypted values are opened with, newest first; a string may hold several, one a line.",
        [],
        secret=True,
    )
    fernet_ttl: Seconds | None = setting(
        "How old an encrypted value may be when its message arrives for the first time; of any age if not set.", None
    )


@attrs.frozen
class Service:
    """`[service]`: the process."""

    path: list[str] = setting(
        "Directories put in front of sys.path, so that handlers are found there; relative to the config file's own.", []
    )
    modules: list[Name] = setting(
        "Modules that are imported for their @rpcd.message_handler registrations, each a queue and a consumer.", []
    )
    layers: list[Name] = setting(
        "Layers around the handlers of all consumers, the outermost first: dotted paths, or [layers] sections.", []
    )
    on_start: str | None = setting("Dotted path of a function that is called without arguments before rpcd connects.", None)
    drain_timeout: Seconds = setting(
        "How long running handlers get to finish when the process is told to stop.", Seconds(30.0)
    )
    control: str | None = setting(
        "Path of a unix socket for `rpcd ctl`, relative to the config file's directory; only its owner may use it.", None
    )
    http: str | None = setting(
        "Twisted endpoint on which health and metrics are told over HTTP: tcp:8001:interface=127.0.0.1, say.", None
    )
    declare: bool = setting(
        "Whether rpcd declares exchanges, queues and bindings; if not, it checks that they are there.", True
    )
    confirm_timeout: Seconds = setting(
        "How long the broker may take to confirm a publication before it is sent again.", Seconds(30.0)
    )
    publish_timeout: Seconds = setting(
        "How long a publication is tried before its message is given back to the queue.", Seconds(60.0)
    )


@attrs.frozen
class Logging:
    """`[logging]`: one stream of lines, rpcd's and the handlers' alike."""

    format: Literal["text", "json"] = setting("What a line looks like.", "text")
    level: Literal["debug", "info", "warning", "error", "critical"] = setting("The lowest level that is logged.", "info")


@attrs.frozen
class Exchange:
    """`[exchanges.NAME]`: an exchange to be declared."""

    name: str | None = setting("The exchange's name, if it is not the section's.", None)
    type: str = setting("direct, fanout, topic, headers, or the type of a plugin.", "topic")
    durable: bool = setting("Whether it survives a restart of the broker.", True)
    auto_delete: bool = setting("Whether it goes away with its last binding.", False)
    internal: bool = setting("Whether only other exchanges may publish to it.", False)
    passive: bool = setting("Whether it is only checked for, and waited for.", False)
    arguments: dict[str, Any] = setting("Arguments for the broker, verbatim.", {})


@attrs.frozen
class Binding:
    """One entry of a queue's `bindings`."""

    exchange: Name = setting("The exchange: the name of an [exchanges] section, or of an exchange that exists.")
    routing_keys: list[str] = setting("One binding is made for each key.", [""])
    arguments: dict[str, Any] = setting("Arguments for the broker, verbatim.", {})


@attrs.frozen
class Queue:
    """`[queues.NAME]`: a queue to be declared; durable and quorum unless something else is said."""

    name: str | None = setting("The queue's name, if it is not the section's; an empty one lets the broker choose.", None)
    type: Literal["quorum", "classic"] | None = setting(
        "quorum, or classic; classic is the default for queues that die with their connection.", None
    )
    durable: bool | None = setting("Whether it survives a restart of the broker; true unless it is exclusive.", None)
    exclusive: bool | None = setting(
        "Whether it belongs to this connection alone; true if the broker chooses its name.", None
    )
    auto_delete: bool | None = setting(
        "Whether it goes away with its last consumer; true if the broker chooses its name.", None
    )
    passive: bool = setting("Whether it is only checked for, and waited for.", False)
    delivery_limit: Positive = setting(
        "How often a message may come back to a quorum queue before the broker archives it.", Positive(20)
    )
    arguments: dict[str, Any] = setting(
        "Arguments for the broker, verbatim; they win over those that rpcd would choose.", {}
    )
    bindings: list[Binding] = setting("What the queue is bound to.", [])


@attrs.frozen
class Settings:
    """The whole config file."""

    broker: Broker = setting("Which broker, and as whom.", Broker())
    service: Service = setting("The process.", Service())
    logging: Logging = setting("Log lines.", Logging())
    exchanges: dict[str, Exchange] = setting("Exchanges to be declared.", {})
    queues: dict[str, Queue] = setting("Queues to be declared.", {})
    consumers: dict[str, Consumer] = setting("Queues and their handlers.", {})
    layers: dict[str, dict[str, Any]] = setting(
        "Layers by the names that `layers` of [service] and [consumers.NAME] use; `layer` is the dotted path, all else is "
        "handed to it.",
        {},
        secret=True,
    )
    virtual_hosts: dict[str, dict[str, Any]] = setting(
        "Sections that are laid over those above for --virtual-host NAME; broker.virtual_host is then NAME.",
        {},
        secret=True,
    )

    def exchange_name(self, key: str) -> str:
        """Return the broker's name of an exchange that is named by its section, or by itself."""
        section = self.exchanges.get(key)
        return section.name if section is not None and section.name is not None else key

    def queue_name(self, key: str) -> str:
        """Return the broker's name of a queue section; empty if the broker chooses it."""
        name = self.queues[key].name
        return key if name is None else name
