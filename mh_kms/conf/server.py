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

GROUP = cfg.OptGroup("server", title="Stand-alone server, mh-kms-serve")
OPTS = [
    cfg.HostAddressOpt(
        "bind_host",
        default="127.0.0.1",
        help="""
Address to listen on. The default serves this machine only.
""",
    ),
    cfg.PortOpt(
        "bind_port",
        default=15543,
        help="TCP port to listen on, for TLS 1.3.",
    ),
    cfg.StrOpt(
        "certificate_file",
        default="/etc/mh-kms/tls.pem",
        help="PEM file of the server's certificate and its chain.",
    ),
    cfg.StrOpt(
        "key_file",
        default="/etc/mh-kms/tls.key",
        help="""
PEM file (PKCS #8) of the certificate's private key; readable by the server's
user only.
""",
    ),
    cfg.IntOpt(
        "threads",
        default=8,
        min=1,
        max=256,
        help="""
Requests served at once. A release waits for the attestation authority in
one of them.
""",
    ),
]
