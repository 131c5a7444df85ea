import pickle

import pytest

from rpcd.core import errors
from rpcd.core.errors import ExitCode, Problem, ReplyCode, RpcdError, SettingsError

EXCEPTIONS = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, BaseException)]

RAISED_BY_HANDLERS = [
    errors.RequestFailed("blocked", {"customer": 7}),
    errors.Nack(3.0),
    errors.Drop(),
    errors.Retry(2.0),
    errors.PermanentFailure("no such warehouse"),
    errors.HaltConsumer(3, "disk full", requeue=True),
    errors.BadMessage("body.a", "missing"),
]


@pytest.mark.parametrize("kind", EXCEPTIONS)
def test_every_exception_has_the_one_root(kind: type[BaseException]) -> None:
    assert issubclass(kind, RpcdError)


@pytest.mark.parametrize("kind", EXCEPTIONS)
def test_no_exception_of_rpcd_slips_through_an_except_exception(kind: type[BaseException]) -> None:
    assert issubclass(kind, Exception)


@pytest.mark.parametrize(("name", "code"), [("OK", 0), ("SOFTWARE", 70), ("TEMPFAIL", 75), ("NOPERM", 77), ("CONFIG", 78)])
def test_exit_codes_are_those_that_are_promised(name: str, code: int) -> None:
    assert ExitCode[name] == code


def test_reply_codes_are_those_of_amqp() -> None:
    assert {code.name: code.value for code in ReplyCode} == {
        "ACCESS_REFUSED": 403,
        "NOT_FOUND": 404,
        "RESOURCE_LOCKED": 405,
        "PRECONDITION_FAILED": 406,
        "FRAME_ERROR": 501,
        "SYNTAX_ERROR": 502,
        "COMMAND_INVALID": 503,
        "CHANNEL_ERROR": 504,
        "NOT_ALLOWED": 530,
        "NOT_IMPLEMENTED": 540,
        "INTERNAL_ERROR": 541,
    }


def test_request_failed_keeps_what_the_caller_is_told() -> None:
    failed = errors.RequestFailed("blocked", {"customer": 7})
    assert (failed.message, failed.data, str(failed)) == ("blocked", {"customer": 7}, "blocked")


def test_request_failed_needs_neither_message_nor_data() -> None:
    assert (errors.RequestFailed().message, errors.RequestFailed().data) == (None, None)


@pytest.mark.parametrize("kind", [errors.Nack, errors.Retry])
def test_a_delay_is_optional(kind: type[errors.Nack | errors.Retry]) -> None:
    assert (kind().delay, kind(1.5).delay) == (None, 1.5)


def test_a_halt_without_arguments_is_a_plain_end() -> None:
    halt = errors.HaltConsumer()
    assert (halt.exit_code, halt.reason, halt.requeue) == (0, None, False)


def test_a_halt_keeps_what_it_was_given() -> None:
    halt = errors.HaltConsumer(3, "disk full", requeue=True)
    assert (halt.exit_code, halt.reason, halt.requeue) == (3, "disk full", True)


def test_a_bad_message_says_place_and_reason() -> None:
    bad = errors.BadMessage("body.a", "missing")
    assert (bad.place, bad.reason, str(bad)) == ("body.a", "missing", "body.a: missing")


@pytest.mark.parametrize("error", RAISED_BY_HANDLERS, ids=lambda error: type(error).__name__)
def test_what_handlers_raise_comes_whole_out_of_a_process_pool(error: RpcdError) -> None:
    back = pickle.loads(pickle.dumps(error))
    assert (type(back), vars(back), str(back)) == (type(error), vars(error), str(error))


@pytest.mark.parametrize("kind", [errors.Unroutable, errors.PublishRefused, errors.ReplyUnencodable])
def test_what_can_never_be_published_is_a_publish_error(kind: type[RpcdError]) -> None:
    assert issubclass(kind, errors.PublishError)


def test_an_unconfirmed_publication_is_no_publish_error_for_it_may_have_arrived() -> None:
    assert not issubclass(errors.PublishTimeout, errors.PublishError)


def test_a_problem_names_its_path_and_what_is_wrong() -> None:
    assert str(Problem("broker.url", "empty")) == "broker.url: empty"


def test_a_problem_shows_the_way_out_if_there_is_one() -> None:
    assert str(Problem("broker.urls", "unknown key", "did you mean 'url'?")) == (
        "broker.urls: unknown key; did you mean 'url'?"
    )


def test_a_settings_error_keeps_every_problem_a_line_each() -> None:
    problems = [Problem("a", "wrong"), Problem("b", "missing")]
    error = SettingsError(problems)
    assert (error.problems, str(error)) == (tuple(problems), "a: wrong\nb: missing")


def test_a_refusal_of_the_broker_keeps_sentence_and_exit_code() -> None:
    refused = errors.LoginRefused("the password is wrong", ExitCode.NOPERM)
    assert isinstance(refused, errors.BrokerRefused)
    assert (str(refused), refused.exit_code) == ("the password is wrong", 77)


def test_a_closed_channel_keeps_the_brokers_words() -> None:
    closed = errors.ChannelClosed(404, "NOT_FOUND - no queue 'q'")
    assert (closed.code, closed.text, str(closed)) == (404, "NOT_FOUND - no queue 'q'", "404 NOT_FOUND - no queue 'q'")


def test_a_lost_connection_has_no_code_if_the_broker_said_none() -> None:
    assert (errors.ConnectionLost("reset").code, errors.ConnectionLost("forced", 320).code) == (0, 320)
