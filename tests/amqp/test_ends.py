"""Why the broker ended a consumer's channel: said in words that help."""

import logging

import pytest

from rpcd.amqp.ends import tell_end
from rpcd.core.errors import ChannelClosed, ConnectionLost, ConsumerCancelled
from rpcd.core.ledger import Ledger
from rpcd.core.message import Message
from rpcd.core.pipeline import Job

TIMED_OUT = "PRECONDITION_FAILED - delivery acknowledgement on channel 1 timed out. Timeout value used: 1800000 ms."
CANCELLED = ConsumerCancelled("the broker cancelled the consumer of 'work'")


class Target:
    path = "shop:place"


class Route:
    target = Target()


def jobs(*received: float) -> list[Job]:
    found = [Message(received=at, queue="work") for at in received]
    for number, message in enumerate(found):
        message.properties.message_id = f"m{number}"
    return [Job(message, Route(), Ledger(), 1) for message in found]  # type: ignore[arg-type]  # all that is asked of it


def told(
    caplog: pytest.LogCaptureFixture, reason: Exception, running: list[Job], version: tuple[int, ...] = (3, 10, 8)
) -> str:
    with caplog.at_level(logging.DEBUG):
        tell_end(reason, running, version, 2000.0, {"consumer": "work", "queue": "work"})
    assert all(record.levelno == logging.ERROR and record.queue == "work" for record in caplog.records)  # type: ignore[attr-defined]
    return caplog.text


def test_a_channel_error_is_said(caplog: pytest.LogCaptureFixture) -> None:
    text = told(caplog, ChannelClosed(406, "PRECONDITION_FAILED - unknown delivery tag 7"), jobs(1999.0))
    assert "the broker closed the channel: 406 PRECONDITION_FAILED - unknown delivery tag 7" in text


def test_a_late_ack_names_the_handler_that_has_had_its_message_longest(caplog: pytest.LogCaptureFixture) -> None:
    text = told(caplog, ChannelClosed(406, TIMED_OUT), jobs(1990.0, 200.0, 1000.0))
    assert "handler shop:place has had message 'm1' for 1800 s" in text
    assert "keep time_limit below half" in text


def test_a_late_ack_without_a_handler_is_one_that_waits(caplog: pytest.LogCaptureFixture) -> None:
    text = told(caplog, ChannelClosed(406, TIMED_OUT), [])
    assert "no handler was running: an outcome could not be published, or waits for its next attempt" in text


def test_a_cancelled_consumer_is_one_whose_queue_has_gone(caplog: pytest.LogCaptureFixture) -> None:
    text = told(caplog, CANCELLED, jobs(200.0))
    assert "the broker cancelled the consumer of 'work': its queue was deleted, or the node that has it went away" in text
    assert "too long for an ack" not in text


def test_newer_brokers_cancel_where_they_waited_too_long(caplog: pytest.LogCaptureFixture) -> None:
    text = told(caplog, CANCELLED, jobs(200.0), (4, 3, 0))
    assert "or it waited too long for an ack: handler shop:place has had message 'm0' for 1800 s; keep time_limit" in text


def test_a_lost_connection_is_told_elsewhere(caplog: pytest.LogCaptureFixture) -> None:
    text = told(caplog, ConnectionLost("closed by rpcd"), jobs(200.0))
    assert text == ""
