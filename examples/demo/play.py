"""Plays the demonstration: a broker, the real daemon, and five scenes. `script/demo` runs it; see there."""

import argparse
import contextlib
import os
import pathlib
import queue
import shlex
import signal
import subprocess
import sys
import tempfile
import threading

import pika

from rpcd.ops.rabbitmq import NodeError, PrivateNode

HERE = pathlib.Path(__file__).resolve().parent
BIN = pathlib.Path(sys.executable).parent
CONFIG = HERE / "rpcd.toml"
SECONDS = 30
QUEUES = ("orders", "warehouse", "mailer", "payments")
ORDER = '{"country": "Norway", "items": ["tea", "cup"]}'


class Daemon:
    """The daemon under demonstration; its log can be waited for, line by line."""

    def __init__(self, environment):
        self.lines = queue.Queue()
        self.process = subprocess.Popen(
            [str(BIN / "twistd"), "-n", "--pidfile=", "rpcd", "--config", str(CONFIG)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self):
        for line in self.process.stdout:
            self.lines.put(line.rstrip())
        self.lines.put(None)

    def show(self, *wanted):
        """Wait until the log has a line for each of the words, in any order, and show those lines."""
        wanted = list(wanted)
        while wanted:
            try:
                line = self.lines.get(timeout=SECONDS)
            except queue.Empty:
                raise SystemExit(f"the daemon did not say {wanted} within {SECONDS} s") from None
            if line is None:
                raise SystemExit("the daemon ended before its time")
            found = next((word for word in wanted if word in line), None)
            if found is not None:
                wanted.remove(found)
                print(f"    log: {line}")

    def stop(self):
        """Let it drain and end."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()


def scene(number, title):
    print(f"\n{number}. {title}")


def rpcd(environment, *arguments, expected=0):
    """Run the `rpcd` command as a person would, and show it and what it prints."""
    print(f"    $ rpcd {shlex.join(arguments)}")
    done = subprocess.run(
        [str(BIN / "rpcd"), *arguments], env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    for line in (done.stdout + done.stderr).splitlines():
        print(f"    {line}")
    if done.returncode != expected:
        raise SystemExit(f"rpcd {arguments[0]} ended with {done.returncode}, expected was {expected}")


def play(daemon, environment, url):
    scene(1, "A request and its reply")
    rpcd(environment, "call", "rpcd-demo.orders", ORDER)

    scene(2, "The event that this order has caused, handled by two subscribers")
    daemon.show("warehouse: packing tea, cup for order 1", "mailer: thank you for order 1")

    scene(3, "A handler that fails twice and succeeds on its third attempt")
    rpcd(environment, "publish", "", "rpcd-demo.payments", '{"amount": 16.5}')
    daemon.show("attempt=1 verdict=retry", "attempt=2 verdict=retry", "payment: charged 16.5 on attempt 3")

    scene(4, "A request that is refused with its reason (exit code 1)")
    rpcd(environment, "call", "rpcd-demo.orders", '{"country": "the Moon", "items": ["tea"]}', expected=1)

    scene(5, "A message that nobody can read ends in the archive, with the reason")
    with contextlib.closing(pika.BlockingConnection(pika.URLParameters(url))) as connection:
        channel = connection.channel()
        channel.confirm_delivery()
        channel.basic_publish("", "rpcd-demo.orders", b"{this is no JSON", mandatory=True)
        daemon.show("verdict=archive")
        for method, properties, body in channel.consume("rpcd-demo.orders.archive", inactivity_timeout=SECONDS):
            if method is None:
                raise SystemExit("nothing came into the archive")
            print(f"    rpcd-demo.orders.archive holds {body!r}")
            for name in ("x-rpcd-reason", "x-rpcd-handler", "x-rpcd-attempt", "x-rpcd-host", "x-rpcd-time"):
                print(f"        {name}: {properties.headers[name]}")
            channel.basic_nack(method.delivery_tag)
            break
        channel.cancel()


def clean(url):
    """Remove from somebody's broker what the demonstration has made there."""
    with contextlib.closing(pika.BlockingConnection(pika.URLParameters(url))) as connection:
        channel = connection.channel()
        steps = ("", ".archive", *(f".retry.{step}" for step in (200, 300, 1000, 60000, 1800000)))
        for name in QUEUES:
            for step in steps:
                channel.queue_delete(f"rpcd-demo.{name}{step}")
        channel.exchange_delete("rpcd-demo")


def keep(daemon, url):
    print(f"""
Everything stays up until you press Ctrl-C. In another terminal:

    export RABBITMQ_URL='{url}'
    {BIN}/rpcd call rpcd-demo.orders '{ORDER}'
    {BIN}/rpcd publish rpcd-demo order.placed '{{"number": 99, "items": ["cup"]}}'
    kill -TERM {daemon.process.pid}      # the daemon drains and ends with 0

The handlers are in {HERE / "shop.py"}, the config is {CONFIG}. The daemon's log follows.
""")
    while (line := daemon.lines.get()) is not None:
        print(line, flush=True)


def perform(url, options):
    environment = {**os.environ, "RABBITMQ_URL": url, "DEMO_DIRECTORY": str(HERE)}
    print("Starting the daemon: twistd -n rpcd --config", CONFIG)
    daemon = Daemon(environment)
    try:
        daemon.show("ready, consuming: ")
        play(daemon, environment, url)
        if options.keep:
            keep(daemon, url)
    finally:
        code = daemon.stop()
    if code:
        raise SystemExit(f"the daemon ended with {code}")
    print("\nThe daemon has drained and ended with 0. Next: README.md, or script/demo --keep to try things yourself.")


def main():
    parser = argparse.ArgumentParser(prog="script/demo", description="Show what rpcd does, on a broker of its own.")
    parser.add_argument("--keep", action="store_true", help="leave everything up afterwards, and say what to try")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    url = os.environ.get("RABBITMQ_URL")
    if url:
        try:
            perform(url, options)
        finally:
            clean(url)
        return
    with tempfile.TemporaryDirectory(prefix="rpcd-demo-") as directory:
        print("Starting a private RabbitMQ on free loopback ports (it takes some seconds) ...", flush=True)
        node = PrivateNode(pathlib.Path(directory))
        try:
            node.start()
            perform(node.url(), options)
        finally:
            node.stop()


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        print("\nInterrupted; everything is stopped.")
    except NodeError as error:
        raise SystemExit(str(error)) from None
