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
import pytest

from mh_attest import level

HASH = "4e" * 32
VERITY = f"root=/dev/mapper/vroot ro roothash={HASH}"
IMA = "root=/dev/sda1 ima_appraise=enforce ima_policy=tcb|appraise_tcb"


@pytest.mark.parametrize(
    "lines",
    [
        [VERITY],
        [f"roothash={HASH}"],
        [f"root=/dev/dm-0 roothash={HASH.upper()} quiet"],
        [f'"roothash={HASH}"'],
        [IMA],
        ['ima_appraise=enforce ima_policy="secure_boot"'],
        [VERITY, IMA],
    ],
)
def test_covered(lines: list[str]) -> None:
    assert level.of(lines) == "trusted"


@pytest.mark.parametrize(
    "lines",
    [
        [],
        [""],
        ["root=/dev/sda1 ro"],
        [f"root=/dev/mapper/vroot roothash={'00' * 32}"],
        [f"roothash={HASH[:-2]}"],
        [f"roothash={HASH}00"],
        [f"roothash={'zz' * 32}"],
        [f"root=/dev/sda1 roothash={HASH}"],
        [f"roothash={HASH} roothash={'11' * 32}"],
        [f"xroothash={HASH}"],
        [f'note="about roothash={HASH} x"'],
        [f"quiet -- roothash={HASH}"],
        [f"roothash={HASH} systemd.verity=0"],
        [f"roothash={HASH} rd.systemd.verity=no"],
        [f"roothash={HASH} systemd.verity_root_options=ignore-corruption"],
        ["ima_appraise=log ima_policy=appraise_tcb"],
        ["ima_appraise=enforce"],
        ["ima_appraise=enforce ima_policy=tcb"],
        ["ima_appraise=enforce ima_appraise=fix ima_policy=appraise_tcb"],
        ["ima_policy=appraise_tcb"],
        [VERITY, "root=/dev/sda1"],
    ],
)
def test_not_covered(lines: list[str]) -> None:
    assert level.of(lines) == "boot-only"


def test_words_as_the_kernel_splits_them() -> None:
    assert level.parameters('a=1  b="x y" c -- d=2') == [
        ("a", "1"),
        ("b", "x y"),
        ("c", ""),
    ]
