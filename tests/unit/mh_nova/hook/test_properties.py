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

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mh_core.errors import Denied, InputError, MHError
from mh_nova.hook import properties

IMAGE = "33333333-3333-4333-8333-333333333333"
KEY = "44444444-4444-4444-8444-444444444444"
PROPERTIES = {
    "mh_version": "1",
    "mh_key_url": f"https://kms.example/v1/keys/{KEY}",
    "mh_manifest": "eyJh.eyJi.c2ln",
    "os_encrypt_format": "LUKSv1",
    "os_encrypt_key_id": KEY,
    "os_encrypt_key_deletion_policy": "do_not_delete",
    "os_decrypt_size": "1048576",
    "trait:CUSTOM_MH_TRUSTED_LAUNCH": "required",
}


def image(**changes: Any) -> dict[str, Any]:
    values = {**PROPERTIES, **changes}
    return {
        "id": IMAGE,
        "disk_format": "qcow2",
        "container_format": "bare",
        "properties": {
            name: value for name, value in values.items() if value is not None
        },
    }


def test_read() -> None:
    assert properties.read(image()) == properties.ImageFacts(
        image=IMAGE,
        key_url=f"https://kms.example/v1/keys/{KEY}",
        key_id=KEY,
        manifest="eyJh.eyJi.c2ln",
        virtual_size=1048576,
        compat=False,
    )


def test_the_seeds_key_url_asks_in_the_seeds_form() -> None:
    url = f"https://kms.example/data-encryption-key/request/{KEY}"
    assert properties.read(image(mh_key_url=url)).compat
    trap = f"https://kms.example/v1/keys/{KEY}?data-encryption-key/request/"
    assert not properties.read(image(mh_key_url=trap)).compat


def test_a_whole_number_as_number() -> None:
    facts = properties.read(image(os_decrypt_size=4096, mh_version=1))
    assert facts.virtual_size == 4096


def test_a_long_manifest() -> None:
    manifest = "e." + "A" * 30000 + ".c"
    assert properties.read(image(mh_manifest=manifest)).manifest == manifest


@pytest.mark.parametrize(
    ("changes", "event"),
    [
        ({"kernel_id": IMAGE}, "hook.launch.kernel"),
        ({"ramdisk_id": IMAGE}, "hook.launch.kernel"),
        ({"mh_version": None}, "hook.image.version"),
        ({"mh_version": "2"}, "hook.image.version"),
        ({"mh_version": ""}, "hook.image.version"),
    ],
)
def test_denied(changes: dict[str, Any], event: str) -> None:
    with pytest.raises(Denied) as caught:
        properties.read(image(**changes))
    assert caught.value.event == event


@pytest.mark.parametrize(
    ("disk", "container", "form"),
    [
        ("qcow2", "bare", "qcow2"),
        ("raw", "bare", "luks"),
        ("qcow2", "ova", "ova"),
        ("raw", "ova", ""),
        ("vmdk", "ova", ""),
        ("iso", "bare", ""),
        ("ami", "ami", ""),
    ],
)
def test_forms(disk: str, container: str, form: str) -> None:
    document = {**image(), "disk_format": disk, "container_format": container}
    try:
        found = properties.read(document).form
    except Denied as exc:
        found = ""
        event = exc.event
    else:
        event = "hook.image.format"
    assert (found, event) == (form, "hook.image.format")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("disk_format", "vmdk"),
        ("disk_format", None),
        ("container_format", "docker"),
    ],
)
def test_format(name: str, value: Any) -> None:
    with pytest.raises(Denied) as caught:
        properties.read({**image(), name: value})
    assert caught.value.event == "hook.image.format"


@pytest.mark.parametrize(
    "changes",
    [
        {"mh_key_url": None},
        {"mh_key_url": ""},
        {"mh_key_url": "x" * 3000},
        {"mh_key_url": "https://[broken"},
        {"mh_manifest": None},
        {"mh_manifest": "no token"},
        {"mh_manifest": "e." + "A" * 40000 + ".c"},
        {"os_encrypt_key_id": "not-a-uuid"},
        {"os_encrypt_key_id": None},
        {"os_encrypt_format": "plain"},
        {"os_encrypt_format": None},
        {"os_decrypt_size": None},
        {"os_decrypt_size": "-1"},
        {"os_decrypt_size": "1e9"},
        {"os_decrypt_size": "9" * 40},
    ],
)
def test_malformed(changes: dict[str, Any]) -> None:
    with pytest.raises(InputError) as caught:
        properties.read(image(**changes))
    assert caught.value.event == "hook.image.properties"


@given(
    st.dictionaries(
        st.sampled_from([*PROPERTIES, "kernel_id", "x"]),
        st.none() | st.text(max_size=60) | st.integers() | st.lists(st.none()),
    )
)
def test_free_input_is_refused_in_our_family(changes: dict[str, Any]) -> None:
    try:
        facts = properties.read(image(**changes))
    except MHError:
        return
    assert facts.virtual_size >= 0


@pytest.mark.parametrize("value", [None, [], "text"])
def test_no_properties(value: Any) -> None:
    with pytest.raises(MHError):
        properties.read({**image(), "properties": value})


def test_claimed() -> None:
    assert properties.claimed({"image_mh_version": "1"})
    # another version is ours to refuse, not stock nova's to boot
    assert properties.claimed({"image_mh_version": ""})
    assert not properties.claimed({"image_os_encrypt_key_id": KEY})
    assert not properties.claimed({})
    assert not properties.claimed(None)
