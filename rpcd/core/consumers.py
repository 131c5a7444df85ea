"""The settings of `[consumers.NAME]`: a queue, the handler of its messages, and what becomes of them."""

from typing import Any, Literal

import attrs

from rpcd.core.codec import JSON
from rpcd.core.retry import Steps
from rpcd.core.setting import Name, Positive, Seconds, setting


@attrs.frozen
class Retry:
    """`[consumers.NAME.retry]`."""

    delays: list[Seconds] = setting("The retry steps, each a queue of its own.", [0.2, 1.0, 60.0, 1800.0])
    attempts: Positive | None = setting(
        "How often a message is tried, the first time included; one more than there are delays.", None
    )


@attrs.frozen
class Archive:
    """`[consumers.NAME.archive]`: the queue that keeps what was given up."""

    max_length: Positive | None = setting(
        "How many messages it holds; when full, nothing more is given up (see `overflow`).", None
    )
    overflow: Literal["reject-publish", "drop-head"] = setting(
        "What a full archive does: refuse new messages, or lose the oldest.", "reject-publish"
    )


@attrs.frozen
class KillSwitch:
    """`[consumers.NAME.kill_switch]`: what happens when one message after the other fails."""

    failures: int = setting(
        "After how many failures in a row that would be tried again nothing more is started; 0 is never.", 50
    )
    interval: Seconds = setting("How often one message is tried then; when one succeeds, all go on.", Seconds(10.0))


@attrs.frozen
class Consumer:
    """`[consumers.NAME]`: a queue, the handler of its messages, and what becomes of them."""

    queue: Name = setting("The queue: the name of a [queues] section.")
    handler: Name | None = setting(
        "Dotted path of a function, class or callable object: package.module:Name; this or `namespace`.", None
    )
    namespace: Name | None = setting(
        "Dotted path of a package with a module for each exchange; the exchange of a message picks its handler.", None
    )
    exchanges: list[Name] = setting(
        "With `namespace`: the exchanges, bound with the queue's name as key; every module that is there if none is named.",
        [],
    )
    workers: Positive = setting(
        "How many messages are handled at a time: threads, or concurrent tasks of async handlers.", Positive(1)
    )
    prefetch: Positive | None = setting(
        "How many messages the broker sends ahead; twice the workers (more with a lock).", None
    )
    lock: str | None = setting(
        "What only one message at a time may have in common: body.NAME, headers.NAME, routing_key, or * for all; "
        "empty for nothing. What the handler says by its attribute `lock` if not set.",
        None,
    )
    time_limit: Seconds = setting("How long a handler may run.", Seconds(600.0))
    on_error: Literal["auto", "reply", "retry", "archive", "requeue", "drop", "halt"] = setting(
        "What becomes of a message whose handler fails unexpectedly.",
        "auto",
    )
    reply: Literal["envelope", "plain", "none"] = setting("What a reply looks like.", "envelope")
    reply_via: Literal["default", "request-exchange"] = setting("The exchange that replies go to.", "default")
    reply_confirm: bool = setting(
        "Whether a reply is confirmed by the broker before its request is acked (direct reply-to can't be).", False
    )
    reply_to_allowed: list[str] = setting(
        "Queues besides server-named ones that may be replied to; * and ? stand for any characters.", []
    )
    accept: list[str] = setting("Content types that are opened; messages without one are taken as the first.", [JSON])
    max_body: Positive = setting("Bytes that a body may have.", Positive(16 * 1024 * 1024))
    max_reply: Positive = setting("Bytes that a reply may have.", Positive(8 * 1024 * 1024))
    secret_fields: list[str] | None = setting(
        "Fields at the top level of a body that must be Fernet tokens. If there are keys, these of a body without a type: "
        "secret_values, passphrase, password, admin_password, database_user_password.",
        None,
    )
    secrets: Literal["required", "opportunistic"] = setting(
        "Whether plain text in a secret field is refused, or every field that happens to be a token is opened.", "required"
    )
    encrypted: bool = setting("Whether each body as a whole is a Fernet token.", False)
    arguments: dict[str, Any] = setting("Arguments of the consumer for the broker (x-priority), verbatim.", {})
    exclusive: bool = setting("Whether no other consumer may have the queue.", False)
    retry: Retry = setting("When a message is tried again.", Retry())
    archive: Archive = setting("Where a message goes that was given up.", Archive())
    kill_switch: KillSwitch = setting("When to stop trying because everything fails.", KillSwitch())
    layers: list[Name] = setting(
        "Layers around its handlers, within those of [service], the outermost first: dotted paths, or [layers] sections.",
        [],
    )
    config: dict[str, Any] = setting("Handed to the handler's class; rpcd does not look into it.", {}, secret=True)

    @property
    def steps(self) -> Steps:
        """The retry steps as the core uses them."""
        attempts = self.retry.attempts if self.retry.attempts is not None else len(self.retry.delays) + 1
        return Steps(tuple(self.retry.delays), attempts)

    @property
    def window(self) -> int:
        """The prefetch that is asked for: as set, or a default that fits workers and lock."""
        if self.prefetch is not None:
            return self.prefetch
        if not self.lock:
            return 2 * self.workers
        return 2 if self.lock == "*" else max(8 * self.workers, 64)
