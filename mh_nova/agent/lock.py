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
"""One at a time: a lock of this process and of the machine."""

import contextlib
import fcntl
import os
import threading
from collections.abc import Iterator


class MachineLock:
    """
    :param path: file of the advisory lock that all of our processes share;
        made where it is not there.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._lock = threading.RLock()

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """:raises OSError: the file can be neither made nor opened."""
        with self._lock:
            fd = os.open(
                self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600
            )
            try:
                fcntl.flock(fd, fcntl.LOCK_EX)
                yield
            finally:
                os.close(fd)
