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

"""Makes ``compute_driver = mh.TrustedLibvirtDriver`` loadable.

Nova has no extension point for virt drivers: it imports
``nova.virt.<compute_driver>``. A finder for exactly the module name
``nova.virt.mh`` bridges to our stevedore namespace. Nothing of nova is
imported here, because nova decides about its threading model at its own
first import.
"""

import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Sequence
from types import ModuleType

MODULE = "nova.virt.mh"
CLASS = "TrustedLibvirtDriver"
NAMESPACE = "mh_nova.driver"
NAME = "libvirt"


class _Loader(importlib.abc.Loader):
    def create_module(
        self, spec: importlib.machinery.ModuleSpec
    ) -> ModuleType | None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        # Runs when nova loads its driver, so nova is fully imported by now.
        from stevedore import driver
        from stevedore.exception import NoMatches

        try:
            manager = driver.DriverManager(
                NAMESPACE, NAME, invoke_on_load=False
            )
        except NoMatches as exc:
            # nova ends with a clear message on an ImportError only
            raise ImportError(
                f"no driver {NAME!r} in {NAMESPACE!r}: is mystery-hill "
                "installed with its entry points? [hook.bootstrap.driver]"
            ) from exc
        setattr(module, CLASS, manager.driver)


class _Finder(importlib.abc.MetaPathFinder):
    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None,
        target: ModuleType | None = None,
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != MODULE:
            return None
        return importlib.util.spec_from_loader(MODULE, _Loader())


def install() -> None:
    """Add the finder to this process, once."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.append(_Finder())
