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
"""Small parts: addresses, nonces, keys, policies, options, rules."""

import contextlib
import json
import pathlib
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mh_attest import address, authority, ek_ca, host_policy, nonce, policies
from mh_attest.conf import opts
from mh_core.errors import Denied, InputError, Unavailable
from mh_core.evidence import BOUND
from mh_core.secret import Secret
from tests.unit.mh_attest.host import Maker

NETWORKS = address.networks(["127.0.0.0/8", "fd00::/8"])
KEY = Secret(bytes(32))


def test_address_is_resolved_once_and_held_against_the_list() -> None:
    found = address.check("https://127.0.0.9:15446", NETWORKS)
    assert (found.host, found.port, found.ip) == (
        "127.0.0.9",
        15446,
        "127.0.0.9",
    )
    found = address.check("https://[fd00::1]", NETWORKS)
    assert (found.port, found.ip) == (443, "fd00::1")
    found = address.check(
        "https://node1:1", NETWORKS, lambda host, port: ["127.0.0.5"]
    )
    assert (found.host, found.ip) == ("node1", "127.0.0.5")


@pytest.mark.parametrize(
    "addresses", [["10.0.0.1"], ["127.0.0.5", "10.0.0.1"], []]
)
def test_a_name_that_leads_elsewhere(addresses: list[str]) -> None:
    with pytest.raises(Denied, match="listener"):
        address.check("https://n:1", NETWORKS, lambda host, port: addresses)


@given(st.text(max_size=60))
def test_any_text_as_an_address(text: str) -> None:
    for url in (text, "https://" + text):
        with contextlib.suppress(InputError):
            host, port = address.split(url)
            assert host
            assert 0 <= port < 65536


def test_bad_networks() -> None:
    with pytest.raises(InputError, match="CIDR"):
        address.networks(["127.0.0.1/40"])


def test_nonce_lives_sixty_seconds() -> None:
    given_out = nonce.issue(KEY, "vm-report", 1000, lambda n: b"r" * n)
    assert len(given_out) == 32
    assert nonce.check(KEY, "vm-report", given_out, 1059, "e") == 1060
    for purpose, when, key in (
        ("vm-report", 1060, KEY),
        ("vm-report", 999, KEY),
        ("other", 1000, KEY),
        ("vm-report", 1000, Secret(b"x" * 32)),
    ):
        with pytest.raises(Denied):
            nonce.check(key, purpose, given_out, when, "e")


def test_keys_are_private_and_made_once(tmp_path: pathlib.Path) -> None:
    folder = tmp_path / "state"
    now = datetime.now(UTC)
    made = authority.create(folder, now)
    assert len(made) == 6
    assert folder.stat().st_mode & 0o777 == 0o700
    for path in folder.iterdir():
        assert path.stat().st_mode & 0o777 == 0o600
    first = authority.load(folder, "i")
    assert authority.create(folder, now) == []
    assert authority.load(folder, "i").identity() == first.identity()
    shown = repr(first) + str(first) + json.dumps(first.identity())
    secret = json.loads((folder / "result-key.json").read_text())["d"]
    assert secret not in shown
    folder.chmod(0o750)
    with pytest.raises(Unavailable, match="0700"):
        authority.load(folder, "i")
    folder.chmod(0o700)
    for name in ("enroller.pem", "migration-ca.pem"):
        kept = (folder / name).read_bytes()
        (folder / name).unlink()
        with pytest.raises(InputError):
            authority.create(folder, now)
        with pytest.raises(Unavailable):
            authority.load(folder, "i")
        (folder / name).write_bytes(kept)
    authority.load(folder, "i")
    (folder / "migration-ca.pem").write_bytes(
        (folder / "enroller.pem").read_bytes()
    )
    with pytest.raises(Unavailable, match="fit"):
        authority.load(folder, "i")


def test_keys_that_do_not_fit_each_other(tmp_path: pathlib.Path) -> None:
    for name in ("one", "two"):
        authority.create(tmp_path / name, datetime.now(UTC))
    other = (tmp_path / "two" / "enroller.pem").read_bytes()
    (tmp_path / "one" / "enroller.pem").write_bytes(other)
    with pytest.raises(Unavailable, match="fit"):
        authority.load(tmp_path / "one", "i")


def test_manufacturer_list(tmp_path: pathlib.Path) -> None:
    assert ek_ca.load(tmp_path / "absent") == ek_ca.EkCa()
    (tmp_path / "a.pem").write_text(Maker("a").pem + Maker("b").pem)
    (tmp_path / "c.crt").write_text(Maker("c").pem)
    (tmp_path / "README").write_text("no certificate")
    found = ek_ca.load(tmp_path)
    assert (len(found.roots), len(found.intermediates)) == (3, 0)
    (tmp_path / "bad.pem").write_text("no certificate")
    with pytest.raises(InputError, match=r"bad\.pem"):
        ek_ca.load(tmp_path)


GOOD = {str(i): ["ab" * 32] for i in BOUND}


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"pcrs": {}},
        {"pcrs": {**GOOD, "10": ["ab" * 32]}},
        {"pcrs": {**GOOD, "04": ["ab" * 32]}},
        {"pcrs": {**GOOD, "4": []}},
        {"pcrs": {**GOOD, "4": "ab" * 32}},
        {"pcrs": {**GOOD, "4": ["ab" * 31]}},
        {"pcrs": {**GOOD, "4": ["AB" * 32]}},
        {"pcrs": {**GOOD, "4": ["ab" * 32] * 65}},
        {"pcrs": GOOD, "tags": {"a b": "c"}},
        {"pcrs": GOOD, "tags": {"a": 1}},
        {"pcrs": GOOD, "levels": []},
    ],
)
def test_malformed_policy(body: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"attest\.host-policy"):
        host_policy.HostPolicy.parse("g", body)


def test_zero_among_good_values_is_refused() -> None:
    pcrs = {**GOOD, "4": ["ab" * 32, "00" * 32]}
    with pytest.raises(Denied, match=r"attest\.host-policy\.zero"):
        host_policy.HostPolicy.parse("g", {"pcrs": pcrs})


def test_options_and_rules_are_documented() -> None:
    for _group, options in opts.list_opts():
        assert all(len(option.help) > 20 for option in options)
    rules = policies.list_rules()
    assert len({rule.name for rule in rules}) == len(rules)
    assert all(rule.description for rule in rules)
    assert {rule.name for rule in rules} >= {"hosts:enrol", "audit:list"}
