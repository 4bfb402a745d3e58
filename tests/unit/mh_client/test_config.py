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
"""The configuration file."""

from pathlib import Path

import pytest

from mh_client import config
from mh_core.errors import InputError

GOOD = """
[kms]
url = "https://kms.test:8443/"
ca_file = "ca.pem"
transport_thumbprint = "{thumbprint}"
token_file = "kms.token"
[attest]
url = "https://attest.test"
enroller_sha256 = "{sha}"
"""
THUMBPRINT = "A" * 43


def write(folder: Path, text: str) -> str:
    path = folder / "client.toml"
    path.write_text(text)
    return str(path)


def refused(text: str, folder: Path) -> InputError:
    with pytest.raises(InputError) as caught:
        config.load(write(folder, text))
    return caught.value


def test_reads_and_resolves_paths(tmp_path: Path) -> None:
    text = GOOD.format(thumbprint=THUMBPRINT, sha="AB" * 32)
    found = config.load(write(tmp_path, text))
    assert found.kms.endpoint.url == "https://kms.test:8443"
    assert found.kms.endpoint.ca_file == str(tmp_path / "ca.pem")
    assert found.kms.endpoint.token_file == str(tmp_path / "kms.token")
    assert found.attest.enroller_sha256 == "ab" * 32
    assert found.attest.endpoint.ca_file is None
    assert found.signing_key_file == tmp_path / "signing.jwk"


def test_missing_file_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        config.load(str(tmp_path / "none.toml"))
    assert caught.value.event == "client.config.file"
    assert "--os-trusted-config" in caught.value.message


def test_missing_section_is_named(tmp_path: Path) -> None:
    found = config.load(write(tmp_path, ""))
    for name in ("kms", "attest"):
        with pytest.raises(InputError) as caught:
            getattr(found, name)
        assert caught.value.event == f"client.config.{name}"
        assert f"[{name}]" in caught.value.message


def test_missing_pin_is_named(tmp_path: Path) -> None:
    found = config.load(write(tmp_path, '[attest]\nurl = "https://a"\n'))
    with pytest.raises(InputError) as caught:
        found.pin("jwk_thumbprint")
    assert caught.value.event == "client.config.pin"
    assert "jwk_thumbprint" in caught.value.message


@pytest.mark.parametrize(
    "text",
    [
        "[kms",
        '[kms]\nurl = "http://kms"\ntransport_thumbprint = "x"',
        '[attest]\nurl = "http://attest"',
        '[attest]\nurl = "https://user:pw@attest"',
        '[attest]\nurl = "https://attest/path"',
        '[attest]\nurl = "https://attest?x"',
        "[attest]\nurl = 7",
        '[attest]\nurl = "https://attest"\nissuers = "x"',
        '[attest]\nurl = "https://attest"\nenroller_sha256 = "xyz"',
        '[kms]\nurl = "https://kms"',
        '[kms]\nurl = "https://kms"\ntransport_thumbprint = "short"',
        "[other]\nx = 1",
        "kms = 3",
        '[signing]\nkey = "x"',
    ],
)
def test_bad_files_are_refused(text: str, tmp_path: Path) -> None:
    error = refused(text, tmp_path)
    assert error.event.startswith("client.config")
    assert str(tmp_path / "client.toml") in error.message


def test_token_open_to_others_is_refused(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("secret-token")
    endpoint = config.Endpoint("https://x", None, str(token))
    for mode in (0o644, 0o640, 0o604, 0o620):
        token.chmod(mode)
        with pytest.raises(InputError) as caught:
            endpoint.token()
        assert caught.value.event == "client.config.token"
        assert "chmod 600" in caught.value.message
        assert "secret-token" not in str(caught.value)
    token.chmod(0o600)
    found = endpoint.token()
    assert found is not None
    assert found.reveal() == b"secret-token"


def test_empty_token_is_refused(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.touch(0o600)
    with pytest.raises(InputError):
        config.Endpoint("https://x", None, str(token)).token()
