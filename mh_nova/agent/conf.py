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
"""Options of the agent; no global state: every part is handed ``conf``."""

import socket
from typing import Any

from oslo_config import cfg

from mh_nova.agent import conf_migration, protect, readers
from mh_nova.agent.stream_conf import STREAM_OPTS, stream

#: Directories of libvirt's below its domain directory that hold more than
#: the state of running guests.
KEPT = ("save", "snapshot", "checkpoint", "nvram", "dump", "ram", "channel")
DEFAULT_STATE = "/var/lib/mystery-hill"
DEFAULT_SOCKET = "/run/mystery-hill/agent.sock"

agent = cfg.OptGroup("agent", title="Mystery Hill agent")
listener = cfg.OptGroup("listener", title="Trust agent's HTTPS listener")

AGENT_OPTS = [
    cfg.StrOpt(
        "host",
        default=socket.gethostname(),
        help="The cloud's name of this host; must equal nova's [DEFAULT] "
        "host. A launch prepared for another name is refused.",
    ),
    cfg.StrOpt(
        "host_id",
        default="",
        help="Uuid of this host; empty: made once and kept in state_dir.",
    ),
    cfg.StrOpt(
        "socket",
        default=DEFAULT_SOCKET,
        help="Path of the unix socket nova-compute talks to. Its directory "
        "should be writable by root only.",
    ),
    cfg.StrOpt(
        "socket_group",
        default="",
        help="Group that may connect to the socket; empty: root only. The "
        "peer's user id is checked as well.",
    ),
    cfg.ListOpt(
        "allowed_uids",
        item_type=cfg.types.Integer(min=0),
        default=[0],
        help="Numeric user ids that may use the socket: root and the user "
        "of nova-compute. Everybody else is cut off.",
    ),
    cfg.StrOpt(
        "instances_path",
        default="/var/lib/nova/instances",
        help="nova's [DEFAULT] instances_path. All disks and bases are "
        "opened beneath it, never through a symbolic link.",
    ),
    cfg.StrOpt(
        "state_dir",
        default=DEFAULT_STATE,
        help="The agent's own directory, mode 0700: records of instances, "
        "bases and the AK certificate, and the audit log. No secret is "
        "ever in it.",
    ),
    cfg.StrOpt(
        "disk_owner",
        default="",
        help="user:group that is to own the disks the agent writes; empty: "
        "root. libvirt gives them to QEMU's user while a guest runs.",
    ),
    cfg.StrOpt(
        "disk_mode",
        default="0600",
        regex=r"0[0-7]{3}",
        help="Mode, octal, of the disks the agent writes.",
    ),
    cfg.StrOpt(
        "tcti",
        default="device:/dev/tpmrm0",
        help="How to reach the TPM, e.g. device:/dev/tpmrm0 or "
        "swtpm:host=127.0.0.1,port=2321.",
    ),
    cfg.StrOpt(
        "event_log",
        default="/sys/kernel/security/tpm0/binary_bios_measurements",
        help="File with the boot's TCG event log, sent with the evidence.",
    ),
    cfg.ListOpt(
        "kms_origins",
        default=[],
        help="The only key servers this host ever contacts, as "
        "https://name[:port]. Empty: no trusted launch is possible. A "
        "loopback address is allowed only because it is listed here.",
    ),
    cfg.StrOpt(
        "kms_ca_file",
        default="",
        help="PEM file of the CAs that may vouch for key servers; empty: "
        "those of the system.",
    ),
    cfg.BoolOpt(
        "kms_compat_http",
        default=False,
        help="Allow http:// origins, and then for the seed's bare-AK request "
        "only. Safe value: false.",
    ),
    cfg.StrOpt(
        "attest_url",
        default="",
        help="Attestation server's address, for VM reports; empty: no VM "
        "reports are made.",
    ),
    cfg.StrOpt(
        "attest_ca_file",
        default="",
        help="PEM file of the CAs that may vouch for the attestation "
        "server; empty: those of the system.",
    ),
    cfg.IntOpt(
        "timeout",
        default=20,
        min=1,
        max=300,
        help="Longest time for one request to a server, seconds.",
    ),
    cfg.IntOpt(
        "measure_timeout",
        default=600,
        min=5,
        max=7200,
        help="Longest time to wait for the hash of an image after its "
        "download has ended, seconds.",
    ),
    cfg.IntOpt(
        "secret_lease",
        default=120,
        min=10,
        max=600,
        help="Secrets are taken out of libvirt at the latest so many "
        "seconds after they were put there.",
    ),
    cfg.StrOpt(
        "libvirt_uri",
        default="qemu:///system",
        help="The agent's own connection to libvirt.",
    ),
    cfg.StrOpt(
        "libvirt_run_dir",
        default="/run/libvirt/qemu",
        help="Where libvirt keeps the pid files of its guests. A guest whose "
        "lease has ended, and which libvirt does not stop in time, is found "
        "there and killed.",
    ),
    cfg.StrOpt(
        "libvirt_domain_dir",
        default="/var/lib/libvirt/qemu",
        help="Where libvirt keeps its per-domain directories with their "
        "master keys; must be on tmpfs.",
    ),
    cfg.BoolOpt(
        "require_tmpfs",
        default=True,
        help="Refuse trusted launches unless libvirt_domain_dir is on tmpfs. "
        "False gives the keys of every disk to whoever reads the host's "
        "disk. Safe value: true.",
    ),
    cfg.ListOpt(
        "libvirt_kept",
        default=list(KEPT),
        help="Directories below libvirt_domain_dir that must lie on "
        "persistent storage, bound back beneath the tmpfs: without that, "
        "plain guests lose firmware variables, suspended memory and "
        "snapshots at a reboot. Empty: not looked at.",
    ),
    cfg.BoolOpt(
        "require_safe_swap",
        default=True,
        help="Refuse trusted launches where the host has a swap area that "
        "is neither on dm-crypt nor in memory (zram). False: guests' memory "
        "and keys may reach a disk in the clear. Safe value: true.",
    ),
    cfg.BoolOpt(
        "live_migration",
        default=False,
        help="Running guests may move from and to this host. True: qemu.conf "
        "must then demand native TLS with verified certificates, their keys "
        "on tmpfs, else trusted launches are refused.",
    ),
    cfg.StrOpt(
        "qemu_conf",
        default="/etc/libvirt/qemu.conf",
        help="libvirt's QEMU configuration, read to see that core dumps are "
        "off and, with live_migration, that TLS is demanded.",
    ),
    cfg.ListOpt(
        "emulators",
        default=[
            "/usr/bin/qemu-system-x86_64",
            "/usr/bin/qemu-system-aarch64",
            "/usr/bin/kvm",
        ],
        help="Emulators that a domain may name; one that names none gets "
        "libvirt's default.",
    ),
    cfg.ListOpt(
        "firmwares",
        default=[
            "/usr/share/OVMF/OVMF_CODE_4M.fd",
            "/usr/share/OVMF/OVMF_CODE.fd",
        ],
        help="Files with UEFI firmware that a trusted guest may have, "
        "always without variables of its own; they must be on a file system "
        "that the host policy measures. Empty: no UEFI.",
    ),
    cfg.ListOpt(
        "volume_dirs",
        default=[],
        help="Folders, absolute, in which the files of Cinder's volumes lie "
        "on this host, for back ends that have files (NFS and the like; see "
        "nova's [libvirt] nfs_mount_point_base). A volume elsewhere is not "
        "attached to a trusted server, except a block device below /dev. "
        "Never a folder with anything but volumes. Empty: no files.",
    ),
    cfg.ListOpt(
        "measurers",
        default=["ciphertext", "files"],
        help="Names of the measurers (mh_nova.measurers) that every image "
        "must pass. An image whose manifest asks for files to be measured "
        "does not start where 'files' is missing.",
    ),
    *readers.OPTS,
    cfg.BoolOpt(
        "believe_base_records",
        default=False,
        help="After a restart of the agent, do not hash a base again whose "
        "inode, size and times are as the agent recorded them. Saves about a "
        "second for each GiB, once for each base; whoever can write to the "
        "host's disk while the agent is away can forge all of these. Safe "
        "value: false.",
    ),
    cfg.StrOpt(
        "fs_verity",
        default=protect.AUTO,
        choices=[
            (
                protect.AUTO,
                "where kernel and file system have it; launches do not wait",
            ),
            (
                protect.REQUIRE,
                "before a base is used; a host without it is not trusted",
            ),
            (protect.OFF, "never"),
        ],
        help="Give bases to fs-verity (ext4 and f2fs with the verity feature, "
        "btrfs): a block that is changed on the disk is then an input/output "
        "error for whoever reads it, and a restarted agent need not hash the "
        "base again before the host's next boot. Costs reading and hashing "
        "each base twice more, once. Safe value: require, or auto.",
    ),
    cfg.IntOpt(
        "max_disk_size",
        default=1 << 44,
        min=1 << 20,
        help="Largest virtual size of a disk, bytes.",
    ),
]

LISTENER_OPTS = [
    cfg.StrOpt(
        "bind_host",
        default="127.0.0.1",
        help="Address the trust agent listens on, for the attestation server.",
    ),
    cfg.PortOpt("bind_port", default=15446, help="TCP port to listen on."),
    cfg.BoolOpt(
        "enabled",
        default=True,
        help="Listen at all. False: the host can be neither enrolled nor "
        "asked for its state.",
    ),
    cfg.StrOpt(
        "cert_file",
        default="/etc/mh-agent/listener.pem",
        help="PEM file of the listener's certificate; the attestation "
        "server pins its SHA-256 at enrolment.",
    ),
    cfg.StrOpt(
        "key_file",
        default="/etc/mh-agent/listener.key",
        help="PEM file of the listener's private key, mode 0600.",
    ),
    cfg.StrOpt(
        "client_ca_file",
        default="/etc/mh-agent/attest-ca.pem",
        help="PEM file of the CA of the attestation server's client "
        "certificate.",
    ),
    cfg.StrOpt(
        "client_sha256",
        default="",
        help="SHA-256 (hex) of the DER form of the one client certificate "
        "that may ask: the attestation server's. Empty: nobody may.",
    ),
    cfg.IntOpt(
        "timeout",
        default=10,
        min=1,
        max=120,
        help="Longest time for one request, seconds.",
    ),
]


def register_opts(conf: Any) -> None:
    conf.register_group(agent)
    conf.register_opts(AGENT_OPTS, group=agent)
    conf.register_group(listener)
    conf.register_opts(LISTENER_OPTS, group=listener)
    conf.register_group(stream)
    conf.register_opts(STREAM_OPTS, group=stream)
    conf_migration.register_opts(conf)


def list_opts() -> list[tuple[Any, list[Any]]]:
    """For oslo-config-generator."""
    return [
        (agent, AGENT_OPTS),
        (listener, LISTENER_OPTS),
        (stream, STREAM_OPTS),
        *conf_migration.list_opts(),
    ]
