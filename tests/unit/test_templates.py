"""The service's templates: computed from what is sold, under ids that stay."""

from cacheyard.domain.flavors import flavors
from cacheyard.domain.templates import system_template, system_templates


def test_the_documented_ids_have_the_documented_names() -> None:
    known = {
        "6": "Default-Redis-4.0-single-generic-DRAM",
        "11": "Default-Redis-5.0-single-generic-DRAM",
        "19": "Default-Redis-6.0-proxy-generic-DRAM",
        "22": "Default-Redis-7.0-ha-generic-DRAM",
    }
    assert {one.id: one.name for one in system_templates() if one.id in known} == known


def test_there_is_one_for_what_is_sold_and_for_nothing_else() -> None:
    sold = {(version, one.cache_mode) for one in flavors().values() for version in one.engine_versions}
    found = [(one.engine_version, one.cache_mode) for one in system_templates()]
    assert len(found) == len(set(found))
    assert set(found) == sold
    assert system_template("24") is None  # 7.0, proxy


def test_each_has_parameters_and_none_that_depends_on_the_size() -> None:
    for template in system_templates():
        names = {one.name for one in template.catalog}
        assert "maxmemory-policy" in names
        assert names.isdisjoint({"maxclients", "reserved-memory"})
