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
"""What else can be asked of an instance: one module per operation.

Whether an instance is protected is asked first of all; where an operation
is refused, the error is of the kind after which nova leaves the instance in
the state it was in.
"""

from mh_nova.hook.operations.attach import Attach
from mh_nova.hook.operations.config_drive import ConfigDrive
from mh_nova.hook.operations.console import Console
from mh_nova.hook.operations.firmware import Firmware
from mh_nova.hook.operations.image_cache import ImageCache
from mh_nova.hook.operations.incoming import Incoming
from mh_nova.hook.operations.live_migration import LiveMigration
from mh_nova.hook.operations.migrate import Migrate
from mh_nova.hook.operations.prepare import Prepare
from mh_nova.hook.operations.rebuild import Rebuild
from mh_nova.hook.operations.recover import Recover
from mh_nova.hook.operations.rescue import Rescue
from mh_nova.hook.operations.shelve import Shelve
from mh_nova.hook.operations.snapshot import Snapshot
from mh_nova.hook.operations.stopped import Stopped
from mh_nova.hook.operations.suspend import Suspend
from mh_nova.hook.operations.volume import Volume
from mh_nova.hook.operations.volume_migration import VolumeMigration
from mh_nova.hook.operations.vtpm import VirtualTpm


class Operations(
    Prepare,
    Recover,
    ImageCache,
    Suspend,
    Console,
    Rebuild,
    Snapshot,
    Shelve,
    Rescue,
    Migrate,
    # over LiveMigration: it takes turns
    Incoming,
    LiveMigration,
    VolumeMigration,
    Attach,
    Volume,
    ConfigDrive,
    Stopped,
    VirtualTpm,
    Firmware,
):
    """Every operation that a driver for protected instances overrides."""
