"""One trace through several handlers, retries and daemons, as OpenTelemetry's SDK sees it."""

import json
import pathlib
import subprocess
import sys
from typing import Any

import pytest
from daemon import StartDaemon
from peer import Peer

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
CONTEXT = {"traceparent": f"00-{TRACE}-{PARENT}-01"}

HANDLERS = """
    import pathlib
    import rpcd
    from opentelemetry import trace
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult

    file = pathlib.Path(__file__).with_name("spans")

    class ToFile(SpanExporter):
        def export(self, spans):
            with file.open("a") as out:
                out.writelines(span.to_json(indent=None) + "\\n" for span in spans)
            return SpanExportResult.SUCCESS

    def start():
        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(ToFile()))
        trace.set_tracer_provider(provider)

    def first(message):
        if message.attempt == 1:
            raise rpcd.Retry
        message.publish_now("", "audit", {})
        message.publish("", "second", message.body)

    async def second(message):
        await message.publish_now("", "audit", {})
        raise rpcd.PermanentFailure("canary")
"""

CONFIG = """
    [service]
    on_start = "handlers_of_test:start"
    layers = ["tracing"]
    [queues.first]
    [queues.second]
    [queues.audit]
    [consumers.first]
    queue = "first"
    handler = "handlers_of_test:first"
    retry = { delays = [0.1] }
    [consumers.second]
    queue = "second"
    handler = "handlers_of_test:second"
"""


def spans(folder: pathlib.Path) -> list[dict[str, Any]]:
    file = folder / "spans"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def test_one_trace_goes_through_retries_handlers_and_what_they_publish(
    start: StartDaemon, peer: Peer, tmp_path: pathlib.Path
) -> None:
    daemon = start(CONFIG, HANDLERS)
    peer.publish("first", {"a": 1}, headers=CONTEXT)
    audited = list(peer.take("audit", 2))
    (archived,) = peer.take("second.archive", 1)
    peer.until(lambda: len(spans(tmp_path)) == 6, what=lambda: f"{spans(tmp_path)}")
    assert daemon.stop() == 0
    found = spans(tmp_path)
    assert {each["context"]["trace_id"] for each in found} == {f"0x{TRACE}"}
    runs = [each for each in found if each["name"] == "process first"]
    assert [each["attributes"]["rpcd.attempt"] for each in runs] == [1, 2]
    assert {each["parent_id"] for each in runs} == {f"0x{PARENT}"}  # side by side: a retry keeps the header that came
    assert [each["attributes"].get("error.type") for each in runs] == ["Retry", None]
    handed = next(each for each in found if each["name"] == "publish second")
    (last,) = (each for each in found if each["name"] == "process second")
    assert handed["parent_id"] == runs[1]["context"]["span_id"]
    assert last["parent_id"] == handed["context"]["span_id"]
    assert archived.headers["traceparent"].split("-")[2] == handed["context"]["span_id"][2:]
    audits = [each for each in found if each["name"] == "publish audit"]
    assert [each["parent_id"] for each in audits] == [runs[1]["context"]["span_id"], last["context"]["span_id"]]
    assert [each.headers["traceparent"] for each in audited] == [
        f"00-{TRACE}-{each['context']['span_id'][2:]}-01" for each in audits
    ]
    assert "canary" not in (tmp_path / "spans").read_text()


def test_a_consumer_that_is_not_traced_adds_no_headers(start: StartDaemon, peer: Peer) -> None:
    start(CONFIG.replace('layers = ["tracing"]', ""), HANDLERS)
    peer.publish("first", {"a": 1}, headers=CONTEXT)
    assert [each.headers for each in peer.take("audit", 2)] == [{}, {}]


@pytest.mark.parametrize(
    ("name", "package", "extra"),
    [
        ("tracing", "opentelemetry", "rpcd[tracing]"),
        ("inbox", "psycopg", "rpcd[postgresql]"),
        ("inbox", "redis", "rpcd[redis]"),
    ],
)
def test_a_layer_whose_library_is_missing_names_the_extra(
    tmp_path: pathlib.Path, name: str, package: str, extra: str
) -> None:
    scheme = "postgresql" if package == "psycopg" else "redis"
    (tmp_path / "shop.py").write_text("def handle(message): ...\n")
    config = (
        f'[service]\npath = ["."]\n[queues.a]\n[consumers.a]\nqueue = "a"\nhandler = "shop:handle"\nlayers = ["{name}"]\n'
    )
    config += f'[layers.inbox]\nurl = "{scheme}://localhost/"\n' if name == "inbox" else ""
    (tmp_path / "rpcd.toml").write_text(config)
    blocked = f"import sys; sys.modules[{package!r}] = None\nfrom rpcd.cli import main\nmain(['check', '-c', 'rpcd.toml'])"
    done = subprocess.run([sys.executable, "-c", blocked], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 78
    said = done.stdout + done.stderr
    assert f'pip install "{extra}"' in said.replace("\n", "")
    assert ("layers.inbox.url" if name == "inbox" else "consumers.a.layers[0]") in said
