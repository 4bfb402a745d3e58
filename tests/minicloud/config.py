# Licensed under the Apache License, Version 2.0 (the "License"); you may
# not use this file except in compliance with the License. You may obtain
# a copy of the License at
#
#      http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS, WITHOUT
# WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied. See the
# License for the specific language governing permissions and limitations
# under the License.

"""The configuration files of the services, as text.

`@NAME@` is put in by `render`; passwords are those of a throw-away cloud
that listens on the loopback only.
"""

from __future__ import annotations

import collections.abc
import re

from tests.minicloud import layout

_AUTH = """\
auth_type = password
auth_url = @KEYSTONE@
username = %s
password = secret
project_name = service
user_domain_id = default
project_domain_id = default
"""


def _auth(user: str, region: bool = False) -> str:
    return (_AUTH % user).rstrip("\n") + (
        "\nregion_name = RegionOne" if region else ""
    )


def _token(user: str) -> str:
    return "[keystone_authtoken]\nwww_authenticate_uri = @KEYSTONE@\n" + _auth(
        user
    )


KEYSTONE = """\
[DEFAULT]
use_stderr = true
[database]
connection = @DB@/keystone?unix_socket=@SOCKET@
[token]
provider = fernet
[fernet_tokens]
key_repository = @STATE@/fernet-keys
[fernet_receipts]
key_repository = @STATE@/fernet-keys
[credential]
key_repository = @STATE@/credential-keys
[cache]
enabled = true
backend = oslo_cache.dict
[identity]
password_hash_algorithm = bcrypt
password_hash_rounds = 4
"""

PLACEMENT = f"""\
[DEFAULT]
use_stderr = true
[api]
auth_strategy = keystone
[placement_database]
connection = @DB@/placement?unix_socket=@SOCKET@
{_token("placement")}
"""

GLANCE = f"""\
[DEFAULT]
use_stderr = true
transport_url = fake://
enabled_backends = file:file
lock_path = @STATE@/lock
[oslo_concurrency]
lock_path = @STATE@/lock
[database]
connection = @DB@/glance?unix_socket=@SOCKET@
[glance_store]
default_backend = file
[file]
filesystem_store_datadir = @STATE@/glance
[os_glance_staging_store]
filesystem_store_datadir = @STATE@/glance-staging
[os_glance_tasks_store]
filesystem_store_datadir = @STATE@/glance-tasks
{_token("glance")}
[paste_deploy]
flavor = keystone
config_file = @VENV@/etc/glance/glance-api-paste.ini
[oslo_policy]
enforce_new_defaults = true
enforce_scope = true
"""

CINDER = f"""\
[DEFAULT]
use_stderr = true
transport_url = rabbit://guest:guest@127.0.0.1:@RABBIT@/
state_path = @STATE@/cinder
host = controller
my_ip = 127.0.0.1
auth_strategy = keystone
api_paste_config = @VENV@/etc/cinder/api-paste.ini
resource_query_filters_file = @VENV@/etc/cinder/resource_filters.json
rootwrap_config = @VENV@/etc/cinder/rootwrap.conf
glance_api_servers = @GLANCE@
enabled_backends = files
report_interval = 5
periodic_fuzzy_delay = 0
[files]
volume_driver = tests.minicloud.volumes.driver.FilesDriver
volume_backend_name = files
files_folder = @STATE@/volumes
[database]
connection = @DB@/cinder?unix_socket=@SOCKET@
[oslo_concurrency]
lock_path = @STATE@/lock
[oslo_messaging_notifications]
driver = noop
{_token("cinder")}
service_token_roles = service
service_token_roles_required = true
[service_user]
send_service_user_token = true
{_auth("cinder")}
[nova]
{_auth("cinder", True)}
[key_manager]
backend = cinder.keymgr.conf_key_mgr.ConfKeyManager
fixed_key = 0123456789abcdef0123456789abcdef
[cinder_sys_admin]
helper_command = @VENV@/bin/privsep-helper --config-file @ETC@/cinder.conf
"""

# What every part of Nova reads; only the controller gets _NOVA_DB too.
_NOVA = f"""\
[DEFAULT]
use_stderr = true
transport_url = rabbit://guest:guest@127.0.0.1:@RABBIT@/
state_path = @STATE@/nova
graceful_shutdown_timeout = 1
shutdown_timeout = 1
my_ip = 127.0.0.1
enabled_apis = osapi_compute
osapi_compute_workers = 1
metadata_workers = 1
rootwrap_config = @VENV@/etc/nova/rootwrap.conf
sync_power_state_interval = 30
update_resources_interval = 15
periodic_fuzzy_delay = 0
report_interval = 5
service_down_time = 30
[api]
auth_strategy = keystone
[wsgi]
api_paste_config = @VENV@/etc/nova/api-paste.ini
[oslo_concurrency]
lock_path = @STATE@/lock
{_token("nova")}
[service_user]
send_service_user_token = true
{_auth("nova")}
[placement]
{_auth("placement", True)}
[glance]
endpoint_override = @GLANCE@
[neutron]
endpoint_override = @NEUTRON@
{_auth("nova", True)}
[scheduler]
workers = 1
discover_hosts_in_cells_interval = 2
[conductor]
workers = 1
[vnc]
enabled = false
[spice]
enabled = false
[serial_console]
enabled = false
[cache]
enabled = false
[oslo_messaging_notifications]
driver = noop
[nova_sys_admin]
helper_command = @VENV@/bin/privsep-helper @COMPUTE_FILES@
[privsep_osbrick]
helper_command = @VENV@/bin/privsep-helper @COMPUTE_FILES@
[filter_scheduler]
available_filters = nova.scheduler.filters.all_filters
enabled_filters = ComputeFilter,ComputeCapabilitiesFilter,ImagePropertiesFilter
track_instance_changes = false
"""

# Only where Cinder runs: Nova asks it at each reboot, and takes a service
# that is not in the catalogue for granted, but not one that does not answer.
NOVA_VOLUMES = f"""\
[cinder]
endpoint_template = @CINDER@
{_auth("nova", True).replace("region_name", "os_region_name")}
"""

WITH_VOLUMES = ("nova.conf", "nova-compute.conf")

_NOVA_DB = """\
[api_database]
connection = @DB@/nova_api?unix_socket=@SOCKET@
[database]
connection = @DB@/nova_cell1?unix_socket=@SOCKET@
"""

# One compute host; what differs between the nodes.
COMPUTE = """\
[DEFAULT]
host = @HOST@
my_ip = @IP@
state_path = @NODE_STATE@
instances_path = @INSTANCES@
compute_driver = @DRIVER@
force_raw_images = @FORCE_RAW@
[oslo_concurrency]
lock_path = @NODE_STATE@/lock
[libvirt]
virt_type = @VIRT_TYPE@
cpu_mode = none
snapshots_directory = @INSTANCES@/snapshots
wait_soft_reboot_seconds = 5
live_migration_scheme = tcp
live_migration_inbound_addr = @IP@
swtpm_enabled = true
swtpm_user = root
swtpm_group = root
[workarounds]
skip_cpu_compare_on_dest = true
"""

FILES = {
    "keystone.conf": KEYSTONE,
    "placement.conf": PLACEMENT,
    "glance-api.conf": GLANCE,
    "cinder.conf": CINDER,
    "nova.conf": _NOVA + _NOVA_DB,
    "nova-compute.conf": _NOVA,
    "scheduler.conf": "",
    "conductor.conf": "",
}

LIBVIRTD = """\
host_uuid = "@UUID@"
auth_unix_ro = "none"
auth_unix_rw = "none"
unix_sock_rw_perms = "0700"
listen_tls = 0
listen_tcp = 1
auth_tcp = "none"
tcp_port = "16509"
listen_addr = "@IP@"
"""

# No control groups and no namespaces of libvirt's own: the guests of a
# crashed run would leave them on the machine.
QEMU = """\
security_driver = "none"
user = "root"
group = "root"
swtpm_user = "root"
swtpm_group = "root"
dynamic_ownership = 0
remember_owner = 0
cgroup_controllers = []
namespaces = []
max_core = 0
dump_guest_core = 0
migration_address = "@IP@"
migration_host = "@IP@"
"""

VIRTLOGD = ""

HOSTS = """\
127.0.0.1 localhost
127.0.0.11 node1
127.0.0.12 node2
127.0.0.13 node3
"""


def values(where: layout.Layout) -> dict[str, str]:
    """What stands for the names in the files of the controller."""
    url = f"http://{layout.ADDRESS}"
    return {
        "ETC": str(where.etc),
        "STATE": str(where.state),
        "VENV": str(where.venv),
        "DB": "mysql+pymysql://root@localhost",
        "SOCKET": str(where.mysql_socket),
        "KEYSTONE": f"{url}:{layout.PORTS['keystone']}/v3",
        "GLANCE": f"{url}:{layout.PORTS['glance']}",
        "CINDER": f"{url}:{layout.PORTS['cinder']}/v3",
        "NEUTRON": f"{url}:{layout.PORTS['neutron']}",
        "RABBIT": str(layout.PORTS["rabbitmq"]),
        "INSTANCES": str(where.instances),
        "COMPUTE_FILES": f"--config-file {where.etc}/nova-compute.conf",
    }


def render(
    text: str, names: collections.abc.Mapping[str, str], extra: str = ""
) -> str:
    """Put the values in; unknown names are mistakes of ours."""
    if extra and not extra.endswith("\n"):
        extra += "\n"
    return re.sub(r"@([A-Z_]+)@", lambda m: names[m[1]], text + extra)
