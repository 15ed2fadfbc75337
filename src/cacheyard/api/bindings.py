"""Which service answers which operation of the contract. What is not here is not built, and answers 501."""

from collections.abc import Callable
from typing import Any

from cacheyard.api import keystone
from cacheyard.services import (
    access,
    background,
    change,
    lifecycle,
    network,
    offers,
    power,
    security_groups,
    subnets,
    tags,
    views,
    vpcs,
)

_BUILT: tuple[Callable[[Any], Any], ...] = (
    # 5.1 lifecycle
    lifecycle.create_instance,
    views.list_instances,
    change.batch_delete_instances,
    views.show_instance,
    change.delete_single_instance,
    change.update_instance,
    change.resize_instance,
    # 5.2 instances
    access.update_password,
    access.reset_password,
    views.list_number_of_instances_in_different_status,
    power.restart_or_flush_instances,
    views.list_statistics_of_running_instances,
    # 5.7 tags
    tags.list_tags_of_tenant,
    tags.batch_create_or_delete_tags,
    tags.show_tags,
    # 5.12 background tasks
    background.list_background_task,
    background.delete_background_task,
    background.show_background_task_progress,
    background.show_job_info,
    background.list_center_task,
    background.delete_center_task,
    # 5.15 what can be had
    offers.list_flavors,
    offers.list_maintenance_windows,
    offers.show_quota_of_tenant,
    offers.list_available_zones,
    # 3 identity
    keystone.keystone_create_user_token_by_password,
    keystone.keystone_list_projects,
    keystone.keystone_list_auth_projects,
    keystone.keystone_list_auth_domains,
    # 4 the network around
    vpcs.list_vpcs,
    vpcs.create_vpc,
    vpcs.show_vpc,
    vpcs.delete_vpc,
    vpcs.list_vpcs_v3,
    vpcs.create_vpc_v3,
    vpcs.show_vpc_v3,
    subnets.list_subnets,
    subnets.create_subnet,
    subnets.show_subnet,
    subnets.delete_subnet,
    subnets.neutron_list_networks,
    subnets.neutron_show_network,
    subnets.neutron_list_subnets,
    subnets.neutron_show_subnet,
    security_groups.list_security_groups,
    security_groups.create_security_group,
    security_groups.show_security_group,
    security_groups.delete_security_group,
    security_groups.neutron_list_security_groups,
    security_groups.neutron_create_security_group,
    security_groups.neutron_show_security_group,
    security_groups.list_security_groups_v3,
    security_groups.create_security_group_v3,
    security_groups.show_security_group_v3,
    network.nova_list_availability_zones,
)

BINDINGS: dict[str, Callable[[Any], Any]] = {service.__name__: service for service in _BUILT} | {
    # the same under a second path
    "delete_vpc_subnet": subnets.delete_subnet,
    "delete_vpc_v3": vpcs.delete_vpc,
    "neutron_delete_security_group": security_groups.delete_security_group,
    "delete_security_group_v3": security_groups.delete_security_group,
}
"""By operation id; a service is named like its operation."""
