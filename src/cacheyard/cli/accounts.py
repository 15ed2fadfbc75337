"""`cacheyard user|project|role|key …`: accounts, straight in the data directory."""

from cyclopts import App


def add_to(app: App) -> None:
    """Add the commands."""
