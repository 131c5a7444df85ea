"""What a test is told when it asks for something that can't be."""


class HarnessError(AssertionError):
    """The test asks for what the harness does not have, or can't do; the text says what there is."""


class NoReply(HarnessError):
    """A request has no reply; the text says what became of it."""
