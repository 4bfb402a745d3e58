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
"""mh-nova-compute with something of it changed, for a test."""

from __future__ import annotations

import collections.abc
import typing


def run(patch: collections.abc.Callable[[], None]) -> int:
    """Serve until told to end.

    :param patch: called when nova has chosen its threading model and read
        its options: not before, since its periodic tasks read theirs when
        they are imported.
    """
    import nova.cmd.compute  # chooses the threading model: the first

    parse = nova.cmd.compute.config.parse_args

    def parsed(*args: typing.Any, **kw: typing.Any) -> None:
        parse(*args, **kw)
        patch()

    nova.cmd.compute.config.parse_args = parsed
    from mh_nova.cmd import compute

    return compute.main() or 0
