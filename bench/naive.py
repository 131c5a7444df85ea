"""The yardstick: pika's Twisted adapter as its documentation shows it, with one deferToThread and one ack a message.

Run as `python naive.py URL QUEUE PREFETCH`; it consumes until it is ended.
"""

import sys
import warnings

warnings.simplefilter("ignore", DeprecationWarning)

import pika  # noqa: E402
from pika.adapters.twisted_connection import TwistedProtocolConnection  # noqa: E402
from twisted.internet import defer, reactor  # noqa: E402
from twisted.internet.endpoints import clientFromString  # noqa: E402
from twisted.internet.protocol import Factory  # noqa: E402
from twisted.internet.threads import deferToThread  # noqa: E402


def handle(body):
    return None


@defer.inlineCallbacks
def consume(connection, queue, prefetch):
    channel = yield connection.channel()
    yield channel.basic_qos(prefetch_count=prefetch)
    deliveries, _ = yield channel.basic_consume(queue)

    @defer.inlineCallbacks
    def one(method, body):
        yield deferToThread(handle, body)
        channel.basic_ack(method.delivery_tag)

    print("ready", flush=True)
    while True:
        _, method, _, body = yield deliveries.get()
        one(method, body)


def main(url, queue, prefetch):
    parameters = pika.URLParameters(url)
    reactor.suggestThreadPoolSize(8)
    endpoint = clientFromString(reactor, f"tcp:{parameters.host}:{parameters.port}")
    connected = endpoint.connect(Factory.forProtocol(lambda: TwistedProtocolConnection(parameters)))
    connected.addCallback(lambda protocol: protocol.ready)
    connected.addCallback(consume, queue, prefetch)
    connected.addErrback(lambda failure: (print(failure), reactor.stop()))
    reactor.run()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
