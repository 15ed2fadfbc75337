"""What a step may raise."""


class StepFailed(Exception):  # noqa: N818 - read as what happened
    """The step cannot reach what it must; its message is for the user. The task then undoes what it did."""
