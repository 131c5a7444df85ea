"""Settings from tables, without the loader."""

from collections.abc import Mapping
from typing import Any

from rpcd.core.settings import Archive, Binding, Broker, Consumer, Exchange, Queue, Retry, Service, Settings, Tls


def built(sections: Mapping[str, Any]) -> Settings:
    """Make settings from nested tables, of which each is right by itself."""
    broker = dict(sections.get("broker", {}))
    return Settings(
        broker=Broker(**{**broker, "tls": Tls(**broker.get("tls", {}))}),
        service=Service(**sections.get("service", {})),
        exchanges={key: Exchange(**section) for key, section in sections.get("exchanges", {}).items()},
        queues={
            key: Queue(**{**section, "bindings": [Binding(**each) for each in section.get("bindings", [])]})
            for key, section in sections.get("queues", {}).items()
        },
        consumers={
            key: Consumer(
                **{**section, "retry": Retry(**section.get("retry", {})), "archive": Archive(**section.get("archive", {}))}
            )
            for key, section in sections.get("consumers", {}).items()
        },
    )
