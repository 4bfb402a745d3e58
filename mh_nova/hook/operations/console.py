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
"""What a user sees of a guest, and could type at it."""

from typing import Any

from nova import exception
from nova.virt.libvirt.driver import LibvirtDriver

from mh_core.errors import MHError
from mh_nova.hook.base import TrustedDriver


class Console(LibvirtDriver, TrustedDriver):
    """Output only; nothing where what is known of the instance disagrees.

    A protected guest has no device that can be typed at; these are refused
    all the same, since what a domain has is for the agent to say, at a
    start.
    """

    def get_console_output(self, context: Any, instance: Any) -> Any:
        try:
            self._mh_decide(instance)
        except MHError as error:
            raise exception.ConsoleNotAvailable() from error
        return super().get_console_output(context, instance)

    def get_vnc_console(self, context: Any, instance: Any) -> Any:
        self._mh_no_console(instance, "vnc")
        return super().get_vnc_console(context, instance)

    def get_spice_console(self, context: Any, instance: Any) -> Any:
        self._mh_no_console(instance, "spice")
        return super().get_spice_console(context, instance)

    def get_serial_console(self, context: Any, instance: Any) -> Any:
        self._mh_no_console(instance, "serial")
        return super().get_serial_console(context, instance)

    def _mh_no_console(self, instance: Any, kind: str) -> None:
        if self._mh_protected(instance):
            raise exception.ConsoleTypeUnavailable(console_type=kind)
