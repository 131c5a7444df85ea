"""How often Python looks for garbage that reference counting leaves.

Python looks anew after 700 objects more than were freed. With a thousand messages in hand that is many times in each of
their lives, for nothing: half of a message's CPU, and pauses that all of them wait for. So the number follows how many
messages may be in hand; garbage in cycles is kept no longer than a few times as many messages last.
"""

import gc

OBJECTS = 100
"""Objects a message, about four times what one consists of."""


def settle_in(messages: int) -> None:
    """Leave out what is there for good, and look for garbage as often as befits so many messages in hand."""
    gc.collect()
    gc.freeze()
    first, second, third = gc.get_threshold()
    if first:  # else the operator, or a handler, has switched it off
        gc.set_threshold(max(first, OBJECTS * messages), min(second, 5), min(third, 5))
