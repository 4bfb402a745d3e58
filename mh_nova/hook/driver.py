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

"""``mh.TrustedLibvirtDriver``: nova's libvirt driver with a key gate.

Thin on purpose: every override asks whether the instance is ours, and where
it is not, calls nova's own method and nothing else.
"""

import logging as std_logging
from typing import Any

import nova.conf
from nova import exception
from oslo_concurrency import processutils
from oslo_log import log as logging

from mh_core.errors import Denied, MHError
from mh_core.secret import protect
from mh_core.verdict import Event
from mh_nova.hook import (
    compat,
    conf,
    disks,
    faults,
    launch,
    ours,
    precache,
    recover,
    rescue,
    wanted,
)
from mh_nova.hook.agent_client import AgentClient
from mh_nova.hook.backend import MHBackend
from mh_nova.hook.copies import CopyClient
from mh_nova.hook.disk_client import DiskClient
from mh_nova.hook.guard import TRAIT, Guard
from mh_nova.hook.operations import Operations

CONF = nova.conf.CONF
conf.register_opts(CONF)
LOG = logging.getLogger(__name__)


class TrustedLibvirtDriver(Operations):
    """Loaded by ``[DEFAULT] compute_driver = mh.TrustedLibvirtDriver``.

    :raises Denied: ``hook.compat.signature``, ``hook.compat.missing``:
        nova-compute ends, since no instance would be served rightly.
    """

    def __init__(self, virtapi: Any, read_only: bool = False) -> None:
        findings = compat.check()
        super().__init__(virtapi, read_only)
        for handler in std_logging.getLogger().handlers:
            protect(handler)
        for event in findings:
            LOG.error("%s [%s]", event.detail, event.id)
        if not CONF.mh.strict_compat:
            findings = ()
        if CONF.image_cache.subdirectory_name != "_base":
            findings += (
                Event(
                    "hook.guard.cache-name",
                    "[image_cache] subdirectory_name must be _base",
                ),
            )
        self._mh_client = AgentClient(
            CONF.mh.agent_socket,
            CONF.mh.agent_timeout,
            CONF.mh.launch_timeout,
        )
        self._mh_guard = Guard(self._mh_client, findings, CONF.mh.status_ttl)
        self._mh_copies = CopyClient(self._mh_client)
        self._mh_ours = ours.Ours(self._mh_client)
        self._mh_launcher = launch.Launcher(self._mh_client)
        self._mh_forgetting = recover.Forgetting(self._mh_client)
        self._mh_begun = recover.Begun()
        self._mh_rescues = rescue.Rescues(self._mh_client)
        self.image_backend = MHBackend(
            CONF.use_cow_images,
            self._mh_client,
            self._mh_launcher,
            self._mh_ours,
            self._mh_rescues,
        )

    # The host

    def init_host(self, host: str) -> None:
        super().init_host(host)
        self._mh_launcher.sweep()
        self._mh_sweep()
        # logs what there is; running guests go on whatever it is
        self._mh_guard.findings(fresh=True)

    def update_provider_tree(
        self, provider_tree: Any, nodename: str, allocations: Any = None
    ) -> None:
        if self._mh_guard.trusted():
            provider_tree.add_traits(nodename, TRAIT)
        else:
            provider_tree.remove_traits(nodename, TRAIT)
        super().update_provider_tree(
            provider_tree, nodename, allocations=allocations
        )

    # Launch and every start

    def spawn(
        self,
        context: Any,
        instance: Any,
        image_meta: Any,
        injected_files: Any,
        admin_password: Any,
        allocations: Any,
        network_info: Any = None,
        block_device_info: Any = None,
        power_on: bool = True,
        accel_info: Any = None,
    ) -> None:
        def build() -> None:
            super(TrustedLibvirtDriver, self).spawn(
                context,
                instance,
                image_meta,
                injected_files,
                admin_password,
                allocations,
                network_info=network_info,
                block_device_info=block_device_info,
                power_on=power_on,
                accel_info=accel_info,
            )

        with faults.at_spawn():
            if not self._mh_decide(instance):
                return build()
            done = False
            try:
                self._mh_check_shape(
                    instance, block_device_info, files=injected_files
                )
                self._mh_require()
                more = disks.wanted(instance, block_device_info)
                with self._mh_launcher.launch(context, instance, more):
                    build()
                done = True
            finally:
                self._mh_begun.discard(instance.uuid)
                if not done:
                    self._mh_forget(instance)

    def _create_guest(
        self,
        context: Any,
        xml: str,
        instance: Any,
        power_on: bool = True,
        pause: bool = False,
        post_xml_callback: Any = None,
    ) -> Any:
        """The gate of every start.

        1. ours or not; disagreement refuses;
        2. the agent admits this very XML, has the key released and defines
           the secrets;
        3. nova starts the guest;
        4. whatever happened, the agent is told, and takes the secrets away.
        """

        def create() -> Any:
            return super(TrustedLibvirtDriver, self)._create_guest(
                context,
                xml,
                instance,
                power_on=power_on,
                pause=pause,
                post_xml_callback=post_xml_callback,
            )

        purpose = self._mh_launcher.purpose(instance.uuid)
        launching = purpose == "launch"
        with faults.at_spawn() if launching else faults.at_start(instance):
            if not self._mh_decide(instance):
                return create()
            if not (power_on or pause):
                return create()
            if not launching:
                self._mh_require()
            ok = False
            try:
                event = self._mh_client.start(
                    instance.uuid,
                    xml,
                    self._mh_rescues.purpose(instance.uuid) or purpose,
                )
                LOG.info("Start admitted [%s]", event, instance=instance)
                guest = create()
                ok = True
                self._mh_begun.add(instance.uuid)
                faults.tell(instance, "")
                return guest
            finally:
                self._mh_started(instance, ok)

    def _try_fetch_image_cache(
        self,
        image: Any,
        fetch_func: Any,
        context: Any,
        filename: str,
        image_id: str,
        instance: Any,
        size: Any,
        fallback_from_host: Any = None,
    ) -> None:
        """Where the marks of an encrypted image were stripped, say so.

        Stock nova fails, too, but with a sentence of qemu-img's, or only
        when libvirt starts the guest, and then tries the next host.
        """

        def stripped() -> Denied:
            return Denied(
                "hook.stripped",
                "the image is encrypted, but its properties do not say so",
            )

        if self._mh_ours.claimed(instance):
            super()._try_fetch_image_cache(
                image,
                fetch_func,
                context,
                filename,
                image_id,
                instance,
                size,
                fallback_from_host,
            )
            return
        try:
            super()._try_fetch_image_cache(
                image,
                fetch_func,
                context,
                filename,
                image_id,
                instance,
                size,
                fallback_from_host,
            )
        except (
            exception.ImageUnacceptable,
            processutils.ProcessExecutionError,
        ) as exc:
            if "encrypt.key-secret" in str(exc):
                raise faults.abort(stripped()) from exc
            raise
        base = launch.base_path(image_id).removesuffix(launch.SUFFIX)
        if ours.header(base) is ours.Header.ENCRYPTED:
            raise faults.abort(stripped())

    # The end

    def _cleanup(
        self,
        context: Any,
        instance: Any,
        network_info: Any,
        block_device_info: Any = None,
        destroy_vifs: bool = True,
        cleanup_instance_dir: bool = False,
        cleanup_instance_disks: bool = False,
        destroy_secrets: bool = True,
    ) -> None:
        # asked before the files go, which are part of the answer
        forget = cleanup_instance_disks and self._mh_protected(instance)
        super()._cleanup(
            context,
            instance,
            network_info,
            block_device_info=block_device_info,
            destroy_vifs=destroy_vifs,
            cleanup_instance_dir=cleanup_instance_dir,
            cleanup_instance_disks=cleanup_instance_disks,
            destroy_secrets=destroy_secrets,
        )
        if forget:
            self._mh_forget(instance)

    # Decisions, as the contract has them

    def _mh_decide(self, instance: Any) -> bool:
        return self._mh_ours.decide(instance)

    def _mh_protected(self, instance: Any) -> bool:
        return self._mh_ours.protected(instance)

    def _mh_suspend(self, instance: Any) -> None:
        self._mh_client.suspend(instance.uuid)

    def _mh_precache(self, context: Any, image: Any) -> bool:
        return precache.precache(self._mh_client, context, image)

    def _mh_rebuild(self, instance: Any) -> None:
        self._mh_ours.rebuild(instance)

    def _mh_drive(
        self, instance: Any, name: str, files: dict[str, bytes]
    ) -> None:
        DiskClient(self._mh_client).drive(instance.uuid, name, files)

    def _mh_require(self) -> None:
        self._mh_guard.require()

    # Helpers

    _mh_check_shape = staticmethod(wanted.check)

    def _mh_sweep(self) -> None:
        """Copies that an earlier nova-compute waited for."""
        try:
            self._mh_copies.sweep()
        except MHError as error:
            LOG.warning("The agent could not be told to sweep: %s", error)

    def _mh_forget(self, instance: Any) -> None:
        """Must not keep nova from deleting: a record that stays holds no
        secret, and is of an instance that is gone."""
        # nova has not called off what it announced, in every case
        self._mh_launcher.drop(instance)
        try:
            self._mh_client.forget(instance.uuid)
        except MHError as error:
            LOG.warning("Agent did not forget: %s", error, instance=instance)

    def _mh_started(self, instance: Any, ok: bool) -> None:
        """The agent also drops its secrets by itself, a while later."""
        try:
            self._mh_client.started(instance.uuid, ok)
        except MHError as error:
            LOG.error(
                "The agent could not be told that the start is over: %s",
                error,
                instance=instance,
            )
