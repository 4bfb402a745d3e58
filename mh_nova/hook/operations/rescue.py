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
"""Rescue, and the power-off that it begins with."""

import contextlib
from collections.abc import Iterator
from typing import Any

import nova.conf
from nova.compute import task_states, vm_states
from nova.virt import hardware
from nova.virt.libvirt.driver import LibvirtDriver

from mh_core.errors import Denied, MHError
from mh_nova.hook import faults, restore
from mh_nova.hook.base import TrustedDriver

CONF = nova.conf.CONF


class Rescue(LibvirtDriver, TrustedDriver):
    """Another image beside the instance's own disk, where both keys'
    owners allow it."""

    def power_off(
        self, instance: Any, timeout: int = 0, retry_interval: int = 0
    ) -> None:
        """Stopping is always possible, but a rescue stops first.

        This is the earliest point of it where nova asks its driver. It does
        not say yet what image a rescue is to boot, so a rescue stops the
        guest itself, when it knows that it may go on.
        """
        rescuing = instance.task_state == task_states.RESCUING
        if rescuing and self._mh_protected(instance):
            self._mh_rescues.waits[instance.uuid] = (timeout, retry_interval)
            return
        super().power_off(instance, timeout, retry_interval)

    def rescue(
        self,
        context: Any,
        instance: Any,
        network_info: Any,
        image_meta: Any,
        rescue_password: Any,
        block_device_info: Any,
        share_info: Any,
    ) -> None:
        """Refused before the guest is touched, or done.

        1. ours or not; disagreement refuses;
        2. what a rescue may not ask for (stable device rescue, a kernel, a
           share of the host);
        3. the rescue image, by the agent's decision;
        4. the guest is stopped, and nova goes on, through the gate.
        """
        if not self._mh_protected(instance):
            super().rescue(
                context,
                instance,
                network_info,
                image_meta,
                rescue_password,
                block_device_info,
                share_info,
            )
            return
        timeout, interval = self._mh_rescues.waits.pop(instance.uuid, (0, 0))
        with _kept(instance, instance.vm_state) as state:
            self._mh_decide(instance)
            _check(image_meta, share_info)
            self._mh_require()
            image = _image(instance, image_meta)
            with self._mh_rescues.rescue(context, instance, image):
                # from here on a failure leaves it stopped, as it then is
                state.append(vm_states.STOPPED)
                super().power_off(instance, timeout, interval)
                super().rescue(
                    context,
                    instance,
                    network_info,
                    image_meta,
                    rescue_password,
                    block_device_info,
                    share_info,
                )

    def unrescue(self, context: Any, instance: Any) -> None:
        """Through the gate, with the domain that the rescue put aside.

        Refused, it stays rescued, so that it can be tried again.
        """
        if not self._mh_protected(instance):
            super().unrescue(context, instance)
            return
        with _kept(instance, vm_states.RESCUED):
            self._mh_decide(instance)
            self._mh_require()
            super().unrescue(context, instance)


@contextlib.contextmanager
def _kept(instance: Any, state: str) -> Iterator[list[str]]:
    """Whatever fails, the server ends in the state it is really in: nova
    would leave it in ERROR.

    :returns: states; the last one counts.
    """
    states = [state]
    done = False
    try:
        yield states
        done = True
    except MHError as error:
        raise faults.refusal(error) from error
    finally:
        if not done:
            restore.vm_state(instance, states[-1])


def _image(instance: Any, image_meta: Any) -> str:
    """Glance id of the rescue image, as nova chooses it."""
    if image_meta.obj_attr_is_set("id") and image_meta.id:
        return str(image_meta.id)
    return str(CONF.libvirt.rescue_image_id or instance.image_ref)


def _check(image_meta: Any, share_info: Any) -> None:
    """:raises Denied: ``hook.rescue.device``, ``hook.launch.kernel``,
    ``hook.refused.share``."""
    if hardware.check_hw_rescue_props(image_meta):
        raise Denied(
            "hook.rescue.device",
            "a rescue image with hw_rescue_device or hw_rescue_bus would "
            "have a boot order of its own",
        )
    if CONF.libvirt.rescue_kernel_id or CONF.libvirt.rescue_ramdisk_id:
        raise Denied(
            "hook.launch.kernel",
            "a rescue boots from its own disk; unset [libvirt] "
            "rescue_kernel_id and rescue_ramdisk_id",
        )
    if share_info:
        raise Denied(
            "hook.refused.share",
            "a host share may not be attached to a trusted instance",
        )
