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
"""For ``[filter_scheduler] available_filters``: this package's filters."""

from typing import Any

from stevedore import named

NAMESPACE = "mh_scheduler.filters"


def _missing(names: set[str]) -> None:
    # A filter that silently is not there would let every host pass.
    raise RuntimeError(
        f"[mh_scheduler] filters: not installed: {', '.join(sorted(names))}"
    )


def _failed(_manager: Any, entry_point: Any, error: BaseException) -> None:
    raise RuntimeError(f"the filter {entry_point.name} does not load") from (
        error
    )


def all_filters() -> list[type]:
    """The classes named by ``[mh_scheduler] filters``.

    :raises RuntimeError: one of them is absent or does not load.
    """
    import nova.conf

    from mh_scheduler import conf

    conf.register_opts(nova.conf.CONF)
    found = named.NamedExtensionManager(
        NAMESPACE,
        nova.conf.CONF.mh_scheduler.filters,
        on_missing_entrypoints_callback=_missing,
        on_load_failure_callback=_failed,
    )
    return [extension.plugin for extension in found]
