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

"""Policy checks, loaded by name; one that does not load stops the server."""

from collections.abc import Iterable, Mapping
from typing import Any

import stevedore

from mh_core.errors import Unavailable
from mh_kms.policy_checks.base import PolicyCheck
from mh_kms.release_policy import BUILT_IN

NAMESPACE = "mh_kms.policy_checks"


def _failed(manager: Any, entry_point: Any, error: BaseException) -> None:
    raise Unavailable(
        "kms.policy-check.load", f"check {entry_point.name!r} does not load"
    ) from error


def _missing(names: Iterable[str]) -> None:
    raise Unavailable(
        "kms.policy-check.load", "no such checks: " + ", ".join(sorted(names))
    )


def load(names: Iterable[str]) -> Mapping[str, PolicyCheck]:
    """The built-in checks and those named.

    :raises Unavailable: ``kms.policy-check.load``.
    """
    wanted = list(dict.fromkeys((*BUILT_IN, *names)))
    manager = stevedore.NamedExtensionManager(
        NAMESPACE,
        wanted,
        invoke_on_load=True,
        on_load_failure_callback=_failed,
        on_missing_entrypoints_callback=_missing,
    )
    checks = {one.name: one.obj for one in manager}
    for name in wanted:
        if not isinstance(checks.get(name), PolicyCheck):
            _missing([name])
    return checks
