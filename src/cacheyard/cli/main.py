"""The way in to the `cacheyard` command, kept light because `up` should answer soon.

Starting the service is the one command whose start-up time people and scripts wait for. When its
arguments are written plainly, they are read here; anything else (help, a mistake, another command) goes
to `commands`, which costs some 70 ms more to import; `call` reads its words by the contract. Memory is
not searched for garbage until the service is ready: nearly all that start-up allocates stays, and
looking through it took a fifth of the time. `starting` turns that on again.
"""

import gc
import os
import sys
from collections.abc import Callable, Mapping, Sequence

UP: Mapping[str, Callable[[str], object] | None] = {
    "data": str,
    "port": int,
    "host": str,
    "region": str,
    "cidr": str,
    "dns_port": int,
    "tls": None,  # a flag without a value
    "tls_cert": str,
    "tls_key": str,
    "tls_names": str,
    "insecure_http": None,
    "json": None,
    "detach": None,
}
"""The options of `up`, as `commands.up` has them; a test holds the two together."""


def main() -> None:
    """The entry point of the package."""
    gc.disable()
    from cacheyard.cli.places import BadSettings

    try:
        sys.exit(_do(sys.argv[1:]))
    except BadSettings as bad:
        print(f"cacheyard: {bad}", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except KeyboardInterrupt:
        sys.exit(130)


def _do(words: list[str]) -> int:
    match words:
        case ["up", *rest] if (options := plain(rest)) is not None:
            return _up(options)
        case ["call", *rest]:
            from cacheyard.cli import calling

            return calling.call(rest[0] if rest else "", rest[1:])
    from cacheyard.cli import commands

    return commands.run(words)


def plain(words: Sequence[str]) -> dict[str, object] | None:
    """The options of `up` by name; None when there is anything in them that needs a closer look."""
    options: dict[str, object] = {}
    rest = iter(words)
    for word in rest:
        option, equals, value = word.removeprefix("--").partition("=")
        name = option.replace("-", "_")
        if not word.startswith("--") or "_" in option or name not in UP or name in options:
            return None
        kind = UP[name]
        if kind is None:
            if equals:
                return None
            options[name] = True
            continue
        text = value if equals else next(rest, "")
        if not text or text.startswith("-"):
            return None
        try:
            options[name] = kind(text)
        except ValueError:
            return None
    return options


def _up(options: dict[str, object]) -> int:
    from cacheyard.cli import starting
    from cacheyard.cli.places import settings_of

    json, detach = bool(options.pop("json", False)), bool(options.pop("detach", False))
    return starting.up(settings_of(options.pop("data", None), **options), json=json, detach=detach)
