"""Where a command's data directory is, and the settings that count there. Called by every command."""

import os
import tomllib
from pathlib import Path

import msgspec

from cacheyard.settings import Settings, default_data_dir, load


class BadSettings(Exception):  # noqa: N818 - reads as what it says
    """A setting that cannot be: which, and where it comes from."""


def settings_of(data: object = None, **flags: object) -> Settings:
    """The settings of `--data`, or of the default directory; a command's flags go before all else.

    Raises `BadSettings`, for the operator.
    """
    try:
        return load(Path(str(data)) if data else default_data_dir(), os.environ, **flags)
    except (msgspec.ValidationError, tomllib.TOMLDecodeError, OSError) as error:
        raise BadSettings(
            f"settings.toml, CACHEYARD_… and the options do not make settings: {error}"
        ) from None
