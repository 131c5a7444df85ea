import re
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rpcd.core.address import AddressError, address, whole
from rpcd.core.settings import Broker, Tls

PROPERTY = settings(max_examples=40, deadline=None)

TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)


def of(url: str, **others: Any) -> Any:
    return address(Broker(url=url, **others))


@pytest.mark.parametrize(
    ("url", "hosts"),
    [
        ("amqp://h", (("h", 5672),)),
        ("amqps://h", (("h", 5671),)),
        ("amqp://h:1", (("h", 1),)),
        ("amqp://h:65535/v", (("h", 65535),)),
        ("amqp://a,b", (("a", 5672), ("b", 5672))),
        ("amqp://a,b,c:9", (("a", 9), ("b", 9), ("c", 9))),
        ("amqp://a:1,b,c:9", (("a", 1), ("b", 9), ("c", 9))),
        ("amqp://a:1,b", (("a", 1), ("b", 5672))),
        ("amqp://a , b/", (("a", 5672), ("b", 5672))),
        ("amqp://[::1]", (("::1", 5672),)),
        ("amqp://[::1]:7,h", (("::1", 7), ("h", 5672))),
        ("amqp://b%C3%BCro", (("büro", 5672),)),
    ],
)
def test_hosts_and_ports_are_read_in_every_form(url: str, hosts: tuple[tuple[str, int], ...]) -> None:
    assert of(url).hosts == hosts


@pytest.mark.parametrize(
    ("url", "username", "password"),
    [
        ("amqp://h", "guest", "guest"),
        ("amqp://u@h", "u", "guest"),
        ("amqp://:p@h", "guest", "p"),
        ("amqp://u:p@h", "u", "p"),
        ("amqp://u:p:q@h", "u", "p:q"),
        ("amqp://u:p@q@h", "u", "p@q"),
        ("amqp://u:p,q@h", "u", "p,q"),
        ("amqp://us%40er:p%2Fw@h", "us@er", "p/w"),
    ],
)
def test_user_name_and_password_are_read_and_decoded(url: str, username: str, password: str) -> None:
    found = of(url)
    assert (found.username, found.password) == (username, password)


@pytest.mark.parametrize(
    ("path", "virtual_host"), [("", "/"), ("/", "/"), ("/%2F", "/"), ("/shop", "shop"), ("/a%2Fb", "a/b"), ("/a/b", "a/b")]
)
def test_the_virtual_host_is_the_path(path: str, virtual_host: str) -> None:
    assert of("amqp://h" + path).virtual_host == virtual_host


@pytest.mark.parametrize(
    ("url", "complaint"),
    [
        ("", "expected amqp://"),
        ("h", "expected amqp://"),
        ("http://h", "expected amqp://"),
        ("AMQP://h", "expected amqp://"),
        ("amqp://", "is not a host or HOST:PORT"),
        ("amqp:///v", "is not a host or HOST:PORT"),
        ("amqp://h,", "is not a host or HOST:PORT"),
        ("amqp://h:", "is not a host or HOST:PORT"),
        ("amqp://h:0", "is not a host or HOST:PORT"),
        ("amqp://h:65536", "is not a host or HOST:PORT"),
        ("amqp://h:-1", "is not a host or HOST:PORT"),
        ("amqp://h:1:2", "is not a host or HOST:PORT"),
        ("amqp://[::1", "is not a host or HOST:PORT"),
        ("amqp://::1", "is not a host or HOST:PORT"),
        ("amqp://h?heartbeats=5", "'heartbeats' is unknown"),
        ("amqp://h?heartbeat=", "the heartbeat '' is not a whole number"),
        ("amqp://h?heartbeat=65536", "the heartbeat '65536' is not a whole number"),
        ("amqp://h?heartbeat=-1", "the heartbeat '-1' is not a whole number"),
        ("amqp://h?heartbeat=1.5", "the heartbeat '1.5' is not a whole number"),
    ],
)
def test_a_url_that_cannot_be_used_is_refused_with_a_reason(url: str, complaint: str) -> None:
    with pytest.raises(AddressError, match=re.escape(complaint)):
        of(url)


@pytest.mark.parametrize(
    "url",
    [
        "amqp://shop:correct-horse/battery@rabbit/shop",
        "amqp://shop:correct-horse?battery@rabbit/shop",
        "amqp://shop:correct-horse:/@rabbit/shop",
        "amqp://shop:correct-horse",
        "amqp://shop:correct-horse/shop",
        "amqp://shop:correct-horse@rabbit:port/shop",
        "amqp://shop:correct-horse@rabbit?ttl=5",
        "http://shop:correct-horse@rabbit",
    ],
)
def test_an_error_never_shows_the_password(url: str) -> None:
    with pytest.raises(AddressError) as caught:
        of(url)
    assert "correct-horse" not in str(caught.value)


def test_a_password_with_a_bare_slash_is_not_taken_for_another_host() -> None:
    with pytest.raises(AddressError):
        of("amqp://shop:12/34@rabbit/shop")


@pytest.mark.parametrize("url", ["amqp://h:" + "9" * 5000, "amqp://h?heartbeat=" + "9" * 5000])
def test_a_number_of_thousands_of_digits_is_refused_like_any_other(url: str) -> None:
    with pytest.raises(AddressError):
        of(url)


@pytest.mark.parametrize(
    ("url", "environment", "expected"),
    [
        ("amqp://h", None, 15),
        ("amqp://h?heartbeat=30", None, 30),
        ("amqp://h?heartbeat=0", None, 0),
        ("amqp://h?heartbeat=None", None, 15),
        ("amqp://h?heartbeat=30", 7, 7),
        ("amqp://h?heartbeat=30", 0, 0),
        ("amqp://h", 7, 7),
    ],
)
def test_the_environments_heartbeat_wins_over_the_urls_and_that_over_the_settings(
    url: str, environment: int | None, expected: int
) -> None:
    assert address(Broker(url=url, heartbeat=15), environment).heartbeat == expected


@pytest.mark.parametrize(
    "key", ["connection_attempts", "retry_delay", "socket_timeout", "blocked_connection_timeout", "connection_timeout"]
)
def test_query_keys_of_other_clients_are_tolerated(key: str) -> None:
    assert of(f"amqp://h/v?{key}=3").virtual_host == "v"


def test_settings_win_over_the_url() -> None:
    found = of("amqp://u:p@h/v", username="me", password="secret", virtual_host="mine", connect_timeout=3.0)
    assert (found.username, found.password, found.virtual_host, found.connect_timeout) == ("me", "secret", "mine", 3.0)


def test_an_empty_setting_wins_too() -> None:
    found = of("amqp://u:p@h/v", username="", password="", virtual_host="")
    assert (found.username, found.password, found.virtual_host) == ("", "", "")


def test_plain_amqp_has_no_tls_even_with_certificates_set() -> None:
    assert of("amqp://h", tls=Tls(certificate="c", key="k")).tls is None


def test_amqps_takes_the_tls_settings() -> None:
    tls = Tls(ca="/ca.pem")
    assert of("amqps://h", tls=tls).tls == tls


@pytest.mark.parametrize(
    ("url", "tls", "external"),
    [
        ("amqps://h", Tls(certificate="c", key="k"), True),
        ("amqps://h", Tls(ca="c"), False),
        ("amqp://h", Tls(certificate="c", key="k"), False),
    ],
)
def test_the_login_is_external_only_with_a_certificate_of_our_own(url: str, tls: Tls, external: bool) -> None:
    assert of(url, tls=tls).external is external


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("amqp://u:p@h", "amqp://h:5672/"),
        ("amqps://u:p@h/v", "amqps://h:5671/v"),
        ("amqp://u:p@[::1]:9,h/v", "amqp://[::1]:9,h:5672/v"),
    ],
)
def test_the_url_that_may_be_shown_has_neither_user_name_nor_password(url: str, shown: str) -> None:
    assert of(url).safe_url == shown


def test_the_password_is_in_no_repr() -> None:
    assert "correct-horse" not in repr(of("amqp://u:correct-horse@h"))


@PROPERTY
@given(TEXT, TEXT, TEXT)
def test_whatever_is_percent_encoded_into_a_url_comes_out_again(username: str, password: str, virtual_host: str) -> None:
    encoded = [quote(part, safe="") for part in (username, password, virtual_host)]
    found = of("amqp://{}:{}@rabbit:1/{}".format(*encoded))
    assert (found.username, found.password, found.virtual_host) == (username, password, virtual_host)
    assert found.hosts == (("rabbit", 1),)


@PROPERTY
@given(st.sampled_from(["", "amqp://", "amqps://u:p@"]), st.text(max_size=30))
def test_any_text_is_an_address_or_an_address_error(start: str, rest: str) -> None:
    try:
        found = of(start + rest)
    except AddressError:
        return
    assert all(host and 0 < port < 65536 for host, port in found.hosts)


@pytest.mark.parametrize(("text", "seconds"), [("0", 0), ("15", 15), ("65535", 65535), ("007", 7)])
def test_a_heartbeat_is_a_whole_number_of_seconds(text: str, seconds: int) -> None:
    assert whole(text) == seconds


@pytest.mark.parametrize("text", ["", " 5", "5s", "+5", "-5", "5.0", "65536", "٣", "²", "1_0", "none"])
def test_anything_else_is_no_heartbeat(text: str) -> None:
    with pytest.raises(AddressError):
        whole(text)


@pytest.mark.parametrize(
    ("url", "exposed"),
    [
        ("amqp://localhost", ()),
        ("amqp://127.0.0.1,[::1]:5673,127.8.8.8", ()),
        ("amqp://rabbit.localhost", ()),
        ("amqps://rabbit1,10.0.0.1", ()),
        ("amqp://rabbit1", ("rabbit1",)),
        ("amqp://localhost,10.0.0.1,[fe80::1],rabbit2", ("10.0.0.1", "fe80::1", "rabbit2")),
        ("amqp://localhost.example.com", ("localhost.example.com",)),
    ],
)
def test_security_06_plain_tcp_to_another_machine_is_known(url: str, exposed: tuple[str, ...]) -> None:
    assert address(Broker(url=url)).exposed == exposed
