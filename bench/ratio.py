"""CPU a message: rpcd beside the naive yardstick, interleaved in one run on one private broker.

`python bench/ratio.py [--messages 30000] [--rounds 3]`. CPU is user + system time of the consumer's process, taken from
/proc between "ready" and "queue empty"; the absolute figures hold on this machine only, the ratio is what counts.
"""

import argparse
import json
import os
import pathlib
import signal
import statistics
import subprocess
import sys
import tempfile
import time

import pika

from rpcd.ops.rabbitmq import private_node

HERE = pathlib.Path(__file__).parent
TICK = os.sysconf("SC_CLK_TCK")
MEMORY = "/dev/shm" if pathlib.Path("/dev/shm").is_dir() else None
"""Where the broker keeps its data, if it can: a slow disk would be measured along with the daemon."""

CONFIG = """
[service]
path = [{here!r}]
[queues.work]
type = "classic"
[consumers.work]
queue = "work"
handler = "handlers:noop"
workers = 8
prefetch = 100
"""


def cpu(pid):
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICK


def fill(url, queue, count):
    body = json.dumps({"n": 0, "text": "x" * 230}).encode()
    connection = pika.BlockingConnection(pika.URLParameters(url))
    channel = connection.channel()
    channel.queue_purge(queue)
    for _ in range(count):
        channel.basic_publish("", queue, body, pika.BasicProperties(content_type="application/json", delivery_mode=2))
    connection.close()


def left(node):
    for line in node.ctl("list_queues", "name", "messages").splitlines():
        name, _, count = line.partition("\t")
        if name == "work":
            return int(count)
    return -1


def measure(node, command, env, ready, count):
    process = subprocess.Popen(
        command, env={**os.environ, **env}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
    )
    try:
        for line in process.stdout:
            if ready in line:
                break
        else:
            raise SystemExit(f"{command} ended before it was ready")
        process.send_signal(signal.SIGSTOP)  # the queue is filled first, so that the consumer is the one that is waited for
        fill(node.url(), "work", count)
        before, began = cpu(process.pid), time.monotonic()
        process.send_signal(signal.SIGCONT)
        while left(node) > 0:
            pass
        took = time.monotonic() - began
        return (cpu(process.pid) - before) / count * 1e6, count / took
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--messages", type=int, default=30000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=MEMORY) as directory:
        config = pathlib.Path(directory, "bench.toml")
        config.write_text(CONFIG.format(here=str(HERE)))
        node_directory = pathlib.Path(directory, "node")
        node_directory.mkdir()
        with private_node(node_directory) as node:
            twistd = [
                str(pathlib.Path(sys.executable).parent / "twistd"),
                "-n",
                "--pidfile=",
                "rpcd",
                "--config",
                str(config),
            ]
            naive = [sys.executable, str(HERE / "naive.py"), node.url(), "work", "100"]
            results = {"rpcd": [], "naive": []}
            for number in range(options.rounds):
                for name, command, ready in (("rpcd", twistd, b"ready, consuming"), ("naive", naive, b"ready")):
                    result = measure(node, command, {"RABBITMQ_URL": node.url()}, ready, options.messages)
                    results[name].append(result)
                    took, rate = result
                    print(f"round {number + 1} {name:6} {took:7.1f} us a message, {rate:7.0f} a second", flush=True)
    medians = {name: statistics.median(each[0] for each in rows) for name, rows in results.items()}
    ratio = medians["rpcd"] / medians["naive"]
    print(f"median: rpcd {medians['rpcd']:.1f} us, naive {medians['naive']:.1f} us, ratio {ratio:.2f}")


if __name__ == "__main__":
    main()
