"""Other programs that ask rpcd's services and publish, by each face of the client, against a real broker."""

import asyncio
import concurrent.futures
import gc
import os
import pathlib
import ssl
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import attrs
import pytest
from certificates import Authority
from daemon import Daemon, StartDaemon
from peer import Peer
from proxy import Proxy

import rpcd
from rpcd.core.errors import SettingsError
from rpcd.ops.rabbitmq import PrivateNode

SERVICE = """
    import logging, time
    import rpcd

    def serve(message):
        what = message.body
        if what == "fail":
            raise rpcd.RequestFailed("no such price", {"of": "tea"})
        if what == "remaining":
            return {"remaining": message.remaining}
        if isinstance(what, dict) and "sleep" in what:
            logging.info("asleep for %s", message.consumer)
            time.sleep(what["sleep"])
        return what
"""

CONFIG = """
    [queues.prices]
    [consumers.prices]
    queue = "prices"
    handler = "handlers_of_test:serve"
    workers = 8
"""

SECONDS = 60.0


@attrs.define
class Price:
    of: str
    cents: int


@pytest.fixture
def service(start: StartDaemon) -> Daemon:
    """A service that answers with what it was sent, fails, or sleeps."""
    return start(CONFIG, SERVICE)


Make = Callable[..., rpcd.Client]


@pytest.fixture
def client(url: str) -> Iterator[rpcd.Client]:
    """A client of the test's virtual host."""
    with rpcd.Client(url) as made:
        yield made


@pytest.fixture
def far(url: str, proxy: Proxy) -> Iterator[rpcd.Client]:
    """A client behind a proxy that can fail."""
    with rpcd.Client(proxy.url(url)) as made:
        yield made


def run(url: str, program: str, tmp_path: pathlib.Path, seconds: float = SECONDS) -> str:
    """Run a Python program of its own, which finds the broker in RABBITMQ_URL; return what it printed."""
    file = tmp_path / "program.py"
    file.write_text(textwrap.dedent(program))
    done = subprocess.run(
        [sys.executable, "-W", "error", "-W", "ignore::DeprecationWarning", str(file)],
        env={**os.environ, "RABBITMQ_URL": url},
        capture_output=True,
        text=True,
        timeout=seconds,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    return done.stdout


# The blocking face ----------------------------------------------------------------------------------


def test_a_call_returns_the_data_of_the_reply_as_the_type_that_is_asked_for(service: Daemon, client: rpcd.Client) -> None:
    price = {"of": "tea", "cents": 250}
    assert client.call("", "prices", price) == price
    assert client.call("", "prices", price, reply_type=Price) == Price("tea", 250)
    assert client.call("", "prices", 5) == {"result": 5}
    assert client.call("", "prices", 5, reply_type=int, headers={"tenant": "north"}) == 5


def test_what_goes_wrong_is_raised_each_by_its_name(service: Daemon, client: rpcd.Client, peer: Peer) -> None:
    with pytest.raises(rpcd.CallFailed, match="no such price") as failed:
        client.call("", "prices", "fail")
    assert failed.value.data == {"of": "tea"}
    with pytest.raises(rpcd.Unroutable, match="no queue takes exchange '', key 'nowhere'"):
        client.call("", "nowhere", {}, timeout=SECONDS)
    with pytest.raises(rpcd.PublishRefused, match="NOT_FOUND - no exchange 'nowhere'"):
        client.call("nowhere", "k", {}, timeout=SECONDS)
    with pytest.raises(rpcd.BadReply, match=r"^reply.data.cents: Expected `int`, got `str`$"):
        client.call("", "prices", {"of": "tea", "cents": "CANARY"}, reply_type=Price)
    peer.channel.queue_declare("nobody-home")
    with pytest.raises(rpcd.CallTimeout, match=r"^no reply within 0.2 s$"):
        client.call("", "nobody-home", {}, timeout=0.2)
    with pytest.raises(TypeError, match="a call has its own reply_to"):
        client.call("", "prices", {}, reply_to="mine")
    with pytest.raises(TypeError):
        client.call("", "prices", object())
    assert client.call("", "prices", {"still": "there"}) == {"still": "there"}


def test_a_request_tells_the_other_side_how_long_it_is_waited_for(service: Daemon, client: rpcd.Client) -> None:
    left = client.call("", "prices", "remaining", timeout=20)["remaining"]
    assert 0 < left < 22


def test_a_thousand_calls_are_outstanding_at_once_on_one_connection(
    service: Daemon, far: rpcd.Client, proxy: Proxy, peer: Peer
) -> None:
    futures = [far.submit("", "prices", {"n": number}, timeout=SECONDS) for number in range(1000)]
    assert [future.result(SECONDS)["n"] for future in futures] == list(range(1000))
    assert len(proxy.links) == 1


def test_many_threads_share_a_client(service: Daemon, client: rpcd.Client) -> None:
    with concurrent.futures.ThreadPoolExecutor(50) as pool:
        found = list(pool.map(lambda number: client.call("", "prices", {"n": number})["n"], range(500)))
    assert found == list(range(500))


def test_a_cancelled_call_is_forgotten_and_whoever_waits_hears_of_it(
    service: Daemon, client: rpcd.Client, peer: Peer
) -> None:
    peer.channel.queue_declare("nobody-home")
    one, other = (client.submit("", "nobody-home", {}) for _ in range(2))
    assert one.cancel()
    done, _rest = concurrent.futures.wait([one, other], SECONDS, concurrent.futures.FIRST_COMPLETED)
    assert done == {one}
    late = client.submit("", "prices", {"sleep": 0.5})
    service.wait_for("asleep")
    late.cancel()
    assert client.call("", "prices", {"n": 1}) == {"n": 1}


def test_a_callback_must_not_wait_for_the_thread_that_it_is_on(service: Daemon, client: rpcd.Client) -> None:
    heard: concurrent.futures.Future[str] = concurrent.futures.Future()

    def callback(_future: object) -> None:
        try:
            client.call("", "prices", {})
        except RuntimeError as error:
            heard.set_result(str(error))

    client.submit("", "prices", {}).add_done_callback(callback)
    assert "can't be called on the client's own thread" in heard.result(SECONDS)


# Publishing -----------------------------------------------------------------------------------------


def test_a_publication_is_confirmed_or_says_why_not(client: rpcd.Client, peer: Peer) -> None:
    peer.channel.queue_declare("notes")
    client.publish("", "notes", {"n": 1}, headers={"tenant": "north"})
    note = peer.get("notes")
    assert (note.json, note.headers, note.properties.content_type) == ({"n": 1}, {"tenant": "north"}, "application/json")
    client.publish("", "nowhere", {})  # nobody asked that a queue takes it
    with pytest.raises(rpcd.Unroutable):
        client.publish("", "nowhere", {}, mandatory=True)
    with pytest.raises(rpcd.PublishRefused, match="no exchange 'nowhere'"):
        client.publish("nowhere", "k", {})
    futures = [client.submit_publish("", "notes", number) for number in range(100)]
    assert [future.result(SECONDS) for future in futures] == [None] * 100
    assert [note.json for note in peer.take("notes", 100)] == list(range(100))


# Connections ----------------------------------------------------------------------------------------


def test_a_cut_ends_the_calls_that_were_sent_and_later_ones_wait_for_the_next_connection(
    service: Daemon, far: rpcd.Client, proxy: Proxy
) -> None:
    sent = [far.submit("", "prices", {"sleep": 3}) for _ in range(3)]
    service.wait_for("asleep", 3)
    proxy.refuse()
    assert proxy.cut() == 1
    for future in sent:
        with pytest.raises(
            rpcd.CallInterrupted, match="the request may or may not have been handled, and is not sent again"
        ):
            future.result(SECONDS)
    later = far.submit("", "prices", {"n": 1}, timeout=SECONDS)
    published = far.submit_publish("", "prices", {"n": 2}, timeout=SECONDS)
    with pytest.raises(rpcd.CallTimeout, match=r"the request could not be sent within 0.3 s: .+"):
        far.call("", "prices", {}, timeout=0.3)
    with pytest.raises(rpcd.PublishTimeout, match=r"not confirmed within 0.3 s: .+"):
        far.publish("", "prices", {}, timeout=0.3)
    proxy.accept()
    assert later.result(SECONDS) == {"n": 1}
    assert published.result(SECONDS) is None
    assert len(service.wait_for("asleep")) == 3


def test_a_publication_survives_the_cut_of_its_connection(far: rpcd.Client, proxy: Proxy, peer: Peer) -> None:
    peer.channel.queue_declare("notes")
    far.publish("", "notes", 0)
    proxy.pause("up")
    futures = [far.submit_publish("", "notes", number, timeout=SECONDS) for number in range(1, 20)]
    proxy.cut()
    proxy.resume()
    concurrent.futures.wait(futures, SECONDS)
    assert [future.exception() for future in futures] == [None] * 19
    assert {note.json for note in peer.take("notes", 20)} == set(range(20))


def test_the_first_call_waits_for_a_broker_that_is_not_there_yet(service: Daemon, url: str, proxy: Proxy) -> None:
    proxy.refuse()
    with rpcd.Client(proxy.url(url)) as client:
        future = client.submit("", "prices", {"n": 1}, timeout=SECONDS)
        with pytest.raises(rpcd.CallTimeout, match=r"could not be sent within 1.5 s: 127.0.0.1:\d+: .*refused"):
            client.call("", "prices", {}, timeout=1.5)
        proxy.accept()
        assert future.result(SECONDS) == {"n": 1}


def test_a_client_goes_on_when_its_broker_was_restarted(own_node: PrivateNode, start: StartDaemon) -> None:
    own_node.add_virtual_hosts(["again"])
    url = own_node.url("again")
    daemon = start(CONFIG.replace("[queues.prices]", '[queues.prices]\n    type = "classic"'), SERVICE, at=url)
    with rpcd.Client(url) as client:
        assert client.call("", "prices", {"n": 1}) == {"n": 1}
        waiting = client.submit("", "prices", {"sleep": 600})
        daemon.wait_for("asleep")
        own_node.stop()
        with pytest.raises(rpcd.CallInterrupted):
            waiting.result(SECONDS)
        own_node.start()
        assert client.call("", "prices", {"n": 2}, timeout=120) == {"n": 2}


def test_a_wrong_password_is_told_to_every_call_and_not_waited_for(node: PrivateNode, virtual_host: str) -> None:
    with rpcd.Client(node.url(virtual_host, "nobody", "CANARY")) as client:
        waiting = [client.submit("", "prices", {}, timeout=SECONDS) for _ in range(2)]
        published = client.submit_publish("", "prices", {}, timeout=SECONDS)
        for future in (*waiting, published):
            with pytest.raises(rpcd.RpcdError, match="correct user 'nobody' or the password") as refused:
                future.result(SECONDS)
            assert "CANARY" not in str(refused.value)
        with pytest.raises(rpcd.RpcdError, match="the broker refused the login"):
            client.call("", "prices", {}, timeout=SECONDS)
    assert "CANARY" not in repr(client)


def test_a_refused_login_keeps_nothing_of_the_calls_that_it_fails(node: PrivateNode, virtual_host: str) -> None:
    with rpcd.Client(node.url(virtual_host, "nobody", "wrong")) as client:
        depths = set()
        for _ in range(20):
            with pytest.raises(rpcd.RpcdError) as refused:
                client.call("", "prices", {}, timeout=SECONDS)
            depths.add(len(refused.traceback))
    assert len(depths) <= 2  # the first has waited, all others fail at once


def test_an_alarm_holds_calls_until_their_time_is_over(sick_node: PrivateNode, sick_url: str) -> None:
    peer = Peer(sick_url)
    peer.channel.queue_declare("nobody-home")
    with rpcd.Client(sick_url) as client:
        client.publish("", "nobody-home", {})
        sick_node.ctl("eval", "rabbit_alarm:set_alarm({{resource_limit,memory,node()},[]}).")
        try:
            with pytest.raises(rpcd.PublishTimeout):  # the broker tells of an alarm only those that publish
                client.publish("", "nobody-home", {}, timeout=1)
            with pytest.raises(rpcd.CallTimeout, match=r"could not be sent within 0.5 s: the broker blocks publishing: "):
                client.call("", "nobody-home", {}, timeout=0.5)
            with pytest.raises(rpcd.PublishTimeout, match=r"not confirmed within 0.5 s: the broker blocks publishing: "):
                client.publish("", "nobody-home", {}, timeout=0.5)
        finally:
            sick_node.ctl("eval", "rabbit_alarm:clear_alarm({resource_limit,memory,node()}).")
        client.publish("", "nobody-home", {"after": 1}, timeout=SECONDS)
    peer.close()


def test_it_speaks_tls(service: Daemon, node: PrivateNode, url: str, tmp_path: pathlib.Path) -> None:
    authority = Authority(tmp_path, "ours")
    certificate, key = authority.issue("localhost")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, key)
    proxy = Proxy(node.port, context)
    try:
        with rpcd.Client(proxy.url(url), ca=str(authority.file)) as client:
            assert client.call("", "prices", {"n": 1}) == {"n": 1}
            client.publish("", "prices", {"n": 2})
        with (
            rpcd.Client(proxy.url(url)) as client,
            pytest.raises(rpcd.CallTimeout, match="signed by 'ours', who is not trusted"),
        ):
            client.call("", "prices", {}, timeout=5)
    finally:
        proxy.close()


def test_the_broker_is_named_by_url_environment_or_config(
    service: Daemon, url: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "shop.toml"
    config.write_text(f'[broker]\nurl = "{url}"\n[virtual_hosts.other]\nbroker = {{ username = "nobody" }}\n')
    with rpcd.Client.from_config(str(config)) as client:
        assert client.call("", "prices", {"n": 1}) == {"n": 1}
    overlaid = rpcd.AsyncClient.from_config(str(config), virtual_host="other")
    assert repr(overlaid).endswith("/other>")
    config.write_text('[broker]\nurl = "http://example.com"\nheartbeat = "often"\n')
    with pytest.raises(SettingsError, match=r"shop.toml: broker\.heartbeat"):
        rpcd.Client.from_config(str(config))
    monkeypatch.setenv("RABBITMQ_URL", url)
    with rpcd.Client() as client:
        assert client.call("", "prices", {"n": 2}) == {"n": 2}


@pytest.mark.parametrize(
    ("named", "text"),
    [
        ({"url": "http://example.com"}, "the broker's URL, or RABBITMQ_HEARTBEAT: expected amqp://"),
        ({"certificate": "/nowhere"}, "certificate and key go together"),
        ({"ca": "/nowhere"}, "ca: /nowhere can't be read: No such file or directory"),
    ],
)
def test_what_can_not_be_used_is_refused_at_once(named: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        rpcd.Client(**named)


# Beginning and end ----------------------------------------------------------------------------------


def test_closing_ends_what_is_outstanding_and_may_be_said_twice(service: Daemon, url: str, proxy: Proxy) -> None:
    client = rpcd.Client(proxy.url(url))
    assert proxy.links == []  # not before the first call
    waiting = client.submit("", "prices", {"sleep": 5})
    service.wait_for("asleep")
    client.close()
    with pytest.raises(rpcd.CallInterrupted, match=r"^the client was closed; the request may or may not"):
        waiting.result(0)
    assert proxy.named() == []
    client.close()
    with pytest.raises(RuntimeError, match="the client is closed"):
        client.call("", "prices", {})
    rpcd.Client(url).close()  # one that was never used


def engine_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "rpcd client"]


def until(condition: Callable[[], object], what: str) -> None:
    limit = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < limit, what
        time.sleep(0.01)


def test_a_client_that_nobody_has_any_more_ends_by_itself(service: Daemon, url: str) -> None:
    before = len(engine_threads())
    client = rpcd.Client(url)
    assert client.call("", "prices", {"n": 1}) == {"n": 1}
    assert len(engine_threads()) == before + 1
    del client
    gc.collect()
    until(lambda: len(engine_threads()) == before, "the thread does not end")


def test_clients_leave_no_open_files_behind(service: Daemon, url: str) -> None:
    def once() -> int:
        with rpcd.Client(url) as client:
            client.call("", "prices", {})
        gc.collect()
        return len(list(pathlib.Path("/proc/self/fd").iterdir()))

    once()
    counts = [once() for _ in range(5)]
    assert counts[-1] <= counts[0]


def test_a_program_that_forgets_to_close_ends_all_the_same_and_says_goodbye(
    service: Daemon, url: str, proxy: Proxy, tmp_path: pathlib.Path
) -> None:
    program = """
        import rpcd
        client = rpcd.Client()
        print(client.call("", "prices", {"n": 1}))
        forgotten = client.submit("", "prices", {"sleep": 2})
        """
    assert run(proxy.url(url), program, tmp_path) == "{'n': 1}\n"
    until(lambda: not proxy.named(), "the connection stays open")


def test_a_forked_child_gets_a_connection_of_its_own(
    service: Daemon, url: str, proxy: Proxy, tmp_path: pathlib.Path
) -> None:
    program = """
        import os, sys
        import rpcd
        client = rpcd.Client()
        assert client.call("", "prices", {"n": 1}) == {"n": 1}
        child = os.fork()
        if not child:
            assert client.call("", "prices", {"n": 2}) == {"n": 2}
            client.close()
            print("child", flush=True)
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        assert client.call("", "prices", {"n": 3}) == {"n": 3}
        print("parent")
        """
    assert run(proxy.url(url), program, tmp_path) == "child\nparent\n"
    assert len(proxy.links) == 2


def test_a_child_does_not_keep_its_parents_connection(
    service: Daemon, url: str, proxy: Proxy, tmp_path: pathlib.Path
) -> None:
    program = """
        import os, sys
        import rpcd
        client = rpcd.Client()
        assert client.call("", "prices", {"n": 1}) == {"n": 1}
        there, ready = os.pipe()
        over, end = os.pipe()
        child = os.fork()
        if not child:
            os.close(end)
            os.write(ready, b"x")
            os.read(over, 1)  # until the parent closes its end
            os._exit(0)
        os.read(there, 1)

        def sockets(process):
            place = f"/proc/{process}/fd"
            files = [os.path.join(place, name) for name in os.listdir(place)]
            return {found for file in files if os.path.islink(file) and (found := os.readlink(file)).startswith("socket:")}

        print("shared sockets:", len(sockets(child) & sockets(os.getpid()) - sockets(os.getppid())))
        os.close(end)
        os.waitpid(child, 0)
        """
    assert run(proxy.url(url), program, tmp_path) == "shared sockets: 0\n"


# asyncio --------------------------------------------------------------------------------------------


def test_a_thousand_tasks_ask_at_once(service: Daemon, url: str, proxy: Proxy) -> None:
    async def main() -> list[Any]:
        async with rpcd.AsyncClient(proxy.url(url)) as client:
            calls = (client.call("", "prices", number, reply_type=int, timeout=SECONDS) for number in range(1000))
            found = await asyncio.gather(*calls)
            await client.publish("", "prices", {})
            return found

    assert asyncio.run(main()) == list(range(1000))
    assert len(proxy.links) == 1


def test_errors_reach_the_task_that_asked(service: Daemon, url: str) -> None:
    async def main() -> None:
        async with rpcd.AsyncClient(url) as client:
            with pytest.raises(rpcd.CallFailed, match="no such price"):
                await client.call("", "prices", "fail")
            with pytest.raises(rpcd.Unroutable):
                await client.call("", "nowhere", {}, timeout=SECONDS)
            with pytest.raises(rpcd.BadReply):
                await client.call("", "prices", {"of": 1}, reply_type=Price)
            with pytest.raises(rpcd.Unroutable):
                await client.publish("", "nowhere", {}, mandatory=True)

    asyncio.run(main())


def test_a_cancelled_task_waits_no_longer_and_others_go_on(service: Daemon, url: str) -> None:
    async def main() -> None:
        async with rpcd.AsyncClient(url) as client:
            task = asyncio.create_task(client.call("", "prices", {"sleep": 1}))
            await asyncio.to_thread(service.wait_for, "asleep")
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            with pytest.raises((asyncio.TimeoutError, TimeoutError)):
                await asyncio.wait_for(client.call("", "prices", {"sleep": 1}), 0.1)
            assert await client.call("", "prices", {"n": 1}) == {"n": 1}

    asyncio.run(main())


def test_loops_in_several_threads_share_a_client(service: Daemon, url: str) -> None:
    client = rpcd.AsyncClient(url)

    async def ask(number: int) -> int:
        async def one() -> int:
            loop = asyncio.get_running_loop()
            found = await client.call("", "prices", number, reply_type=int)
            assert asyncio.get_running_loop() is loop
            return int(found)

        return sum(await asyncio.gather(*(one() for _ in range(20))))

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda number: asyncio.run(ask(number)), range(8))) == [20 * number for number in range(8)]
    asyncio.run(client.close())
    asyncio.run(client.close())


# Twisted --------------------------------------------------------------------------------------------


def test_a_twisted_program_gets_deferreds_on_its_own_reactor(service: Daemon, url: str, tmp_path: pathlib.Path) -> None:
    program = """
        import threading
        from twisted.internet import reactor, task
        from twisted.internet.defer import CancelledError, Deferred, gatherResults
        from twisted.python import threadable
        import rpcd

        async def main(reactor):
            client = rpcd.TwistedClient()
            home = threading.current_thread()
            found = await client.call("", "prices", 5, reply_type=int)
            print(found, threading.current_thread() is home, threadable.isInIOThread())
            print(sum(await gatherResults([client.call("", "prices", n, reply_type=int) for n in range(100)])))
            try:
                await client.call("", "nowhere", {}, timeout=60)
            except rpcd.Unroutable as error:
                print(error)
            slow = client.call("", "prices", {"sleep": 1})
            slow.addErrback(lambda failure: print("cancelled:", failure.check(CancelledError) is not None))
            reactor.callLater(0.1, slow.cancel)
            await slow
            await client.publish("", "prices", {})
            await client.close()
            await client.close()
            print("closed", threading.current_thread() is home)

        task.react(lambda reactor: Deferred.fromCoroutine(main(reactor)))
        """
    assert run(url, program, tmp_path).splitlines() == [
        "5 True True",
        "4950",
        "no queue takes exchange '', key 'nowhere': NO_ROUTE",
        "cancelled: True",
        "closed True",
    ]


def test_a_handler_may_use_a_client_of_another_broker(start: StartDaemon, peer: Peer, url: str) -> None:
    handlers = f"""
        import rpcd
        from twisted.python import threadable

        client = rpcd.Client({url!r})

        def front(message):
            value = client.call("", "prices", message.body)
            message.publish_now("", "notes", value)
            return value

        def serve(message):
            return message.body
        """
    config = (
        CONFIG
        + """
    [queues.notes]
    [queues.front]
    [consumers.front]
    queue = "front"
    handler = "handlers_of_test:front"
    """
    )
    daemon = start(config, handlers)
    assert peer.call("front", {"n": 1}).json["data"] == {"n": 1}
    assert peer.get("notes").json == {"n": 1}
    assert daemon.stop() == 0


def test_asking_needs_no_permission_but_to_write_to_the_exchange(
    service: Daemon, node: PrivateNode, virtual_host: str
) -> None:
    user = f"asks-{virtual_host}"
    node.ctl("add_user", user, "pw")
    node.ctl("set_permissions", "--vhost", virtual_host, user, "^$", r"^amq\.default$", "^$")
    with rpcd.Client(node.url(virtual_host, user, "pw")) as client:
        assert client.call("", "prices", {"n": 1}) == {"n": 1}
        client.publish("", "prices", {"n": 2})
        with pytest.raises(rpcd.PublishRefused, match="ACCESS_REFUSED"):
            client.call("amq.topic", "k", {})
        assert client.call("", "prices", {"n": 3}) == {"n": 3}
