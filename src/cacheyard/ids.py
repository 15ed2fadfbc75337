"""Names for new things: every id is a random UUID, as clients expect."""

import uuid


def new_id() -> str:
    """A new id in the 36-character form."""
    return str(uuid.uuid4())


def is_id(text: str) -> bool:
    """Whether `text` is a UUID in the 36-character or the 32-character form."""
    try:
        uuid.UUID(text)
    except ValueError:
        return False
    return len(text) in (32, 36)
