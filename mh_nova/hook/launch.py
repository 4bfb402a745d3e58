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

"""Getting one instance's encrypted disk: prepare, download, make.

The hook moves ciphertext and asks; the agent hashes, holds it against the
manifest, gets the key and writes the disks.
"""

import contextlib
import glob
import os
from collections.abc import Callable, Iterator
from typing import Any

import nova.conf
from nova import exception, utils
from nova.virt import images
from nova.virt.libvirt import imagebackend, imagecache
from oslo_log import log as logging
from oslo_utils import fileutils

from mh_core.errors import Denied
from mh_core.fields import Fields
from mh_nova.hook import disks, download, firmware, inspection, properties
from mh_nova.hook.agent_client import (
    AgentClient,
    PrepareRequest,
)
from mh_nova.hook.arrive import PART as PART
from mh_nova.hook.arrive import Arrivals, user_data_digest
from mh_nova.hook.description import Description
from mh_nova.hook.early import Early, Gate

CONF = nova.conf.CONF
LOG = logging.getLogger(__name__)
#: ``_`` and digits: the names nova's image cache manager keeps while an
#: instance uses the image, and deletes by age afterwards.
SUFFIX = "_36"
MISSING = "hook.image.missing"
TICKET = "mh_ticket"
ROOT = disks.ROOT
#: Purpose of a key request for a guest that comes in by live migration.
COMING_IN = "migrate-in"


def base_path(image: str) -> str:
    """Where the ciphertext of an image lies on this host."""
    directory = os.path.join(
        CONF.instances_path, CONF.image_cache.subdirectory_name
    )
    name: str = imagecache.get_cache_fname(image) + SUFFIX
    return os.path.join(directory, name)


def _nothing(fields: Fields) -> None:
    """An answer without members."""


class Launcher(Arrivals):
    """Shared by the driver and its image backend."""

    def __init__(self, client: AgentClient) -> None:
        super().__init__(client)
        self._early = Early()
        # guests that come in, of which the agent is told once their
        # directory is there: their other disks, and what the source told
        self._awaited: dict[str, tuple[disks.Disks, Description | None]] = {}

    def early(
        self, context: Any, instance: Any, require: Callable[[], None]
    ) -> None:
        """Begin what :meth:`launch` will ask for, and do not wait for it.

        Nothing here refuses; :meth:`launch` does all of it again where it
        failed, or where other disks are wanted by then.

        :param require: raises where this host is not to be asked.
        """
        more = disks.wanted(instance, None)

        def work(gate: Gate) -> None:
            require()
            self.prepare(context, instance, "launch", more=more, gate=gate)

        self._early.begin(instance.uuid, more, work)

    def drop(self, instance: Any) -> None:
        """What :meth:`early` began, and :meth:`launch` will not take."""
        self._early.drop(instance.uuid)

    def ask_launch(
        self, context: Any, instance: Any, more: disks.Disks
    ) -> None:
        """Would :meth:`launch` be refused?  It uses the answer.

        :param more: disks beside the root disk.
        :raises MHError: as :meth:`prepare`; the key server's, by the agent.
        """
        request, _ = self._request(context, instance, "launch", 0, more)
        self._client.answer(
            "ask-launch", request.to_dict(), _nothing, patient=True
        )

    def ask_start(self, instance: Any) -> None:
        """Would a start be refused?  The one that follows uses the answer.

        :raises MHError: the agent's; the key server's.
        """
        self._client.answer(
            "ask-start", {"instance": instance.uuid}, _nothing, patient=True
        )

    def prepare(
        self,
        context: Any,
        instance: Any,
        purpose: str,
        size: int = 0,
        more: disks.Disks | None = None,
        gate: Gate | None = None,
    ) -> properties.ImageFacts:
        """Tell the agent, so that the key comes while the image downloads.

        :param purpose: of ``mh_core.request.PURPOSES``.
        :param size: of a root disk that is there already, bytes.
        :param more: disks beside the root disk; None for those that are
            there.
        :param gate: that the agent is told through.
        :raises MHError: ``hook.image.*``, ``hook.launch.*``, the agent's.
        """
        if more is None:
            more = disks.there(instance)
        request, facts = self._request(context, instance, purpose, size, more)
        with (gate or Gate()).passing():
            self._client.prepare(request)
        return facts

    @staticmethod
    def _request(
        context: Any,
        instance: Any,
        purpose: str,
        size: int,
        more: disks.Disks,
    ) -> tuple[PrepareRequest, properties.ImageFacts]:
        try:
            image = images.IMAGE_API.get(context, instance.image_ref)
        except exception.ImageNotFound as exc:
            raise Denied(
                "hook.image.missing",
                "the image is not, or no longer, in the image service",
            ) from exc
        facts = properties.read(image)
        if facts.image != instance.image_ref:
            raise Denied("hook.image.reference", "another image came back")
        root = (instance.flavor.root_gb or 0) * 1024**3
        if root and facts.virtual_size > root:
            raise Denied(
                "hook.launch.disk-size",
                "the flavor's root disk is smaller than the image",
            )
        request = PrepareRequest(
            instance=instance.uuid,
            image=facts.image,
            project=instance.project_id,
            user=instance.user_id,
            host=CONF.host,
            key_url=facts.key_url,
            key_id=facts.key_id,
            manifest=facts.manifest,
            ticket=(instance.metadata or {}).get(TICKET, ""),
            compat=facts.compat,
            purpose=purpose,
            virtual_size=facts.virtual_size,
            disks=((ROOT, size or root or facts.virtual_size), *more),
            user_data_digest=user_data_digest(instance.user_data),
            vtpm=bool(firmware.vtpm(instance)),
        )
        return request, facts

    @contextlib.contextmanager
    def launch(
        self, context: Any, instance: Any, more: disks.Disks
    ) -> Iterator[None]:
        """Around ``spawn``: prepared before, a launch while it lasts.

        :param more: disks beside the root disk.
        """
        if not self._early.take(instance.uuid, more):
            self.prepare(context, instance, "launch", more=more)
        with self._purposely(instance.uuid, "launch"):
            yield

    @contextlib.contextmanager
    def coming_in(
        self,
        context: Any,
        instance: Any,
        more: disks.Disks,
        described: Description | None,
    ) -> Iterator[None]:
        """Around ``pre_live_migration``: new disks for a guest that runs.

        A config drive is no new disk; :meth:`came_in` is called when nova
        has made the directory that it is copied to.

        :param more: disks beside the root disk.
        :param described: of a root disk without a base, whose key the image
            service does not know.
        """
        if described is None and disks.CONFIG not in dict(more):
            self.prepare(context, instance, COMING_IN, more=more)
        else:
            self._awaited[instance.uuid] = more, described
        try:
            with self._purposely(
                instance.uuid, COMING_IN, instance.host or ""
            ):
                yield
        finally:
            self._awaited.pop(instance.uuid, None)

    def came_in(self, context: Any, instance: Any, directory: str) -> None:
        """Copy the config drive of a guest that comes in, if it has one;
        have its disks made, if no base is to be fetched for them.

        nova 34 copies no drive; and QEMU moves no disk that is only read.
        The agent is told afterwards: the key that it asks for hangs on the
        drive's header.

        :param directory: the instance's, the same on both hosts.
        :raises Denied: ``hook.migration.config-drive``.
        :raises MHError: as :meth:`prepare`; the agent's.
        """
        if instance.uuid not in self._awaited:
            return
        more, described = self._awaited.pop(instance.uuid)
        path = os.path.join(directory, disks.CONFIG)
        if disks.CONFIG in dict(more) and not self._copied(
            instance, path, path
        ):
            raise Denied(
                "hook.migration.config-drive",
                "the config drive could not be copied from the source",
            )
        if described is None:
            self.prepare(context, instance, COMING_IN, more=more)
        else:
            self._prepare_described(instance, COMING_IN, described)
            self._client.make(instance.uuid, downloaded=False)

    def make(self, context: Any, instance: Any, trusted_certs: Any) -> None:
        """Download the base unless it is there, and have the disks made.

        1. where nothing was prepared (a base that is missing at a later
           start), prepare;
        2. under the lock of the base: download to ``.part`` beside it, and
           nova's own inspection of untrusted image formats;
        3. the agent verifies, moves the file to its name, writes disks.

        :raises MHError: as :meth:`prepare`; ``hook.image.inspection``,
            ``hook.image.download``; the agent's.
        """
        if not self.prepared(instance.uuid):
            self.prepare(context, instance, "start")
        base = base_path(instance.image_ref)
        fileutils.ensure_tree(os.path.dirname(base))
        if not self._fetched(context, instance, base, trusted_certs):
            self._touch(base)
            self._client.make(instance.uuid, downloaded=False)

    def _fetched(
        self, context: Any, instance: Any, base: str, trusted_certs: Any
    ) -> bool:
        """Under the base's lock: fetch and make; False if it was there."""

        @utils.synchronized(
            os.path.basename(base),
            external=True,
            lock_path=os.path.join(CONF.instances_path, "locks"),
        )
        def fetch() -> bool:
            if os.path.exists(base):
                return False
            try:
                try:
                    self.download(
                        context, instance.image_ref, base + PART, trusted_certs
                    )
                except Denied as exc:
                    if exc.event != MISSING:
                        raise
                    self.copy(instance, base, exc)
                self._client.make(instance.uuid, downloaded=True)
            finally:
                # where the agent accepted it, it has another name by now
                fileutils.delete_if_exists(base + PART)
            return True

        return bool(fetch())

    @staticmethod
    def download(
        context: Any, image: str, part: str, trusted_certs: Any
    ) -> None:
        """An image's ciphertext, and nova's own inspection of it.

        :raises Denied: ``hook.image.missing``, ``hook.image.inspection``,
            ``hook.image.download``.
        """
        try:
            download.fetch(context, image, part, trusted_certs)
            meta = images.IMAGE_API.get(context, image)
            inspection.inspect(properties.read(meta).form, image, part)
        except exception.ImageNotFound as exc:
            raise Denied(
                "hook.image.missing",
                "the image is not, or no longer, in the image service",
            ) from exc
        except exception.ImageUnacceptable as exc:
            raise Denied(
                "hook.image.inspection", exc.format_message()
            ) from exc
        except exception.NovaException as exc:
            # e.g. Glance's checksum, nova's signature check
            raise Denied("hook.image.download", exc.format_message()) from exc
        except OSError as exc:
            why = os.strerror(exc.errno) if exc.errno else "broken transfer"
            raise Denied(
                "hook.image.download",
                f"the image could not be downloaded: {why}",
            ) from exc

    @staticmethod
    def _touch(base: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            imagebackend._update_utime_ignore_eacces(base)

    @staticmethod
    def sweep() -> None:
        """Drop half downloads of a process that died; only at start."""
        pattern = os.path.join(
            glob.escape(
                os.path.join(
                    CONF.instances_path, CONF.image_cache.subdirectory_name
                )
            ),
            "*" + SUFFIX + PART,
        )
        for part in glob.glob(pattern):
            LOG.info("Removing the half download %s", part)
            fileutils.delete_if_exists(part)
