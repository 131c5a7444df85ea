"""Handlers of a Django application: its models, and no word about connections."""

from django.core.management import call_command
from django.db import transaction

from goods.models import Order


def prepare():
    call_command("migrate", run_syncdb=True, verbosity=0)  # in earnest done when the application is installed


@transaction.atomic
def order(message):
    placed = Order.objects.create(item=message.body["item"])
    return {"number": placed.pk}
