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
"""A disk that becomes an image.

The agent makes an encrypted file, the hook stores it as the image, and only
then does the agent bring the key to the tenant's key server: whatever breaks
off before leaves an image that nova deletes, and no key.  nova's own path is
never taken for a protected instance.
"""

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import nova.conf
from nova import exception
from nova.compute import task_states
from nova.compute import utils as compute_utils
from nova.virt.libvirt import utils as libvirt_utils
from nova.virt.libvirt.driver import LibvirtDriver
from oslo_log import log as logging

from mh_core.errors import Denied, MHError
from mh_nova.hook import faults
from mh_nova.hook.base import TrustedDriver
from mh_nova.hook.copies import CopyClient, Made

CONF = nova.conf.CONF
LOG = logging.getLogger(__name__)
#: Name of the agent's file in the instance's directory, before the image.
FILE = "snapshot-"
_GONE = "agent.block-copy.gone"
#: Properties of the source that are not true of the snapshot.
_OWN = ("mh_", "os_encrypt_", "os_decrypt_", "img_signature")
_TRAIT = "trait:CUSTOM_MH_TRUSTED_LAUNCH"


class Snapshot(LibvirtDriver, TrustedDriver):
    """Encrypted under a new key of the tenant's."""

    _mh_copies: CopyClient

    def snapshot(
        self,
        context: Any,
        instance: Any,
        image_id: str,
        update_task_state: Any,
    ) -> None:
        """
        1. ours or not; disagreement refuses;
        2. the agent has the key server release the keys for this, copies
           the disk into an encrypted file, and measures it;
        3. the agent is told that, and the file is stored as the image, with
           properties that are the agent's, whatever the source's were
           (``hook.snapshot.service``);
        4. the agent brings the new key to the key server;
        5. whatever happened, the agent's file goes.
        """
        if not self._mh_protected(instance):
            super().snapshot(context, instance, image_id, update_task_state)
            return
        with _refused(context, instance):
            # 1
            if not self._mh_decide(instance):
                raise Denied("hook.ours.disagree", "it cannot be told")
            self._mh_require()
            try:
                # 2
                self._mh_copies.snapshot(instance.uuid, image_id)
                update_task_state(task_state=task_states.IMAGE_PENDING_UPLOAD)
                made = self._mh_copies.wait(instance.uuid)
                if made is None:
                    raise Denied("hook.agent.answer", "no snapshot was made")
                update_task_state(
                    task_state=task_states.IMAGE_UPLOADING,
                    expected_state=task_states.IMAGE_PENDING_UPLOAD,
                )
                # 3
                with _image_service():
                    self._mh_store(context, instance, image_id, made)
                # 4
                self._mh_copies.register(instance.uuid)
            finally:
                # 5
                self._mh_end_copy(instance)
        LOG.info("Encrypted snapshot %s is stored", image_id)

    def _mh_store(
        self, context: Any, instance: Any, image_id: str, made: Made
    ) -> None:
        """
        :raises Denied: ``hook.snapshot.file``, ``hook.snapshot.stored``.
        """
        image = self._image_api.get(context, image_id)
        metadata = self._create_snapshot_metadata(
            instance.image_meta, instance, "qcow2", image["name"]
        )
        inherited = {
            name: value
            for name, value in (image.get("properties") or {}).items()
            if not name.startswith(_OWN)
        }
        metadata.update(
            # whatever snapshot_image_format says
            disk_format="qcow2",
            container_format="bare",
            properties={
                **inherited,
                **metadata["properties"],
                **_properties(made),
            },
        )
        path = os.path.join(
            libvirt_utils.get_instance_path(instance), FILE + image_id
        )
        try:
            file = open(path, "rb")
        except OSError as exc:
            raise Denied(
                "hook.snapshot.file", "the agent's file cannot be read"
            ) from exc
        with file, compute_utils.disk_ops_semaphore:
            self._mh_copies.storing(instance.uuid)
            self._image_api.update(
                context, image_id, metadata, file, purge_props=True
            )
        stored = self._image_api.get(context, image_id)
        if stored.get("size") != made.size:
            raise Denied(
                "hook.snapshot.stored",
                "the image service does not hold the whole image",
            )

    def _mh_end_copy(self, instance: Any) -> None:
        """The agent sweeps by itself when it, or nova-compute, restarts."""
        try:
            self._mh_copies.end(instance.uuid)
        except MHError as error:
            LOG.warning(
                "The agent could not be told that the copy is over: %s",
                error,
                instance=instance,
            )

    def volume_snapshot_create(
        self, context: Any, instance: Any, volume_id: str, create_info: Any
    ) -> None:
        if self._mh_protected(instance):
            raise faults.refusal(
                Denied(
                    "hook.refused.volume-snapshot",
                    "a snapshot would be in the clear",
                )
            )
        super().volume_snapshot_create(
            context, instance, volume_id, create_info
        )


def _properties(made: Made) -> dict[str, str]:
    """Of the new image; the same names as ``mh_glance.properties``."""
    return {
        "os_encrypt_format": "LUKSv1",
        "os_encrypt_key_id": made.key_id,
        "os_encrypt_key_deletion_policy": "do_not_delete",
        "os_decrypt_size": str(made.virtual_size),
        "mh_version": "1",
        "mh_key_url": made.key_url,
        "mh_manifest": made.manifest,
        _TRAIT: "required",
    }


def _deleted(instance: Any) -> bool:
    """Or about to be; else the guest has ended by itself, and the word for
    a deletion would leave the server in its task for ever."""
    try:
        instance.refresh()
    except exception.InstanceNotFound:
        return True
    return instance.task_state in (
        task_states.DELETING,
        task_states.SOFT_DELETING,
    )


@contextlib.contextmanager
def _image_service() -> Iterator[None]:
    """Say what it was that failed; an image that somebody has deleted
    meanwhile is nova's to deal with."""
    try:
        yield
    except exception.ImageNotFound:
        raise
    except exception.NovaException as error:
        raise Denied(
            "hook.snapshot.service", f"the image service: {error}"
        ) from error


@contextlib.contextmanager
def _refused(context: Any, instance: Any) -> Iterator[None]:
    """Turn our errors into nova's, and say so in the action log: nova
    deletes the image, and shows nobody a fault."""
    try:
        yield
    except MHError as error:
        if error.event == _GONE and _deleted(instance):
            # nova's own word for it
            raise exception.InstanceNotFound(
                instance_id=instance.uuid
            ) from error
        refusal = faults.refusal(error)
        faults.record(context, instance, "mh_snapshot", refusal)
        raise refusal from error
