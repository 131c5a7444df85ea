"""How close 1,000 async handlers come to the ideal of 10,000 messages a second when each message sleeps for 0.1 s.

`python bench/sleepers_async.py [--workers 1000] [--sleep 0.1] [--messages 100000] [--rounds 3]`. The queue is filled before
the daemon starts. The rate is that of all messages from the first start of a handler to the last end of one, so the first
and the last wave count too; `--messages` of one wave (as many as there are workers) shows how far apart a wave is drawn.
"""

import argparse
import os
import pathlib
import re
import statistics
import subprocess
import sys
import tempfile

from ratio import HERE, MEMORY
from sleepers import prepare

from rpcd.ops.rabbitmq import private_node

CONFIG = """
[service]
path = [{here!r}]
[queues.work]
type = "{kind}"
[consumers.work]
queue = "work"
handler = "handlers:Sleeping"
workers = {workers}
config = {{ count = {count}, sleep = {sleep} }}
"""


def measure(node, config):
    """Return seconds from the first start to the last end, and CPU seconds of the process from its own start on."""
    program = str(pathlib.Path(sys.executable).parent / "twistd")
    command = [program, "-n", "--pidfile=", "rpcd", "--config", str(config)]
    environment = {**os.environ, "RABBITMQ_URL": node.url(), "RABBITMQ_HEARTBEAT": "2"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True)
    try:
        for line in process.stdout:
            if "WARNING" in line or "ERROR" in line:
                raise SystemExit(line)
            found = re.search(r"took ([\d.]+), CPU ([\d.]+)", line)
            if found:
                return float(found[1]), float(found[2])
        raise SystemExit("the daemon ended")
    finally:
        process.kill()
        process.wait()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--workers", type=int, default=1000)
    parser.add_argument("--sleep", type=float, default=0.1)
    parser.add_argument("--messages", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--kinds", nargs="+", default=["classic", "quorum"])
    options = parser.parse_args()
    ideal = options.workers / options.sleep
    with tempfile.TemporaryDirectory(dir=MEMORY) as directory:
        config = pathlib.Path(directory, "bench.toml")
        node_directory = pathlib.Path(directory, "node")
        node_directory.mkdir()
        with private_node(node_directory) as node:
            for kind in options.kinds:
                values = {"here": str(HERE), "kind": kind, "count": options.messages, **vars(options)}
                config.write_text(CONFIG.format(**values))
                node.ctl("delete_vhost", "/")
                node.add_virtual_hosts(["/"])
                shares = []
                for number in range(options.rounds):
                    prepare(node, kind, options.messages)
                    took, cpu = measure(node, config)
                    rate = options.messages / took
                    shares.append(rate / ideal)
                    print(
                        f"{kind:8} round {number + 1}: {took:.3f} s, {rate:8.1f} a second, {rate / ideal:.1%} of ideal, "
                        f"{cpu / options.messages * 1e6:.1f} us CPU a message",
                        flush=True,
                    )
                print(f"{kind:8} median {statistics.median(shares):.1%}, from {min(shares):.1%} to {max(shares):.1%}")


if __name__ == "__main__":
    main()
