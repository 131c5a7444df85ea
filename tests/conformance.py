"""What rpcd promises of one message, written once: it holds in the harness for tests, and in the daemon with a real broker.

Each promise is a function of a `World`, in which CONFIG runs. `tests/core/test_conformance.py` and
`tests/broker/test_conformance.py` say what a world is made of.
"""

import base64
import itertools
import pathlib
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

SUPPORT = pathlib.Path(__file__).parent / "support"


class Got(Protocol):
    """A message as a plain client has it."""

    @property
    def body(self) -> bytes: ...

    @property
    def json(self) -> Any: ...

    @property
    def headers(self) -> Mapping[str, Any]: ...

    @property
    def properties(self) -> Any:
        """AMQP's properties, as attributes."""


class World(Protocol):
    """Where CONFIG runs, as a plain client sees it. Whatever is waited for comes, or the promise is broken.

    There is a queue `elsewhere` that the config does not know.
    """

    def send(self, key: str, body: Any, exchange: str, properties: Mapping[str, Any], *, asks: bool) -> None:
        """Send a message; with `asks` its reply is wanted. Bytes are sent as they are, all else as JSON."""

    def reply(self, number: str) -> Got:
        """Wait for the reply with a correlation id."""

    def has_reply(self, number: str) -> bool:
        """Tell whether there is a reply with a correlation id by now."""

    def get(self, queue: str, number: str) -> Got:
        """Wait for the message with a message id or correlation id in a queue, and take it out."""

    def holds(self, queue: str, number: str) -> bool:
        """Tell whether a message with this id waits in a queue by now."""

    def runs(self, number: str, count: int) -> list[dict[str, Any]]:
        """Wait until handlers have told of so many runs of a message; return all by now."""

    def encrypt(self, value: str) -> str:
        """Return a token that this world's handlers can open."""

    def lose_the_ack(self, number: str, key: str) -> None:
        """Have the broker deliver a request of the consumer `held` again, because the connection ended before its ack."""


CONSUMER = """
[queues.{name}]
type = "{type}"
delivery_limit = 3
[consumers.{name}]
queue = "{name}"
handler = "{handler}"
on_error = "{on_error}"
max_reply = 2000
max_body = 4000
{more}
retry = {{ delays = [0.1, 0.4], attempts = 3 }}
"""

POLICIES = ("auto", "reply", "retry", "archive", "requeue", "drop")


def consumer(name: str, handler: str = "do", more: str = "", *, on_error: str = "auto", kind: str = "classic") -> str:
    path = handler if ":" in handler else f"promised:{handler}"
    return CONSUMER.format(name=name, handler=path, on_error=on_error, more=more, type=kind)


KEY = base64.urlsafe_b64encode(bytes(range(32))).decode()
"""The Fernet key of the config."""

CONFIG = "".join(
    (
        "# publishes: shop, loud, sorted, nowhere, publish_subscribe.cows\n",
        f"[service]\npath = [{str(SUPPORT)!r}]\nmodules = ['promised_patterns']\n",
        f"[broker]\nfernet_keys = ['{KEY}']\n",
        '[exchanges.shop]\n[exchanges.loud]\ntype = "fanout"\n[exchanges.sorted]\ntype = "headers"\n',
        "[queues.seen]\n[queues.target]\n",
        '[queues.shouts]\nbindings = [{ exchange = "loud" }]\n',
        '[queues.red]\nbindings = [{ exchange = "sorted", arguments = { colour = "red", x-match = "all" } }]\n',
        *(consumer(policy, on_error=policy) for policy in POLICIES),
        consumer("limited", kind="quorum"),
        consumer("plain", more='reply = "plain"'),
        consumer("silent", more='reply = "none"'),
        consumer("confirmed", more="reply_confirm = true"),
        consumer("locked", "echo", 'lock = "body.customer"'),
        consumer("typed", "typed"),
        consumer("text", "echo", 'accept = ["text/plain"]'),
        consumer("allowed", more='reply_to_allowed = ["else*"]'),
        consumer("class", "Counted", 'config = { greeting = "hello" }', on_error="archive"),
        consumer("loop", "do_async"),
        consumer("asker", "ask"),
        consumer("held", "hold"),
        consumer("layered", more='layers = ["promised:stamped"]'),
        consumer("own-lock", "Locked"),
        consumer("sealed", "pay"),
        consumer("named", "sign_in"),
        consumer("halting"),
        consumer("slow").replace("0.1, 0.4", "3600"),
        consumer("topical", more='reply_via = "request-exchange"').replace(
            "delivery_limit", 'bindings = [{ exchange = "shop", routing_keys = ["order.#", "stock.*"] }]\ndelivery_limit'
        ),
        consumer("spaced").replace('handler = "promised:do"', 'namespace = "promised_ns"'),
    )
)

numbers = itertools.count(1)


class Request:
    """One message of a promise."""

    def __init__(self, world: World, key: str, body: Any, exchange: str, asks: bool, properties: dict[str, Any]) -> None:
        self.world = world
        self.number = f"{next(numbers)}-{key}"
        said = {"message_id": self.number, "correlation_id": self.number, **properties}
        world.send(key, body, exchange, said, asks=asks)

    @property
    def reply(self) -> Any:
        return self.got.json

    @property
    def got(self) -> Got:
        return self.world.reply(self.number)

    def runs(self, count: int = 1) -> list[dict[str, Any]]:
        found = self.world.runs(self.number, count)
        assert len(found) == count
        return found

    def in_queue(self, queue: str) -> Got:
        return self.world.get(queue, self.number)

    def is_nowhere(self, *queues: str) -> bool:
        return not any(self.world.holds(queue, self.number) for queue in queues)


def ask(world: World, key: str, body: Any, exchange: str = "", **properties: Any) -> Request:
    return Request(world, key, body, exchange, True, properties)


def send(world: World, key: str, body: Any, exchange: str = "", **properties: Any) -> Request:
    return Request(world, key, body, exchange, False, properties)


def carried(got: Got) -> dict[str, Any]:
    """Return the headers of a message without a quorum queue's count, which RabbitMQ begins at nothing before 4.0."""
    return {name: value for name, value in got.headers.items() if name != "x-delivery-count"}


PROMISES: list[Callable[[World], None]] = []


def promise(function: Callable[[World], None]) -> Callable[[World], None]:
    PROMISES.append(function)
    return function


NEUTRAL = {"success": False, "data": {}, "message": "An unexpected error occurred"}


# Replies ----------------------------------------------------------------------------------------------


@promise
def an_object_is_the_data_of_the_reply(world: World) -> None:
    assert ask(world, "auto", {}).got.body == b'{"success":true,"data":{"number":17},"message":null}'


@promise
def anything_else_is_wrapped(world: World) -> None:
    assert ask(world, "auto", {"do": "nothing"}).reply == {"success": True, "data": {}, "message": None}
    assert ask(world, "auto", {"do": "list"}).reply["data"] == {"result": [1, 2]}


@promise
def a_reply_object_sets_data_and_message(world: World) -> None:
    assert ask(world, "auto", {"do": "reply"}).reply == {"success": True, "data": {"a": 1}, "message": "done"}


@promise
def a_reply_has_the_requests_correlation_id_and_a_content_type_and_nothing_else(world: World) -> None:
    request = ask(world, "auto", {}, app_id="shop", type="order", priority=1)
    found = {name: value for name, value in vars(request.got.properties).items() if value is not None}
    assert found == {"content_type": "application/json", "correlation_id": request.number}


@promise
def what_wants_no_reply_is_just_done(world: World) -> None:
    request = send(world, "auto", {})
    request.runs(1)
    assert request.is_nowhere("auto.archive", "auto.retry.100")


@promise
def a_plain_reply_is_the_bare_value(world: World) -> None:
    assert ask(world, "plain", {"do": "list"}).reply == [1, 2]


@promise
def a_plain_failure_is_the_usual_document(world: World) -> None:
    assert ask(world, "plain", {"do": "boom"}).reply == NEUTRAL


@promise
def a_consumer_may_answer_nobody(world: World) -> None:
    request = ask(world, "silent", {"do": "permanent"})
    request.in_queue("silent.archive")
    assert not world.has_reply(request.number)


@promise
def a_confirmed_reply_arrives_all_the_same(world: World) -> None:
    assert ask(world, "confirmed", {}).reply["data"] == {"number": 17}


@promise
def a_reply_may_go_by_the_requests_own_exchange(world: World) -> None:
    assert ask(world, "order.placed", {}, "shop").reply["data"] == {"number": 17}


@promise
def what_no_json_can_hold_is_answered_as_a_failure(world: World) -> None:
    assert ask(world, "auto", {"do": "unencodable"}).reply == NEUTRAL
    assert ask(world, "auto", {"do": "generator"}).reply == NEUTRAL


@promise
def a_reply_that_is_too_big_is_answered_as_a_failure(world: World) -> None:
    assert ask(world, "auto", {"do": "too much"}).reply == NEUTRAL


@promise
def a_queue_that_is_allowed_may_be_replied_to(world: World) -> None:
    request = send(world, "allowed", {}, reply_to="elsewhere")
    assert request.in_queue("elsewhere").json["success"] is True


@promise
def a_reply_to_that_is_not_allowed_is_archived_and_not_run(world: World) -> None:
    request = send(world, "auto", {}, reply_to="elsewhere")
    assert "reply_to is not allowed" in request.in_queue("auto.archive").headers["x-rpcd-reason"]
    assert request.is_nowhere("elsewhere")
    assert world.runs(request.number, 0) == []


@promise
def a_queue_of_rpcds_own_is_never_replied_to(world: World) -> None:
    request = send(world, "auto", {}, reply_to="auto.archive")
    assert "a queue of rpcd's own" in request.in_queue("auto.archive").headers["x-rpcd-reason"]
    assert world.runs(request.number, 0) == []


@promise
def a_reply_to_nobody_is_no_failure(world: World) -> None:
    request = send(world, "auto", {}, reply_to="amq.gen-gone")
    request.runs(1)
    assert request.is_nowhere("auto.archive", "auto.retry.100")


# What a handler raises --------------------------------------------------------------------------------


@promise
def a_request_that_failed_is_answered_with_message_and_data(world: World) -> None:
    request = ask(world, "auto", {"do": "request_failed"})
    assert request.reply == {"success": False, "data": {"customer": 7}, "message": "customer is blocked"}
    request.runs(1)
    assert request.is_nowhere("auto.archive", "auto.retry.100")


@promise
def a_request_that_failed_without_a_caller_is_done_with(world: World) -> None:
    request = send(world, "auto", {"do": "request_failed"})
    request.runs(1)
    assert request.is_nowhere("auto.archive", "auto.retry.100")


@promise
def a_permanent_failure_is_archived_and_answered_with_its_reason(world: World) -> None:
    request = ask(world, "auto", {"do": "permanent"})
    assert request.reply == {"success": False, "data": {}, "message": "no such warehouse"}
    headers = request.in_queue("auto.archive").headers
    assert (headers["x-rpcd-reason"], headers["x-rpcd-exception"]) == ("no such warehouse", "PermanentFailure")


@promise
def what_is_dropped_goes_where_the_queues_dead_letters_go(world: World) -> None:
    request = ask(world, "auto", {"do": "drop"})
    assert request.reply == {"success": False, "data": {}, "message": "The message was dropped"}
    (death,) = request.in_queue("auto.archive").headers["x-death"]
    assert (death["queue"], death["reason"]) == ("auto", "rejected")


@promise
def what_is_put_off_at_once_comes_back_at_once_and_has_used_up_nothing(world: World) -> None:
    request = ask(world, "auto", {"do": "nack", "delay": 0, "times": 1})
    assert request.reply["success"] is True
    first, second = request.runs(2)
    assert (first["redelivered"], second["redelivered"], second["attempt"], second["nacks"]) == (False, True, 1, 0)


@promise
def what_is_put_off_comes_back_later_and_has_used_up_no_attempt(world: World) -> None:
    request = ask(world, "auto", {"do": "nack", "times": 3})
    assert request.reply["success"] is True
    assert [(run["attempt"], run["nacks"]) for run in request.runs(4)] == [(1, 0), (1, 1), (1, 2), (1, 3)]


@promise
def what_is_put_off_gets_no_reply_meanwhile(world: World) -> None:
    request = ask(world, "auto", {"do": "nack", "delay": 0.3, "times": 1})
    request.runs(1)
    assert not world.has_reply(request.number)
    assert request.reply["success"] is True


@promise
def what_comes_back_again_and_again_is_given_up_by_its_queue(world: World) -> None:
    request = send(world, "limited", {"do": "nack", "delay": 0})
    (death,) = request.in_queue("limited.archive").headers["x-death"]
    assert (death["queue"], death["reason"]) == ("limited", "delivery_limit")
    assert len(world.runs(request.number, 1)) == 4


@promise
def a_retry_is_another_attempt(world: World) -> None:
    request = ask(world, "auto", {"do": "retry", "times": 1})
    assert request.reply["success"] is True
    assert [(run["attempt"], run["died_in"]) for run in request.runs(2)] == [(1, []), (2, ["auto.retry.100"])]


@promise
def a_retry_takes_a_step_that_is_long_enough(world: World) -> None:
    request = ask(world, "auto", {"do": "retry", "times": 1, "delay": 0.2})
    assert request.reply["success"] is True
    assert request.runs(2)[1]["died_in"] == ["auto.retry.400"]


@promise
def a_retry_knows_where_its_message_was_first_published_to(world: World) -> None:
    request = send(world, "stock.tea", {"do": "retry", "times": 1}, "shop")
    assert [(run["exchange"], run["key"]) for run in request.runs(2)] == [("shop", "stock.tea")] * 2


@promise
def retries_are_spent_in_the_end_and_only_then_answered(world: World) -> None:
    request = ask(world, "auto", {"do": "retry"})
    assert request.reply == NEUTRAL
    assert [run["attempt"] for run in request.runs(3)] == [1, 2, 3]
    headers = request.in_queue("auto.archive").headers
    assert (headers["x-rpcd-reason"], headers["x-rpcd-attempt"]) == ("attempts are spent: Retry", 3)


@promise
def a_system_exit_is_an_exception_like_any_other(world: World) -> None:
    request = ask(world, "auto", {"do": "exit"})
    assert request.reply == NEUTRAL
    request.runs(1)


@promise
def a_halt_answers_and_the_consumer_takes_nothing_more(world: World) -> None:
    request = ask(world, "halting", {"do": "halt"})
    assert request.reply == {"success": False, "data": {}, "message": "enough"}
    later = send(world, "halting", {})
    assert later.in_queue("halting")
    assert world.runs(later.number, 0) == []


# Unexpected exceptions --------------------------------------------------------------------------------


@promise
def auto_answers_a_request(world: World) -> None:
    request = ask(world, "auto", {"do": "boom"})
    assert request.reply == NEUTRAL
    request.runs(1)
    assert request.is_nowhere("auto.archive", "auto.retry.100")


@promise
def auto_retries_and_archives_what_nobody_waits_for(world: World) -> None:
    request = send(world, "auto", {"do": "boom"})
    headers = request.in_queue("auto.archive").headers
    assert (headers["x-rpcd-reason"], headers["x-rpcd-exception"]) == ("attempts are spent: Boom", "Boom")
    request.runs(3)


@promise
def reply_answers_a_request(world: World) -> None:
    request = ask(world, "reply", {"do": "boom"})
    assert request.reply == NEUTRAL
    assert request.is_nowhere("reply.archive")


@promise
def reply_archives_what_nobody_waits_for(world: World) -> None:
    request = send(world, "reply", {"do": "boom"})
    assert request.in_queue("reply.archive").headers["x-rpcd-reason"] == "nobody to answer: Boom"
    request.runs(1)


@promise
def retry_answers_a_request_only_when_its_attempts_are_spent(world: World) -> None:
    request = ask(world, "retry", {"do": "boom"})
    assert request.reply == NEUTRAL
    request.runs(3)
    assert request.in_queue("retry.archive").headers["x-rpcd-attempt"] == 3


@promise
def a_retry_may_succeed(world: World) -> None:
    request = ask(world, "retry", {"do": "boom", "times": 2})
    assert request.reply["success"] is True
    request.runs(3)
    assert request.is_nowhere("retry.archive")


@promise
def archive_archives_at_once_and_answers(world: World) -> None:
    request = ask(world, "archive", {"do": "boom"})
    assert request.reply == NEUTRAL
    assert request.in_queue("archive.archive").headers["x-rpcd-reason"] == "unexpected exception: Boom"
    request.runs(1)


@promise
def requeue_gives_back_and_answers_nobody(world: World) -> None:
    request = ask(world, "requeue", {"do": "boom", "times": 1})
    assert request.reply["success"] is True
    assert [run["redelivered"] for run in request.runs(2)] == [False, True]


@promise
def drop_rejects_and_answers(world: World) -> None:
    request = ask(world, "drop", {"do": "boom"})
    assert request.reply == NEUTRAL
    (death,) = request.in_queue("drop.archive").headers["x-death"]
    assert death["reason"] == "rejected"


@promise
def the_text_of_an_exception_leaves_the_process_nowhere(world: World) -> None:
    request = ask(world, "archive", {"do": "boom"})
    assert b"secret" not in request.got.body
    copy = request.in_queue("archive.archive")
    assert "secret" not in repr(copy.headers)


# Bodies -----------------------------------------------------------------------------------------------


@promise
def a_body_that_is_no_json_is_answered_with_its_place_and_archived_as_it_came(world: World) -> None:
    request = ask(world, "auto", b'{"do": ')
    reply = request.reply
    assert (reply["success"], reply["data"]["place"]) == (False, "body")
    copy = request.in_queue("auto.archive")
    assert (copy.body, copy.headers["x-rpcd-exception"]) == (b'{"do": ', "BadMessage")
    assert world.runs(request.number, 0) == []


@promise
def a_body_of_a_wrong_shape_is_answered_without_its_value(world: World) -> None:
    request = ask(world, "typed", {"customer": 4711})
    assert request.reply["data"]["place"] == "body.customer"
    assert b"4711" not in request.got.body
    assert "4711" not in repr(request.in_queue("typed.archive").headers)


@promise
def a_body_of_the_right_shape_is_an_object(world: World) -> None:
    assert ask(world, "typed", {"customer": "ada"}).reply["data"] == {"customer": "ada"}


@promise
def a_content_type_that_is_not_accepted_is_a_bad_message(world: World) -> None:
    request = ask(world, "auto", b"{}", content_type="application/xml")
    assert request.reply["data"]["place"] == "content_type"
    request.in_queue("auto.archive")


@promise
def text_is_text_where_it_is_accepted(world: World) -> None:
    reply = ask(world, "text", "gr\u00fc\u00df".encode(), content_type="text/plain").reply
    assert reply["data"] == {"body": "gr\u00fc\u00df", "kind": "str"}


@promise
def a_body_that_is_too_big_is_not_opened(world: World) -> None:
    request = ask(world, "auto", b" " * 4001)
    assert request.reply["data"]["reason"] == "4001 bytes; max_body allows 4000"
    request.in_queue("auto.archive")


@promise
def a_message_without_its_locks_key_is_a_bad_message(world: World) -> None:
    assert ask(world, "locked", {"customer": 1}).reply["success"] is True
    assert ask(world, "locked", {"customre": 1}).reply["data"]["place"] == "body.customer"


# Publications -----------------------------------------------------------------------------------------


def to_target(*numbers: int, exchange: str = "", key: str = "target", **options: Any) -> list[dict[str, Any]]:
    return [{"to": [exchange, key], "n": number, "options": options} for number in numbers]


@promise
def what_is_held_back_leaves_when_its_handler_succeeds(world: World) -> None:
    request = ask(world, "auto", {"publish": to_target(1, 2, headers={"h": 1})})
    assert request.reply["success"] is True
    first, second = request.in_queue("target"), request.in_queue("target")
    assert [first.json, second.json] == [{"n": 1}, {"n": 2}]
    assert (carried(first), first.properties.content_type, first.properties.delivery_mode) == (
        {"h": 1},
        "application/json",
        2,
    )
    assert first.properties.message_id != second.properties.message_id


@promise
def what_is_held_back_is_dropped_when_its_handler_fails(world: World) -> None:
    request = ask(world, "auto", {"publish": to_target(1), "do": "request_failed"})
    assert request.reply["success"] is False
    assert request.is_nowhere("target")


@promise
def what_is_held_back_leaves_once_although_its_handler_ran_twice(world: World) -> None:
    request = ask(world, "retry", {"publish": to_target(1), "do": "boom", "times": 1})
    assert request.reply["success"] is True
    request.runs(2)
    request.in_queue("target")
    assert request.is_nowhere("target")


@promise
def what_is_published_at_once_stays_when_its_handler_fails(world: World) -> None:
    request = ask(world, "auto", {"publish_now": to_target(1), "do": "boom"})
    assert request.reply == NEUTRAL
    assert request.in_queue("target").json == {"n": 1}


@promise
def what_no_queue_takes_is_no_error_unless_it_is_mandatory(world: World) -> None:
    assert ask(world, "auto", {"publish": to_target(1, key="no.queue")}).reply["success"] is True
    assert ask(world, "auto", {"publish_now": to_target(1, key="no.queue")}).reply["success"] is True


@promise
def what_is_mandatory_and_finds_no_queue_fails_its_handler(world: World) -> None:
    request = ask(world, "auto", {"publish": to_target(1, key="no.queue", mandatory=True)})
    assert request.reply == NEUTRAL
    archived = send(world, "archive", {"publish": to_target(1, key="no.queue", mandatory=True)})
    headers = archived.in_queue("archive.archive").headers
    assert headers["x-rpcd-exception"] == "Unroutable"
    assert "no queue takes exchange '', key 'no.queue'" in headers["x-rpcd-reason"]


@promise
def an_exchange_that_is_not_there_fails_the_handler(world: World) -> None:
    request = send(world, "archive", {"publish": to_target(1, exchange="nowhere")})
    headers = request.in_queue("archive.archive").headers
    assert headers["x-rpcd-exception"] == "PublishRefused"
    assert "404" in headers["x-rpcd-reason"]


@promise
def a_handler_may_catch_what_publishing_at_once_raises(world: World) -> None:
    body = {"publish_now": to_target(1, key="no.queue", mandatory=True), "catch": True}
    assert ask(world, "auto", body).reply["data"] == {"error": "Unroutable"}
    body = {"publish_now": to_target(1, exchange="nowhere"), "catch": True}
    assert ask(world, "auto", body).reply["data"] == {"error": "PublishRefused"}


@promise
def a_topic_leads_what_one_handler_publishes_to_another(world: World) -> None:
    request = send(world, "auto", {"publish": to_target(1, exchange="shop", key="order.placed.now")})
    assert [run["key"] for run in request.runs(2)] == ["auto", "order.placed.now"]


@promise
def a_topics_star_is_one_word(world: World) -> None:
    assert ask(world, "auto", {"publish": to_target(1, exchange="shop", key="stock.tea.green")}).reply["success"]
    request = send(world, "stock.tea", {}, "shop")
    request.runs(1)


@promise
def a_fanout_leads_everywhere(world: World) -> None:
    request = send(world, "auto", {"publish": to_target(1, exchange="loud", key="whatever")})
    assert request.in_queue("shouts").json == {"n": 1}


@promise
def headers_lead_where_they_match(world: World) -> None:
    red = send(world, "auto", {"publish": to_target(1, exchange="sorted", headers={"colour": "red", "n": 1})})
    assert red.in_queue("red").json == {"n": 1}
    blue = ask(world, "auto", {"publish": to_target(1, exchange="sorted", headers={"colour": "blue"})})
    assert blue.reply["success"] is True
    assert blue.is_nowhere("red")


# Copies -----------------------------------------------------------------------------------------------

FOREIGN = {"x-death": [{"queue": "elsewhere", "count": 3}], "x-delivery-count": 7, "CC": []}


@promise
def an_archived_message_is_as_it_came_and_tells_its_circumstances(world: World) -> None:
    request = send(
        world, "stock.tea", {"do": "permanent"}, "shop", headers={"tenant": "acme", **FOREIGN}, app_id="shop", type="order"
    )
    copy = request.in_queue("topical.archive")
    assert copy.json == {"do": "permanent"}
    properties = copy.properties
    assert (properties.app_id, properties.type, properties.message_id) == ("shop", "order", request.number)
    headers = carried(copy)
    assert {headers.pop(name) for name in ("x-rpcd-copy", "x-rpcd-host", "x-rpcd-time")}
    assert headers == {
        "tenant": "acme",
        "x-retry-count": 0,
        "x-rpcd-exchange": "shop",
        "x-rpcd-routing-key": "stock.tea",
        "x-rpcd-reason": "no such warehouse",
        "x-rpcd-exception": "PermanentFailure",
        "x-rpcd-attempt": 1,
        "x-rpcd-handler": "promised:do",
        "x-rpcd-consumer": "topical",
        "x-rpcd-queue": "topical",
    }


@promise
def a_copy_carries_a_deadline_in_the_place_of_an_expiration(world: World) -> None:
    request = send(world, "auto", {"do": "permanent"}, expiration="60000", timestamp=int(time.time()))
    copy = request.in_queue("auto.archive")
    assert copy.properties.expiration is None
    assert abs(copy.headers["x-deadline"] - time.time() - 60) < 30


@promise
def a_client_cannot_wind_the_count_of_attempts_back_or_beyond(world: World) -> None:
    request = send(world, "auto", {"do": "boom"}, headers={"x-retry-count": 99})
    assert request.in_queue("auto.archive").headers["x-rpcd-attempt"] == 3
    request.runs(1)
    negative = ask(world, "auto", {}, headers={"x-retry-count": -5})
    assert negative.reply["success"] is True
    assert negative.runs(1)[0]["attempt"] == 1


# Deadlines and redeliveries ---------------------------------------------------------------------------


@promise
def a_message_whose_deadline_has_passed_is_acked_and_not_run(world: World) -> None:
    request = ask(world, "auto", {}, headers={"x-deadline": 1000})
    assert ask(world, "auto", {}).reply["success"] is True  # it was behind that
    assert world.runs(request.number, 0) == []
    assert not world.has_reply(request.number)
    assert request.is_nowhere("auto.archive", "auto.retry.100")


@promise
def a_retry_beyond_the_deadline_is_not_waited_for(world: World) -> None:
    request = ask(world, "slow", {"do": "retry"}, headers={"x-deadline": int(time.time()) + 600})
    assert request.reply == NEUTRAL
    assert "the deadline comes before the next attempt" in request.in_queue("slow.archive").headers["x-rpcd-reason"]


@promise
def a_message_with_an_id_does_not_run_again_when_its_ack_was_lost(world: World) -> None:
    number = f"{next(numbers)}-held"
    world.lose_the_ack(number, "held")
    assert world.reply(number).json["data"] == {"held": True}
    assert len(world.runs(number, 1)) == 1


# Handlers of other kinds ------------------------------------------------------------------------------


@promise
def a_class_gets_its_config_and_is_replaced_after_what_nobody_expected(world: World) -> None:
    first = ask(world, "class", {}).reply["data"]
    assert first["greeting"] == "hello"
    assert ask(world, "class", {"do": "request_failed"}).reply["success"] is False
    assert ask(world, "class", {}).reply["data"]["number"] == first["number"]
    assert ask(world, "class", {"do": "boom"}).reply == NEUTRAL
    assert ask(world, "class", {}).reply["data"]["number"] != first["number"]


@promise
def an_async_handler_keeps_the_same_promises(world: World) -> None:
    request = ask(world, "loop", {"do": "object"})
    assert request.reply["data"] == {"number": 17}
    assert ask(world, "loop", {"do": "boom"}).reply == NEUTRAL
    assert ask(world, "loop", {"do": "request_failed"}).reply["message"] == "customer is blocked"
    spent = send(world, "loop", {"do": "retry"})
    assert spent.in_queue("loop.archive").headers["x-rpcd-attempt"] == 3


@promise
def what_an_async_handler_publishes_and_forgets_to_await_fails_it(world: World) -> None:
    assert ask(world, "loop", {"do": "forget"}).reply == NEUTRAL


@promise
def the_exchange_of_a_message_picks_its_handler_in_a_namespace(world: World) -> None:
    assert ask(world, "spaced", {"name": "a"}, "created").reply["data"] == {"created": "a"}
    assert ask(world, "spaced", {"name": "b"}, "deleted").reply["data"] == {"deleted": "b"}


@promise
def what_no_handler_of_a_namespace_is_for_is_a_bad_message(world: World) -> None:
    request = ask(world, "spaced", {"name": "c"})
    assert request.reply["data"]["place"] == "exchange"
    assert "x-rpcd-handler" not in request.in_queue("spaced.archive").headers


# Asking -----------------------------------------------------------------------------------------------


@promise
def a_handler_asks_another_and_gets_its_data(world: World) -> None:
    request = ask(world, "asker", {"whom": "auto"})
    assert request.reply["data"] == {"answer": {"number": 17}}
    asker, asked = request.runs(2)
    assert (asker["deadline"], asked["deadline"]) == (False, True)


@promise
def a_handler_hears_at_once_that_there_is_nobody_to_ask(world: World) -> None:
    assert ask(world, "asker", {"whom": "no.queue"}).reply["data"] == {"error": "Unroutable"}


@promise
def a_handler_hears_that_its_request_has_failed(world: World) -> None:
    data = ask(world, "asker", {"whom": "typed"}).reply["data"]
    assert data["failed"].startswith("Bad message: body")


# Layers, secrets, patterns ----------------------------------------------------------------------------


@promise
def a_layer_is_folded_around_its_handler(world: World) -> None:
    request = ask(world, "layered", {})
    assert request.reply["data"] == {"stamped": {"number": 17}}
    request.runs(1)
    refused = ask(world, "layered", {"refuse": True})
    assert refused.reply["message"] == "refused by a layer"
    assert world.runs(refused.number, 0) == []


@promise
def a_handlers_own_lock_counts(world: World) -> None:
    assert ask(world, "own-lock", {"customer": 1}).reply["data"] == {"customer": 1}
    assert ask(world, "own-lock", {"customre": 1}).reply["data"]["place"] == "body.customer"


@promise
def a_secret_is_opened_for_its_handler_and_shown_nowhere(world: World) -> None:
    assert ask(world, "sealed", {"number": world.encrypt("4711-0815")}).reply["data"] == {"length": 9, "shown": "****"}
    assert ask(world, "named", {"password": world.encrypt("hush")}).reply["data"] == {"kind": "Secret", "length": 4}


@promise
def a_secret_in_plain_text_is_refused_and_not_repeated(world: World) -> None:
    request = ask(world, "sealed", {"number": "4711-0815"})
    assert request.reply["data"]["place"] == "body.number"
    assert b"4711" not in request.got.body
    assert "4711" not in repr(request.in_queue("sealed.archive").headers)
    assert world.runs(request.number, 0) == []


@promise
def a_pattern_leads_from_one_service_to_the_others(world: World) -> None:
    request = ask(world, "request_response.cows", {"say": {"do": "object"}})
    assert request.reply["data"] == {"cows": 1}
    runs = request.runs(2)
    assert {(run["exchange"], run["key"]) for run in runs} == {("publish_subscribe.cows", ""), ("", "push_pull.cows")}
    assert [run["milked"] for run in runs if "milked" in run] == ["bella"]


@promise
def what_a_queue_of_one_connection_has_is_retried_in_the_process(world: World) -> None:
    request = send(world, "", {"do": "retry", "times": 1}, "publish_subscribe.cows")
    first, second = request.runs(2)
    assert (first["attempt"], second["attempt"], second["died_in"]) == (1, 2, [])
    assert (second["exchange"], second["redelivered"]) == ("publish_subscribe.cows", False)
