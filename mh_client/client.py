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
"""Everything the commands use, made when it is first needed."""

import sys
from collections.abc import Callable
from functools import cached_property
from typing import Any, TextIO

from mh_client import config
from mh_client.attest import Attest
from mh_client.flavors import Flavors
from mh_client.hosts import Hosts
from mh_client.images import Images
from mh_client.keys import Keys
from mh_client.kms import Kms
from mh_client.launch import Launch
from mh_client.nova import Nova
from mh_client.rescue import Rescue
from mh_client.servers import Servers
from mh_client.steps import Steps


class TrustedClient:
    """
    :param path: configuration file, ``None`` for the default.
    :param image_api: makes the adapter of Glance.
    :param compute_api: makes the adapter of nova.
    """

    def __init__(
        self,
        path: str | None,
        image_api: Callable[[], Any],
        compute_api: Callable[[], Any],
        stream: TextIO | None = None,
    ) -> None:
        self._path = path
        self._image_api = image_api
        self._compute_api = compute_api
        self._stream = stream or sys.stderr

    def notice(self, text: str) -> None:
        self._stream.write(text + "\n")

    @cached_property
    def config(self) -> config.Config:
        return config.load(self._path)

    @cached_property
    def kms(self) -> Kms:
        return Kms(self.config.kms)

    @cached_property
    def attest(self) -> Attest:
        return Attest(self.config)

    @cached_property
    def keys(self) -> Keys:
        return Keys(self.config, self.kms, lambda: self.attest, self.notice)

    @cached_property
    def hosts(self) -> Hosts:
        return Hosts(self.attest)

    @cached_property
    def images(self) -> Images:
        return Images(
            self.config,
            self.kms,
            self._image_api,
            self.notice,
            self._stream,
            lambda: self.attest,
        )

    @cached_property
    def flavors(self) -> Flavors:
        return Flavors(self._compute_api())

    @cached_property
    def servers(self) -> Servers:
        return Servers(
            Nova(self._compute_api()),
            self.kms,
            lambda: self.attest,
            self.images,
        )

    @cached_property
    def launch(self) -> Launch:
        return Launch(self.servers, Steps(self._stream))

    @cached_property
    def rescue(self) -> Rescue:
        return Rescue(self.servers, Steps(self._stream))
