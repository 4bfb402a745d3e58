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
"""``[migration]``: live migration, and what protects it on the wire."""

from typing import Any

from oslo_config import cfg

GROUP = cfg.OptGroup("migration", title="Live migration")
OPTS = [
    cfg.StrOpt(
        "tls_dir",
        default="/run/mystery-hill-migration",
        help="Directory, on tmpfs and writable by root only, where the agent "
        "keeps this boot's migration key and certificate as libvirt wants "
        "them (ca-cert.pem, server-cert.pem, …). Must be qemu.conf's "
        "migrate_tls_x509_cert_dir, and be there before libvirtd starts.",
    ),
    cfg.StrOpt(
        "tls_owner",
        default="",
        help="user:group that QEMU runs as, which has to read the key; empty: "
        "root. Files get mode 0640 and this group where one is named.",
    ),
    cfg.StrOpt(
        "authority_jwk_file",
        default="",
        help="JSON file with the public key of the attestation server, the "
        "member 'jwk' of 'mh-attest-manage identity show'. A guest leaves "
        "this host only on its signed word about the destination. Empty: no "
        "guest can be moved while it runs.",
    ),
    cfg.StrOpt(
        "issuer",
        default="",
        help="The attestation server's [authority] issuer; empty: "
        "[agent] attest_url.",
    ),
    cfg.ListOpt(
        "levels",
        default=["trusted"],
        help="Levels of a destination, one of which it must have. "
        "'boot-only' sends guests to hosts whose software is not measured. "
        "Safe value: trusted.",
    ),
]


def register_opts(conf: Any) -> None:
    conf.register_group(GROUP)
    conf.register_opts(OPTS, group=GROUP)


def list_opts() -> list[tuple[Any, list[Any]]]:
    return [(GROUP, OPTS)]
