import re
from typing import Any

import pytest

from rpcd.core.load import load
from rpcd.core.permissions import Permissions, permissions

CONSUMER = {"queue": "work", "handler": "a.b:c", "retry": {"delays": [1]}}


def needed(**parsed: Any) -> Permissions:
    settings, problems = load({"consumers": {"work": CONSUMER}, "queues": {"work": {}}, **parsed}, {}, lambda _path: "")
    assert problems == []
    return permissions(settings)


def test_a_queue_needs_its_archive_its_steps_and_the_default_exchange() -> None:
    assert needed() == Permissions(
        r"^(work|work\.archive|work\.retry\.1000)$", r"^amq\.default$", r"^(work|work\.retry\.1000)$"
    )


def test_a_daemon_that_declares_nothing_configures_nothing() -> None:
    assert needed(service={"declare": False}) == Permissions("^$", r"^amq\.default$", "^work$")


def test_a_passive_queue_is_only_read() -> None:
    assert needed(queues={"work": {"passive": True}}).configure == r"^(work\.archive|work\.retry\.1000)$"


def test_a_binding_writes_the_queue_and_reads_the_exchange() -> None:
    found = needed(queues={"work": {"bindings": [{"exchange": "shop"}]}})
    assert found.write == r"^(amq\.default|work)$"
    assert found.read == r"^(shop|work|work\.retry\.1000)$"


def test_an_exchange_with_a_section_may_be_published_to() -> None:
    found = needed(exchanges={"news": {"name": "the.news"}, "old": {"passive": True}})
    assert found.configure.startswith(r"^(the\.news|work|")
    assert found.write == r"^(amq\.default|old|the\.news)$"


def test_replies_through_the_requests_own_exchange_are_written_there() -> None:
    consumer = {**CONSUMER, "reply_via": "request-exchange"}
    queue = {"passive": True, "bindings": [{"exchange": "rpc"}]}
    assert re.fullmatch(needed(consumers={"work": consumer}, queues={"work": queue}).write, "rpc")
    declared = needed(consumers={"work": consumer}, queues={"work": queue}, service={"declare": False})
    assert declared.write == r"^(amq\.default|rpc)$"


def test_dead_lettering_and_alternate_exchanges_count_where_they_are_declared() -> None:
    found = needed(
        queues={"work": {"arguments": {"x-dead-letter-exchange": "dead"}}},
        exchanges={"shop": {"arguments": {"alternate-exchange": "lost"}}},
    )
    assert found.write == r"^(amq\.default|dead|lost|shop)$"
    assert "shop" in found.read


@pytest.mark.parametrize("declare", [True, False])
def test_what_the_broker_names_is_always_the_daemons_own(declare: bool) -> None:
    found = needed(queues={"work": {"name": "", "bindings": [{"exchange": "news"}]}}, service={"declare": declare})
    for pattern in (found.configure, found.write, found.read):
        assert re.fullmatch(pattern, "amq.gen-JzTY20BRgKO-HjmUJj0wLg")
        assert not re.fullmatch(pattern, "somebody.elses")


@pytest.mark.parametrize("name", ["a.b", "a|b", "(a", "a+", "[a]", "a\\b", "^a$", "a*?{2}", "grüße", "a b"])
def test_a_name_stands_for_itself_alone(name: str) -> None:
    found = needed(queues={"work": {"name": name}})
    assert re.fullmatch(found.read, name)
    assert not re.fullmatch(found.read, name + "x")
    assert not re.fullmatch(found.read, name.replace(".", "x").replace("|", "")) or not {".", "|"} & set(name)
