"""Floor 1: decisions.

No Twisted, no pika, no socket, no file, no clock and no thread of its own: parsed data, time and randomness are arguments.
Read in this order: errors, message, outcome, routes, pipeline; then retry, copies, ledger, lanes; then settings, load,
topology.
"""
