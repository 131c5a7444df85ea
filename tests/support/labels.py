"""Names of parameters that are the same in every process: those that run the tests side by side must agree on them."""

import re


def label(value: object) -> str:
    """Show a value without its place in memory."""
    return re.sub(r" at 0x[0-9a-f]+", "", str(value))
