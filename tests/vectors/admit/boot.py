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
"""Rows of the corpus: what libvirt would boot is the root disk."""

from tests.vectors.admit.pieces import (
    CDROM,
    CONFIG,
    DISK,
    END,
    PLAIN,
    RESCUE,
    TARGET,
    VOLUMES,
    Row,
    a,
    after,
    first,
    more,
    plain_disk,
    volume,
)

ROWS: list[Row] = [
    (
        "volume-before-the-root-disk",
        *after("vdb", volume("vda")),
        a("boot"),
        VOLUMES,
    ),
    ("volume-first", *first(volume("sda", "scsi")), a("boot"), VOLUMES),
    ("volume-at-the-same-target", *volume("vda"), a("boot"), VOLUMES),
    ("volume-at-a-partition", *volume("vdb1"), a("boot"), VOLUMES),
    (
        "volume-at-no-index",
        *after("vdb", volume("vd" + "z" * 9)),
        a("boot"),
        VOLUMES,
    ),
    (
        "volume-without-a-bus",
        DISK,
        volume()[1].removesuffix(END).replace(' bus="virtio"', "") + DISK,
        a("boot"),
        VOLUMES,
    ),
    (
        "swap-before-the-root-disk",
        *first(more("disk.swap")),
        a("boot"),
        {"more": ["disk.swap"]},
    ),
    (
        # its bus comes first then, and a volume on it
        "config-drive-before-the-root-disk",
        *first(more("disk.config", CDROM, extra="<readonly/>")),
        a("boot"),
        CONFIG,
    ),
    ("root-disk-twice-targeted", TARGET, TARGET + TARGET, a("boot"), {}),
    ("root-disk-untargeted", TARGET, "", a("boot"), {}),
    (
        "root-disk-without-a-bus",
        TARGET,
        TARGET.replace(' bus="virtio"', ""),
        a("boot"),
        {},
    ),
    ("rescue-behind-the-own-disk", *more("disk.rescue"), a("boot"), RESCUE),
    (
        "rescue-above-the-own-disk",
        *first(plain_disk("disk.rescue")),
        a("boot"),
        PLAIN,
    ),
    (
        "plain-rescue-as-cdrom",
        *first(plain_disk("disk.rescue", "hda", "ide", "cdrom")),
        a("boot"),
        PLAIN,
    ),
]
