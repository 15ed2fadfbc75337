"""Lets msgspec look at all our types before several threads use them.

It does so when a type is first converted to, and says that it is done before it is: another thread that
converts to the same type at that moment reads what is not there yet, and the process ends (msgspec 0.22).
"""

from collections.abc import Iterator

import msgspec


def prepare() -> None:
    """All types that have been imported. To be called before there are threads."""
    for each in _below(msgspec.Struct):
        msgspec.json.Decoder(each)


def _below(kind: type[msgspec.Struct]) -> Iterator[type[msgspec.Struct]]:
    for each in kind.__subclasses__():
        yield each
        yield from _below(each)
