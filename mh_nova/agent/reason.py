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

"""Why the host refused a system call, for people."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from mh_core.errors import Unavailable


def reason(error: OSError) -> str:
    """Without the names of files, which ``str(error)`` has."""
    return os.strerror(error.errno) if error.errno else "an unknown error"


def refused(error: OSError) -> Unavailable:
    """``agent.os``, with the cause."""
    return Unavailable(
        "agent.os", f"the host refused an operation: {reason(error)}"
    )


@contextmanager
def named() -> Iterator[None]:
    """Whatever the host refuses in here ends as any other refusal does.

    :raises Unavailable: ``agent.os``.
    """
    try:
        yield
    except OSError as exc:
        raise refused(exc) from exc
