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

"""Make tests/vectors/image/*.json again, with qemu-img and cryptsetup.

Each vector is what one of these tools wrote, or that with a few bytes
edited, and what the parsers must say to it: ``ok`` or the id of an event.
Values differ from run to run; verdicts do not.

Usage: python tools/vectors/image.py [directory]
"""

import pathlib
import sys
import tempfile

from image_parts import luks, qcow2
from image_parts.maker import Maker


def main() -> None:
    target = pathlib.Path(
        sys.argv[1] if len(sys.argv) > 1 else "tests/vectors/image"
    )
    target.mkdir(parents=True, exist_ok=True)
    for old in target.glob("*.json"):
        old.unlink()
    with tempfile.TemporaryDirectory() as work:
        maker = Maker(target, work)
        plain, over = qcow2.good(maker)
        qcow2.tool_made(maker)
        qcow2.edited(maker, plain, over)
        luks.tool_made(maker)
    print(f"{len(list(target.glob('*.json')))} vectors in {target}")


if __name__ == "__main__":
    main()
