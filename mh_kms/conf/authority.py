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

from oslo_config import cfg, types

GROUP = cfg.OptGroup("authority", title="Attestation authorities")
OPTS = [
    cfg.StrOpt(
        "ca_file",
        sample_default="/etc/mh-kms/attest-ca.pem",
        help="""
PEM file of the certificate authorities that TLS to attestation authorities
is checked against. Unset: those of the Python library used for TLS.
""",
    ),
    cfg.FloatOpt(
        "timeout",
        default=5.0,
        min=0.1,
        max=60.0,
        help="""
Seconds to wait for an authority to connect, and then for each part of its
answer. While it is silent the key is not released.
""",
    ),
    cfg.Opt(
        "tokens",
        type=types.Dict(key_value_separator="="),
        default={},
        sample_default=(
            "https://attest.example.org:15444=/etc/mh-kms/attest.token"
        ),
        help="""
Origin of each authority and the file with the bearer token for it, as
``origin=path``, comma-separated. Only origins named here are ever contacted,
whatever a release policy says. Token files: mode 0600.
""",
    ),
]
