"""Spans around handlers, and the trace context that goes on with what they publish."""

import asyncio
import logging
import pathlib
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from opentelemetry import baggage, trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

import rpcd
from rpcd.core.tables import Headers
from rpcd.core.wire import Properties, read_properties
from rpcd.features import tracing

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
HEADERS = {"traceparent": f"00-{TRACE}-{PARENT}-01", "tracestate": "shop=1", "baggage": "tenant=north", "x": "secret"}

EXPORTER = InMemorySpanExporter()


@pytest.fixture(scope="module", autouse=True)
def _provider() -> None:
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(EXPORTER))
    trace.set_tracer_provider(provider)


@pytest.fixture
def spans() -> Iterator[InMemorySpanExporter]:
    EXPORTER.clear()
    yield EXPORTER
    assert not trace.get_current_span().get_span_context().is_valid, "a span has stayed the current one"


def message(headers: Any = HEADERS, **options: Any) -> rpcd.Message[Any]:
    properties = Properties(message_id="m1", correlation_id=b"c\xff")
    return rpcd.Message(
        {"password": "canary"},
        properties=properties,
        headers=headers,
        exchange="shop",
        routing_key="order.placed",
        queue="orders",
        consumer="desk",
        payload=b"12345",
        **options,
    )


def sent(each: Any) -> dict[str, Any]:
    found = read_properties(each.properties).headers
    assert isinstance(found, Headers)
    return dict(found)


def layered(handler: Any) -> Any:
    config, problems = tracing.check({}, pathlib.Path())
    assert problems == []
    return tracing.layer(handler, config)


def test_a_run_is_a_consumer_span_that_tells_where_a_message_is_from_and_not_what_it_says(
    spans: InMemorySpanExporter,
) -> None:
    assert layered(lambda its: its.body)(message(attempt=2)) == {"password": "canary"}
    (span,) = spans.get_finished_spans()
    assert (span.name, span.kind) == ("process orders", trace.SpanKind.CONSUMER)
    assert span.parent is not None
    assert (f"{span.context.trace_id:032x}", f"{span.parent.span_id:016x}") == (TRACE, PARENT)
    assert dict(span.attributes or {}) == {
        "messaging.system": "rabbitmq",
        "messaging.operation.type": "process",
        "messaging.operation.name": "process",
        "messaging.destination.name": "shop:order.placed:orders",
        "messaging.rabbitmq.destination.routing_key": "order.placed",
        "messaging.consumer.group.name": "desk",
        "messaging.message.body.size": 5,
        "messaging.message.id": "m1",
        "messaging.message.conversation_id": "c\ufffd",
        "rpcd.attempt": 2,
    }
    assert span.status.status_code is trace.StatusCode.UNSET


@pytest.mark.parametrize("headers", [None, {"traceparent": "rubbish"}, {"traceparent": 5}, {"traceparent": b"\xff"}])
def test_a_message_without_a_context_that_can_be_read_begins_a_trace(headers: Any, spans: InMemorySpanExporter) -> None:
    layered(lambda its: None)(message(headers))
    (span,) = spans.get_finished_spans()
    assert span.parent is None


@pytest.mark.parametrize(
    "headers",
    [
        {**HEADERS, "baggage": "canary"},
        {**HEADERS, "baggage": "a=1,canary;=b,\ufffdcanary=\ufffd"},
        {**HEADERS, "baggage": "canary=" + 9000 * "x"},
        {**HEADERS, "tracestate": "canary"},
        {**HEADERS, "tracestate": "canary=1,canary=2"},
        {**HEADERS, "traceparent": "00-canary"},
    ],
)
def test_what_opentelemetry_says_of_headers_that_it_cant_read_shows_none_of_them(
    headers: Any, caplog: pytest.LogCaptureFixture, spans: InMemorySpanExporter
) -> None:
    caplog.set_level(logging.DEBUG)
    layered(lambda its: its.publish("", "r", {}))(message(headers))
    assert "canary" not in caplog.text


def test_what_the_handler_publishes_carries_the_context_on(spans: InMemorySpanExporter) -> None:
    def handler(its: rpcd.Message[Any]) -> None:
        assert baggage.get_baggage("tenant") == "north"
        its.publish("shop", "order.packed", headers={"mine": 1})
        with trace.get_tracer("shop").start_as_current_span("own"):
            its.publish_now("", "bills")
        thread = threading.Thread(target=its.publish, args=("", "amq.gen-4711"))
        thread.start()
        thread.join()

    its = message()
    layered(handler)(its)
    finished = {each.name: each for each in spans.get_finished_spans()}
    parents = {name: each.parent.span_id if each.parent else None for name, each in finished.items()}
    ids = {name: each.context.span_id for name, each in finished.items()}
    process = ids["process orders"]
    assert parents["publish shop"] == parents["own"] == parents["publish (anonymous)"] == process
    assert parents["publish bills"] == ids["own"]
    for each, name in zip(its.published, ["publish shop", "publish bills", "publish (anonymous)"], strict=True):
        headers = sent(each)
        assert headers["traceparent"] == f"00-{TRACE}-{ids[name]:016x}-01"
        assert (headers["tracestate"], headers["baggage"]) == ("shop=1", "tenant=north")
        assert "x" not in headers
    assert sent(its.published[0])["mine"] == 1
    assert finished["publish shop"].kind is trace.SpanKind.PRODUCER


def test_a_failure_is_told_by_its_type_alone(spans: InMemorySpanExporter) -> None:
    def handler(its: rpcd.Message[Any]) -> None:
        raise ValueError(f"canary {its.body}")

    with pytest.raises(ValueError, match="canary"):
        layered(handler)(message())
    (span,) = spans.get_finished_spans()
    assert span.status.status_code is trace.StatusCode.ERROR
    assert (span.attributes or {})["error.type"] == "ValueError"
    assert span.events == ()
    assert "canary" not in span.to_json()


@pytest.mark.parametrize("error", [rpcd.RequestFailed("canary"), rpcd.Nack(), rpcd.Drop(), rpcd.HaltConsumer()])
def test_what_a_handler_orders_is_no_error(error: Exception, spans: InMemorySpanExporter) -> None:
    def handler(its: rpcd.Message[Any]) -> None:
        raise error

    with pytest.raises(type(error)):
        layered(handler)(message())
    (span,) = spans.get_finished_spans()
    assert span.status.status_code is trace.StatusCode.UNSET
    assert (span.attributes or {})["rpcd.outcome"] == type(error).__name__


def test_an_async_handler_has_its_span_while_others_run(spans: InMemorySpanExporter) -> None:
    async def handler(its: rpcd.Message[Any]) -> None:
        await asyncio.sleep(0)
        its.publish("", "next")
        if its.attempt == 2:
            raise rpcd.Retry

    async def both() -> list[rpcd.Message[Any]]:
        messages = [message(attempt=number) for number in (1, 2)]
        call = layered(handler)
        await asyncio.gather(*map(call, messages), return_exceptions=True)
        return messages

    messages = asyncio.run(both())
    runs = {
        (each.attributes or {})["rpcd.attempt"]: each for each in spans.get_finished_spans() if each.name == "process orders"
    }
    publications = [each for each in spans.get_finished_spans() if each.name == "publish next"]
    assert {each.parent.span_id for each in publications if each.parent} == {each.context.span_id for each in runs.values()}
    assert runs[2].status.status_code is trace.StatusCode.ERROR
    assert [len(each.published) for each in messages] == [1, 1]


def test_there_is_nothing_to_set() -> None:
    _, (problem,) = tracing.check({"exporter": "x"}, pathlib.Path())
    assert str(problem).startswith("exporter: unknown key")
