"""The shop's tests: the real config and the rules of the real daemon, but no broker, no waiting."""

import pytest
from shop import sent

import rpcd

TEA = {"customer": "ada", "item": "tea"}


@pytest.fixture
def shop(rpcd_harness):
    rpcd_harness.answer("prices", {"price": 5})
    return rpcd_harness


def test_an_order_is_answered_and_its_customer_thanked(shop):
    sent.clear()
    reply = shop.call("order.placed", TEA, exchange="shop")
    assert (reply.success, reply.data) == (True, {"price": 5})
    assert shop.published[0].body == {"customer": "ada", "price": "5 EUR"}
    assert sent == ["thank you for 5 EUR, ada"]  # what one handler publishes reaches the other


def test_a_wrong_order_is_answered_with_what_is_wrong(shop):
    reply = shop.call("orders", {"customer": "ada"})
    assert reply.message == "Bad message: body: Object missing required field `item`"


def test_an_order_of_nobody_is_archived(shop):
    delivery = shop.deliver("orders", {"customer": "nobody", "item": "tea"})
    assert delivery.verdict == "archive"
    assert shop.archive("orders")[0].headers["x-rpcd-reason"] == "we don't know this customer"
    assert shop.published == []


def test_an_order_is_tried_again_until_the_price_is_known(rpcd_harness):
    known = []

    def prices(_message):
        if not known:
            raise rpcd.RequestFailed("closed for lunch")
        return {"price": 5}

    rpcd_harness.answer("prices", prices)
    with pytest.raises(rpcd.CallFailed, match="closed for lunch"):  # an error that `on_error` decides about
        rpcd_harness.deliver("orders", TEA)
    assert [each.queue for each in rpcd_harness.retries("orders")] == ["orders.retry.1000"]
    known.append(True)
    rpcd_harness.advance(1)  # second; nobody waits for it
    assert [each.verdict for each in rpcd_harness.deliveries if each.consumer == "orders"] == ["retry", "ack"]


def test_an_exchange_that_is_gone_leaves_the_order_to_be_tried_again(shop):
    shop.fail_publishing(rpcd.PublishRefused)
    assert shop.deliver("orders", TEA).verdict == "retry"
    shop.advance(1)
    assert len(shop.published) == 1


def test_an_order_whose_ack_was_lost_is_accepted_once(shop):
    first = shop.deliver("orders", TEA, message_id="order-17")
    again = shop.redeliver(first)
    assert (first.ran, again.ran, len(shop.published)) == (True, False, 1)
