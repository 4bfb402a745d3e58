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
"""drive: a config drive, written between nova's definition and its start.

nova fills a config drive when libvirt knows the domain, since it tells the
guest of the devices' addresses. The key was released for the start that is
under way; what the drive may hold decides :mod:`.config_drive`.
"""

from collections.abc import Mapping
from dataclasses import replace

from mh_core.errors import Conflict, MHError
from mh_core.launch_policy import LaunchPolicy
from mh_nova.agent import config_drive
from mh_nova.agent.attempt import Attempt, Opened, Stage
from mh_nova.agent.work import EVENT, Work


class Driving(Work):
    """The verb within a start."""

    def drive(
        self,
        instance: str,
        name: str,
        files: Mapping[str, bytes],
        also: tuple[LaunchPolicy, ...] = (),
    ) -> None:
        """Decide, write, and remember what was written.

        :param name: ``disk.config`` or ``disk.config.rescue``.
        :param files: path to content.
        :param also: launch policies that must allow it as well.
        :raises Conflict: ``agent.drive.no-start``, ``agent.overlay.exists``.
        :raises Denied: ``agent.config-drive.*``.
        """
        with self._attempts.own(instance):
            attempt, opened, policies = self._starting(instance, name)
            try:
                image = config_drive.image(
                    config_drive.compose(files, (*policies, *also), instance)
                )
                self._write_drive(attempt, opened, name, image)
            except MHError as exc:
                self._refused(attempt, exc)
                raise

    def _starting(
        self, instance: str, name: str
    ) -> tuple[Attempt, Opened, tuple[LaunchPolicy, ...]]:
        attempt = self._attempts.get(instance)
        if (
            attempt is None
            or attempt.stage is not Stage.STARTING
            or attempt.measured is None
            or attempt.opened is None
            or not attempt.opened.fresh()
            or name not in attempt.opened.payload.overlay_keys
        ):
            raise Conflict(
                "agent.drive.no-start",
                "no start of this instance waits for a config drive",
            )
        policies = (
            attempt.measured.manifest.launch_policy,
            attempt.opened.payload.launch_policy,
        )
        return attempt, attempt.opened, policies

    def _write_drive(
        self, attempt: Attempt, opened: Opened, name: str, image: bytes
    ) -> None:
        record = attempt.record
        (disk,) = [one for one in record.disks if one.name == name]
        disk = replace(disk, size=len(image), sha256="")
        written = self._p.overlays.write(
            record.instance,
            disk,
            opened.payload.overlay_keys[name],
            None,
            image,
        )
        attempt.record = replace(
            record,
            disks=tuple(
                replace(disk, sha256=written) if one.name == name else one
                for one in record.disks
            ),
        )
        self._p.store.save_instance(attempt.record)
        self._p.journal.write(
            EVENT + ".drive",
            record.instance,
            disk=name,
            sha256=written,
            request=opened.request.digest().hex(),
        )
