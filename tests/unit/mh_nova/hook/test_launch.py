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

import base64
import hashlib

import pytest

from mh_core.errors import InputError
from mh_nova.hook import launch


@pytest.mark.parametrize("nothing", [None, ""])
def test_no_user_data(nothing: str | None) -> None:
    assert launch.user_data_digest(nothing) == ""


def test_user_data_is_digested_as_the_guest_gets_it() -> None:
    data = b"#cloud-config\n"
    text = base64.b64encode(data).decode()
    assert launch.user_data_digest(text) == hashlib.sha256(data).hexdigest()


def test_user_data_that_is_not_base64() -> None:
    with pytest.raises(InputError) as caught:
        launch.user_data_digest("A")
    assert caught.value.event == "hook.launch.user-data"
