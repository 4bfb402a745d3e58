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

"""The contract of key stores, over every driver; the software store."""

import os
import pathlib
import stat

import pytest
from oslo_config import cfg
from stevedore import ExtensionManager

from mh_core.errors import Unavailable, VerificationError
from mh_core.secret import Secret
from mh_kms import conf as conf_module
from mh_kms import key_stores
from mh_kms.key_stores.base import KeyStore
from mh_kms.key_stores.software import SoftwareKeyStore

DRIVERS = sorted(ExtensionManager(key_stores.NAMESPACE).names())
SECRET = Secret(bytes(range(32)))


def configuration(
    base: pathlib.Path, key_store: str = "software"
) -> cfg.ConfigOpts:
    path = base / "kms.conf"
    path.write_text(
        f"[kms]\norigin = https://kms.test\nkey_store = {key_store}\n"
        f"[software_key_store]\nkek_file = {base}/kek\n"
    )
    return conf_module.load(str(path))


@pytest.fixture(params=DRIVERS)
def store(request: pytest.FixtureRequest, tmp_path: pathlib.Path) -> KeyStore:
    one = key_stores.load(configuration(tmp_path, key_store=request.param))
    one.prepare(True)
    return one


# -- the contract --------------------------------------------------------


def test_every_driver_is_tested() -> None:
    assert "software" in DRIVERS


def test_opens_what_it_sealed(store: KeyStore) -> None:
    sealed = store.seal("key", "dek", SECRET)
    assert store.open("key", "dek", sealed) == SECRET


def test_sealing_shows_nothing(store: KeyStore) -> None:
    first, second = (store.seal("key", "dek", SECRET) for _ in range(2))
    assert first != second
    assert SECRET.reveal() not in first
    other = store.seal("key", "dek", Secret(bytes(32)))
    assert len(other) == len(first)


@pytest.mark.parametrize(
    ("key_id", "role"),
    [("other", "dek"), ("key", "transport"), ("keyd", "ek")],
)
def test_sealed_for_one_use(store: KeyStore, key_id: str, role: str) -> None:
    sealed = store.seal("key", "dek", SECRET)
    with pytest.raises(VerificationError) as caught:
        store.open(key_id, role, sealed)
    assert caught.value.event == "kms.key-store.sealed"


def test_every_changed_bit_is_refused(store: KeyStore) -> None:
    sealed = store.seal("key", "dek", SECRET)
    for index in range(len(sealed)):
        bad = bytearray(sealed)
        bad[index] ^= 1
        with pytest.raises(VerificationError):
            store.open("key", "dek", bytes(bad))
    for bad_length in (b"", sealed[:-1], sealed[:5], sealed + b"\0"):
        with pytest.raises(VerificationError):
            store.open("key", "dek", bad_length)


def test_another_instance_opens_it(
    store: KeyStore, tmp_path: pathlib.Path
) -> None:
    sealed = store.seal("key", "dek", SECRET)
    again = type(store)(configuration(tmp_path))
    assert again.open("key", "dek", sealed) == SECRET


def test_prepare_changes_nothing_the_second_time(store: KeyStore) -> None:
    sealed = store.seal("key", "dek", SECRET)
    store.prepare(False)
    store.prepare(True)
    assert store.open("key", "dek", sealed) == SECRET


def test_nothing_secret_is_shown(store: KeyStore) -> None:
    sealed = store.seal("key", "dek", SECRET)
    with pytest.raises(VerificationError) as caught:
        store.open("key", "x", sealed)
    assert SECRET.reveal().hex() not in str(caught.value)
    assert SECRET.reveal().hex() not in repr(vars(store))


def test_a_driver_of_no_such_name(tmp_path: pathlib.Path) -> None:
    with pytest.raises(RuntimeError):
        key_stores.load(configuration(tmp_path, key_store="cloud"))


# -- the software store --------------------------------------------------


def test_file_is_made_for_its_owner_only(tmp_path: pathlib.Path) -> None:
    store = SoftwareKeyStore(configuration(tmp_path))
    store.prepare(True)
    path = tmp_path / "kek"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert len(path.read_bytes()) == 32
    assert path.read_bytes() != bytes(32)


def test_never_a_new_key_where_there_are_keys(tmp_path: pathlib.Path) -> None:
    store = SoftwareKeyStore(configuration(tmp_path))
    with pytest.raises(Unavailable):
        store.prepare(False)
    assert not (tmp_path / "kek").exists()


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644, 0o700, 0o400])
def test_other_permissions_are_refused(
    tmp_path: pathlib.Path, mode: int
) -> None:
    path = tmp_path / "kek"
    path.write_bytes(os.urandom(32))
    path.chmod(mode)
    store = SoftwareKeyStore(configuration(tmp_path))
    for action in (
        lambda: store.prepare(False),
        lambda: store.seal("key", "dek", SECRET),
        lambda: store.open("key", "dek", b"\x01" + bytes(60)),
    ):
        with pytest.raises(Unavailable) as caught:
            action()
        assert caught.value.event == "kms.key-store.kek"


@pytest.mark.parametrize("size", [0, 16, 31, 33])
def test_other_sizes_are_refused(tmp_path: pathlib.Path, size: int) -> None:
    path = tmp_path / "kek"
    path.write_bytes(bytes(size))
    path.chmod(0o600)
    with pytest.raises(Unavailable):
        SoftwareKeyStore(configuration(tmp_path)).prepare(False)


def test_symbolic_links_and_folders_are_refused(
    tmp_path: pathlib.Path,
) -> None:
    real = tmp_path / "real"
    real.write_bytes(os.urandom(32))
    real.chmod(0o600)
    path = tmp_path / "kek"
    path.symlink_to(real)
    with pytest.raises(Unavailable):
        SoftwareKeyStore(configuration(tmp_path)).prepare(True)
    path.unlink()
    path.mkdir(mode=0o600)
    with pytest.raises(Unavailable):
        SoftwareKeyStore(configuration(tmp_path)).prepare(True)
