"""What a consumer decides by, made once from its settings."""

import attrs

from rpcd.core.reply import Replies
from rpcd.core.retry import Steps


@attrs.frozen
class Policy:
    """What a consumer decides by: its `on_error`, its retry steps, its replies."""

    replies: Replies
    on_error: str = "auto"
    steps: Steps = attrs.field(factory=lambda: Steps((0.2, 1.0, 60.0, 1800.0), 5))
    longest: float | None = None
    """The longest delay in seconds when retries are kept in the process, because their queue dies with its connection."""
