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

GROUP = cfg.OptGroup(
    "software_key_store", title="Key store that holds its key in a file"
)
OPTS = [
    cfg.StrOpt(
        "kek_file",
        default="/var/lib/mh-kms/kek",
        help="""
Key-encryption key: a file of 32 random bytes, of the server's own user, mode
0600; any other mode is refused. ``mh-kms-manage db sync`` makes it where the
database has no keys yet. Whoever reads it and the database has every key, so
keep it on another device or backup than the database; whoever loses it has
lost every key.
""",
    ),
]
