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

from oslo_config import cfg

GROUP = cfg.OptGroup("kms", title="The key server itself")
OPTS = [
    cfg.StrOpt(
        "origin",
        required=True,
        regex=r"https://[A-Za-z0-9.\-\[\]:]{1,240}",
        sample_default="https://kms.example.org:15543",
        help="""
Scheme, host and port by which hosts and clients reach this server. It stands
in every key URL, in each release and as the audience of attestation results:
a result or a request made for another origin is refused. No default.
""",
    ),
    cfg.ListOpt(
        "accepted_origins",
        default=[],
        help="""
Further origins under which a key request may name this server, such as those
of reverse proxies that forward to it. Each is one more name under which a
relay could stand; the safe value is none.
""",
    ),
    cfg.StrOpt(
        "key_store",
        default="software",
        help="""
Driver of the namespace ``mh_kms.key_stores`` that seals keys before they are
stored. Changing it makes the keys stored so far unreadable.
""",
    ),
    cfg.StrOpt(
        "attestor",
        default="native",
        help="""
Driver of the namespace ``mh_kms.attestors`` that asks attestation
authorities. Whatever it brings back is verified again by the server.
""",
    ),
    cfg.ListOpt(
        "policy_checks",
        default=[],
        help="""
Checks of the namespace ``mh_kms.policy_checks`` that release policies may
name besides the built-in ones (level, project, purpose, manifest, tags),
which always run. The server does not start if one does not load.
""",
    ),
    cfg.IntOpt(
        "audit_kept",
        default=1000,
        min=10,
        max=1000000,
        help="""
Refused releases, and what hosts ask and tell about leases: so many records of
each key are kept, the newest (up to a tenth more between two clean-ups).
Hosts, and whoever can reach this server, cause them at will. Everything else
(releases, changes of keys, moves of leases) is kept for ever; the chains go
on verifying, and ``kms.audit.pruned`` says what went.
""",
    ),
]
