"""Parameter templates: the computed ones of the service, and those that users make of them. No I/O."""

from functools import cache

import msgspec

from cacheyard.domain import flavors, parameters
from cacheyard.domain.engines import SOLD
from cacheyard.domain.flavors import MODES
from cacheyard.domain.parameters import Parameter

ENGINE, PRODUCT, STORAGE = "Redis", "generic", "DRAM"
_FIRST = 6  # version 4.0, single; before it are those of 3.0, and each version has one for each type
SYSTEM, CUSTOM = "sys", "user"


class Template(msgspec.Struct, frozen=True, kw_only=True):
    """What instances of a version and a type may be created with. A custom one is a row of `templates`."""

    id: str
    project_id: str | None  # None: the service's own, which are everybody's
    name: str
    description: str | None
    engine_version: str
    cache_mode: str
    params: dict[str, str]  # by name, what was chosen
    created_at: int | None

    @property
    def type(self) -> str:
        """As clients spell it."""
        return SYSTEM if self.project_id is None else CUSTOM

    @property
    def catalog(self) -> tuple[Parameter, ...]:
        """What can be chosen: all but what depends on an instance's size."""
        return parameters.catalog(self.engine_version, self.cache_mode)


@cache
def system_templates() -> tuple[Template, ...]:
    """One for each version and type that can be had, with every parameter at its default."""
    sold = {
        (version, one.cache_mode) for one in flavors.flavors().values() for version in one.engine_versions
    }
    return tuple(
        _system(number, version, mode)
        for number, (version, mode) in enumerate(
            ((version, mode) for version in SOLD for mode in MODES), start=_FIRST
        )
        if (version, mode) in sold
    )


def system_template(template_id: str) -> Template | None:
    """The one of the service's with that id."""
    return next((one for one in system_templates() if one.id == template_id), None)


def _system(number: int, version: str, mode: str) -> Template:
    return Template(
        id=str(number),
        project_id=None,
        name=f"Default-{ENGINE}-{version}-{mode}-{PRODUCT}-{STORAGE}",
        description=None,
        engine_version=version,
        cache_mode=mode,
        params={},
        created_at=None,
    )
