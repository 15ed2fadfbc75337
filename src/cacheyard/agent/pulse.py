"""Feels whether servers answer. The supervisor asks; `felt` hears of it only when something changes.

A server that starts, or has fallen silent, is asked often by a `Pulse` of its own, to see it up as
soon as it is. Of those that are up, the ones from which nothing was heard for a while are asked all
in one go (`check`); usually the observer has read their INFO and there are none. (Measured: 100
wakes of the loop a second cost 4 % of a core, one wake with 100 questions 2 %.)
"""

import asyncio
import time
from collections.abc import Callable, Iterable

from cacheyard.domain.nodes import LOADING, Address
from cacheyard.engine.redis import BusyLoadingError, Link, NoAnswer, RedisError, ResponseError
from cacheyard.waiting import happens

FIRST_PAUSE = 0.003  # a server of 7.0 answers 12 ms after exec, one of 6.2 after 5
LONGEST_PAUSE = 0.25
CHECK_SECONDS = 2.0  # with the link's time-out of a second, a hung server is noticed after 1 to 3 s
SILENT_SECONDS = 1.0  # a server that was up may be out of reach so long without being called silent

Felt = Callable[[bool, str | None], None]  # whether it answers, and if not, why


class Pulse:
    """Asks one server until it answers, or until `stop`."""

    def __init__(self, link: Link, felt: Felt) -> None:
        self._link = link
        self._felt = felt
        self._answered = asyncio.Event()
        self._task = asyncio.create_task(self._beat())

    @property
    def beats(self) -> bool:
        """Whether it still asks."""
        return not self._task.done()

    async def first_answer(self, seconds: float) -> None:
        """Return when the server has answered, or ended, or after `seconds`."""
        await happens(self._answered, seconds)

    def stop(self) -> None:
        """The process is gone, or nobody wants to know any more."""
        self._task.cancel()
        self._answered.set()

    async def _beat(self) -> None:
        pause, began, told = FIRST_PAUSE, time.monotonic(), ""
        while (why := await ask(self._link)) is not None:
            is_news = not told or (why == LOADING) != (told == LOADING)
            if is_news and time.monotonic() - began > SILENT_SECONDS:
                told = why
                self._felt(False, why)
            await asyncio.sleep(pause)
            pause = min(pause * 1.3, LONGEST_PAUSE)
        self._felt(True, None)
        self._answered.set()


async def check(links: Iterable[tuple[Link, Felt, Callable[[], object]]]) -> None:
    """Ask servers that are up, once. One that lets the time-out pass hangs, and is `felt` so. For one that
    cannot be reached, as when somebody closed our connection, the third of a tuple, `lost`, is called."""

    async def one(link: Link, felt: Felt, lost: Callable[[], object]) -> None:
        try:
            await link.ping()
        except NoAnswer as error:
            felt(False, str(error))
        except ResponseError:
            pass
        except (RedisError, OSError):
            lost()

    await asyncio.gather(*(one(*question) for question in links))


async def ask(link: Link) -> str | None:
    """None when the server answers, else why it does not."""
    try:
        await link.ping()
    except BusyLoadingError:
        return LOADING
    except ResponseError as error:
        # BUSY with a script, MISCONF, MASTERDOWN: it answers; only not letting us in is no answer
        return str(error) if "NOAUTH" in str(error) or "WRONGPASS" in str(error) else None
    except (RedisError, OSError) as error:
        if "max number of clients" in str(error):
            return None
        return str(error) or type(error).__name__
    return None


async def listens(address: Address) -> bool:
    """Whether anybody takes connections there."""
    try:
        _, writer = await asyncio.open_connection(address.ip, address.port)
    except OSError:
        return False
    writer.close()
    return True
