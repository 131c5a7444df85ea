"""How close eight workers come to the ideal of 800 messages a second when each message sleeps for 10 ms.

`python bench/sleepers.py [--messages 8000] [--rounds 3]`, with a heartbeat of 2 s: handlers must not disturb it.
"""

import argparse
import os
import pathlib
import re
import subprocess
import sys
import tempfile

import pika
from ratio import HERE, MEMORY

from rpcd.ops.rabbitmq import private_node

WORKERS = 8
IDEAL = WORKERS / 0.01

CONFIG = """
[service]
path = [{here!r}]
[queues.work]
type = "{kind}"
[consumers.work]
queue = "work"
handler = "handlers:Counted"
workers = 8
config = {{ count = {count} }}
"""


def measure(node, config):
    program = str(pathlib.Path(sys.executable).parent / "twistd")
    command = [program, "-n", "--pidfile=", "rpcd", "--config", str(config)]
    environment = {**os.environ, "RABBITMQ_URL": node.url(), "RABBITMQ_HEARTBEAT": "2"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True)
    try:
        for line in process.stdout:
            if "WARNING" in line or "ERROR" in line:
                raise SystemExit(line)
            found = re.search(r"took ([\d.]+)", line)
            if found:
                return float(found[1])
        raise SystemExit("the daemon ended")
    finally:
        process.kill()
        process.wait()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--messages", type=int, default=8000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=MEMORY) as directory:
        config = pathlib.Path(directory, "bench.toml")
        node_directory = pathlib.Path(directory, "node")
        node_directory.mkdir()
        with private_node(node_directory) as node:
            for kind in ("classic", "quorum"):
                config.write_text(CONFIG.format(here=str(HERE), kind=kind, count=options.messages))
                node.ctl("delete_vhost", "/")
                node.add_virtual_hosts(["/"])
                for number in range(options.rounds):
                    prepare(node, kind, options.messages)
                    took = measure(node, config)
                    rate = (options.messages - 1) / took
                    print(f"{kind:8} round {number + 1}: {rate:6.1f} a second, {rate / IDEAL:.1%} of ideal", flush=True)


def prepare(node, kind, count):
    """Fill the queue before the daemon starts, with the arguments that it will declare."""
    arguments = {"x-queue-type": kind, "x-dead-letter-exchange": "", "x-dead-letter-routing-key": "work.archive"}
    if kind == "quorum":
        arguments |= {"x-delivery-limit": 20, "x-dead-letter-strategy": "at-least-once", "x-overflow": "reject-publish"}
    with pika.BlockingConnection(pika.URLParameters(node.url())) as connection:
        channel = connection.channel()
        channel.queue_declare("work", durable=True, arguments=arguments)
        channel.queue_purge("work")
        for _ in range(count):
            channel.basic_publish("", "work", b"{}", pika.BasicProperties(delivery_mode=2))


if __name__ == "__main__":
    main()
