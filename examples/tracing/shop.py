"""Two handlers in one trace: what the first publishes, the second handles."""

from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SimpleSpanProcessor


def start():
    """Say where spans go: here to the log; in earnest by BatchSpanProcessor and an OTLPSpanExporter."""
    exporter = ConsoleSpanExporter(formatter=lambda span: f"{span.name} trace={span.context.trace_id:032x}\n")
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(provider)


def order(message):
    with trace.get_tracer("shop").start_as_current_span("look into the stock"):
        in_stock = True
    message.publish("", "packing", message.body)
    return {"in_stock": in_stock}


def pack(message):
    pass
