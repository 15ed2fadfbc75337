"""What a request can be refused for, as classes by what the caller should do.

Raised by `services` and `api`; only `api` turns them into HTTP. The docstring of a class is its
message (`{name}` fields are filled from the keyword arguments), its `code` the documented one of
the v2 API; v1 codes are derived from it (`api.errors`).
"""

from typing import ClassVar


class Refused(Exception):  # noqa: N818 - read as "the request was refused"
    """Invalid request."""

    code: str = "DCS.4800"
    status: ClassVar[int] = 400

    def __init__(self, **facts: object) -> None:
        self.facts = facts
        template = type(self).__doc__ or ""
        super().__init__(" ".join(template.split()).format(**facts))


# --- Correct the request -----------------------------------------------------------------------


class Invalid(Refused):
    """Invalid {parameter} in the request: {why}."""

    code = "DCS.4800"

    def __init__(self, code: str | None = None, **facts: object) -> None:
        """`code`: the documented one of this parameter, where the contract names one."""
        super().__init__(**facts)
        if code is not None:
            self.code = code


class EmptyBody(Refused):
    """Empty request body."""

    code = "DCS.4004"


class NotJson(Refused):
    """The message body contains invalid characters or is not in JSON format."""

    code = "DCS.4005"


class BadName(Refused):
    """Invalid DCS instance name: {why}."""

    code = "DCS.4010"


class BadEngine(Refused):
    """The selected cache engine type (engine) is not supported: {why}."""

    code = "DCS.4006"


class NoSsl(Refused):
    """Do not support SSL: {why}."""

    code = "DCS.4201"


class BadVersion(Refused):
    """The selected cache engine version (engine_version) is not supported: {why}."""

    code = "DCS.4008"


class BadFlavor(Refused):
    """The param spec_code is invalid: {why}."""

    code = "DCS.4927"


class BadCapacity(Refused):
    """Invalid {parameter} parameter in the request: {why}."""

    code = "DCS.4012"


class NoSuchZone(Refused):
    """This AZ does not exist: {parameter} has {zone}."""

    code = "DCS.4042"


class ZoneSoldOut(Refused):
    """The selected available zone quota is not enough for this spec_code: {why}."""

    code = "DCS.4054"


class NoSuchVpc(Refused):
    """This VPC does not exist: vpc_id is {vpc_id}."""

    code = "DCS.4068"


class NoSuchSubnet(Refused):
    """Invalid subnet_id in the request: {why}."""

    code = "DCS.4016"


class SubnetNotInVpc(Refused):
    """This subnet must exist in the VPC: subnet_id is not in vpc_id."""

    code = "DCS.4018"


class NoSuchSecurityGroup(Refused):
    """This security group does not exist: security_group_id is {security_group_id}."""

    code = "DCS.4046"


class BadPassword(Refused):
    """The {parameter} does not meet complexity requirements: {why}."""

    code = "DCS.4019"


class PasswordMissing(Refused):
    """The {parameter} parameter is missing or its value is invalid: {why}."""

    code = "DCS.4845"


class PasswordUnwanted(Refused):
    """The request parameter {parameter} should not exist: {why}."""

    code = "DCS.4849"


class AccessUserUnwanted(Refused):
    """The access_user parameter is missing or its value is invalid: Redis has none."""

    code = "DCS.4844"


class PasswordFree(Refused):
    """This operation is not supported when Password-Free Access is enabled for the instance."""

    code = "DCS.4850"


class BadAccount(Refused):
    """Acl account request param invalid ({parameter}): {why}."""

    code = "DCS.4961"


class BadParameterValue(Refused):
    """Invalid value of the configure parameter {name}: {why}."""

    code = "DCS.4066"


class ReservedTooMuch(Refused):
    """The value of reserved-memory cannot be greater than the free memory size of this DCS instance, which is
    {free} MB."""

    code = "DCS.4105"


class NoSuchTemplate(Refused):
    """The parameter template does not exist: template_id is {template_id}."""

    code = "DCS.4988"


class TooManyTemplates(Refused):
    """The quota limit has been reached: a project can have {limit} templates."""

    code = "DCS.4039"


class TooManyAccounts(Refused):
    """The quota limit has been reached: an instance can have {limit} accounts besides default."""

    code = "DCS.4039"


class BadWindow(Refused):
    """The value of maintain time is illegal ({parameter}): {why}."""

    code = "DCS.4106"


class BadAction(Refused):
    """The action parameter must be restart, soft_restart, flush, start or stop: it is {action}."""

    code = "DCS.4064"


class TooManyInstances(Refused):
    """The number of instance IDs in an instances array cannot exceed {limit}."""

    code = "DCS.4100"


class NoInstances(Refused):
    """The instances parameter in the request cannot be a null value or left unspecified."""

    code = "DCS.4065"


class QuotaUsedUp(Refused):
    """DCS instance quota of the tenant is insufficient: {why}."""

    code = "DCS.4035"


class MemoryQuotaUsedUp(Refused):
    """Memory quota of the tenant is insufficient: {why}."""

    code = "DCS.4036"


class CannotResize(Refused):
    """The system does not support this resize ({parameter}): {why}."""

    code = "DCS.4102"


class CannotRetype(Refused):
    """The type of the instance cannot be changed ({parameter}): {why}."""

    code = "DCS.4200"


class SameSize(Refused):
    """The system does not support this resize ({parameter}): {why}."""

    code = "DCS.4103"


class TooManyReplicas(Refused):
    """There can be no more replicas ({parameter}): {why}."""

    code = "DCS.4875"


class BadNodeList(Refused):
    """The param node_list is invalid: {why}."""

    code = "DCS.4930"


class BadReplicaZones(Refused):
    """The param available_zones is invalid: {why}."""

    code = "DCS.4933"


class LastInName(Refused):
    """The last replica that the read-only domain name has cannot be deleted ({parameter})."""

    code = "DCS.4935"


class MasterStays(Refused):
    """The master node cannot be deleted ({parameter}): {why}."""

    code = "DCS.4936"


class LastReplica(Refused):
    """The last replica cannot be deleted ({parameter}): {why}."""

    code = "DCS.4937"


class DeletionProtected(Refused):
    """This DCS instance is protected from deletion: set deletion_protection to false first."""

    code = "DCS.4858"


class ResizeWaits(Refused):
    """A change of the instance waits for its maintenance window (task {task_id}): delete that task's record
    to cancel it."""

    code = "DCS.4108"


class SecurityGroupUnused(Refused):
    """Security groups filter nothing here: leave {parameter} out."""

    code = "DCS.4872"


class OnlyRedisCluster(Refused):
    """Only Redis Cluster instances have such a list; the instance's type is {cache_mode}."""

    code = "DCS.4800"


class NoReplicas(Refused):
    """Only instances with replicas support this action."""

    code = "DCS.4086"


class BadNode(Refused):
    """Incorrect node ID ({parameter}): {why}."""

    code = "DCS.3053"


class NotOnThisNode(Refused):
    """This operation is not supported on this node ({parameter}): {why}."""

    code = "DCS.4027"


class CannotFilter(Refused):
    """This operation is not supported on this node: {why}."""

    code = "DCS.4027"


class NoPublicAccess(Refused):
    """Instance type is not supported: clients of {cache_mode} are sent to the addresses of its nodes."""

    code = "DCS.4007"


class NoReadOnlyName(Refused):
    """Only master/standby instances have a read-only domain name; the instance's type is {cache_mode}."""

    code = "DCS.4086"


class LastAddress(Refused):
    """The IP of the last replica must stay in the domain name: {parameter} names the only one left in it."""

    code = "DCS.4879"


class NoPromotion(Refused):
    """All replicas have a priority of 0 ({parameter}): none could be promoted."""

    code = "DCS.4253"


class SameVersion(Refused):
    """The instance has that version already: it is {version}."""

    code = "DCS.4053"


class NoSwitchover(Refused):
    """Master and standby cannot be switched: {why}."""

    code = "DCS.4855"


class CannotWiden(Refused):
    """Invalid request: the bandwidth cannot be increased, as {why}."""


class NoPassThrough(Refused):
    """Instance do not support client ip transparent transmission: {why}."""

    code = "DCS.4841"


class PassesThrough(Refused):
    """Client ip transparent transmission is already opened, please do not repeat the operation."""

    code = "DCS.4847"


class PassesNothing(Refused):
    """Client ip transparent transmission is already closed, please do not repeat the operation."""

    code = "DCS.4846"


class TaskUnderWay(Refused):
    """This operation is not allowed when the task is in the current state ({status})."""

    code = "DCS.4957"


# --- Wait and send it again ---------------------------------------------------------------------


class Busy(Refused):
    """This operation is not allowed when the DCS instance is in the current state ({status})."""

    code = "DCS.4026"


class BusyCreating(Busy):
    """The instance is creating."""

    code = "DCS.4118"


class BusyRestarting(Busy):
    """The instance is restarting."""

    code = "DCS.4111"


class BusyExtending(Busy):
    """The instance is extending."""

    code = "DCS.4113"


class BusyConfiguring(Busy):
    """The instance is configuring."""

    code = "DCS.4114"


class BusyChangingPassword(Busy):
    """The instance is changing the password."""

    code = "DCS.4115"


class BusyRestoring(Busy):
    """The instance is restoring."""

    code = "DCS.4097"


class NotRunning(Busy):
    """The instance status is not running: it is {status}."""

    code = "DCS.4049"


# --- Show who you are ---------------------------------------------------------------------------


class Unauthenticated(Refused):
    """Invalid token: {why}."""

    code = "DCS.1001"
    status = 401


class WrongCredentials(Unauthenticated):
    """The user name or password is wrong."""


class NoRoleOnScope(Unauthenticated):
    """The user has no role on the requested scope, or it does not exist."""


class BadSignature(Unauthenticated):
    """Invalid signature: {why}."""


class ClockSkew(Unauthenticated):
    """The request was signed at {signed}, but it is {now} here; the clocks may differ by 15 minutes."""


class Replayed(Unauthenticated):
    """This signature has been used before; sign the request again."""


class TokenExpired(Unauthenticated):
    """Token expired."""

    code = "DCS.1002"


class NoToken(Unauthenticated):
    """No token in the request."""

    code = "DCS.1003"


class WrongProject(Unauthenticated):
    """Project ID does not match the token."""

    code = "DCS.1004"


# --- Ask for the right --------------------------------------------------------------------------


class BadLink(Refused):
    """This link is wrong, or too old: ask for another."""

    code = "DCS.2007"
    status = 403


class Forbidden(Refused):
    """Policy does not allow {action} to be performed."""

    code = "DCS.2007"
    status = 403


# --- It is not there ----------------------------------------------------------------------------


class NotFound(Refused):
    """The requested URL does not exist."""

    code = "DCS.4001"
    status = 404


class NoSuchInstance(NotFound):
    """This DCS instance does not exist."""

    code = "DCS.3022"


class NoSuchShard(NotFound):
    """This shard does not exist: group_id is {group_id}."""


class NoSuchHistory(NotFound):
    """This record of a parameter change does not exist: history_id is {history_id}."""


class NoSuchAccount(NotFound):
    """This account does not exist: account_id is {account_id}."""


class NoSuchTask(NotFound):
    """This task does not exist."""


class MethodNotAllowed(Refused):
    """This request method is not allowed."""

    code = "DCS.5001"
    status = 405


# --- Do without it ------------------------------------------------------------------------------


class NotBuilt(Refused):
    """{what} is in the contract but not built yet; `cacheyard coverage` lists what is."""

    code = "DCS.5501"
    status = 501


# --- Look at the log ----------------------------------------------------------------------------


class WorkFailed(Refused):
    """The work could not be done, and what was changed is as before: {why}."""

    code = "DCS.4842"
    status = 500


class Failed(Refused):
    """Internal service error; request {request_id} in the log says more."""

    code = "DCS.5000"
    status = 500
