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
"""Makes tests/vectors/verity/digests.json with fsverity-utils.

Digests of files without salt, of SHA-256 over blocks of 4096 bytes; a
file's content is SHAKE-128 of its size in decimal.
"""

import hashlib
import json
import pathlib
import subprocess
import sys
import tempfile

TARGET = pathlib.Path(__file__).parents[2] / "tests/vectors/verity"
#: Around one block, and around one block of the tree (128 digests).
SIZES = (1, 4095, 4096, 4097, 128 * 4096, 128 * 4096 + 1, 3_000_001)


def main() -> None:
    TARGET.mkdir(parents=True, exist_ok=True)
    words = ["fsverity", "digest", "--hash-alg=sha256", "--block-size=4096"]
    cases = []
    with tempfile.TemporaryDirectory() as work:
        path = pathlib.Path(work, "file")
        for size in SIZES:
            content = hashlib.shake_128(str(size).encode()).digest(size)
            path.write_bytes(content)
            done = subprocess.run(
                [*words, "--compact", path],
                capture_output=True,
                check=True,
                text=True,
            )
            cases.append({"size": size, "digest": done.stdout.strip()})
    version = subprocess.run(
        ["fsverity", "--version"], capture_output=True, check=True, text=True
    ).stdout.strip()
    document = {
        "tool": " ".join([*words, "--compact", "FILE"]),
        "versions": {"fsverity-utils": version},
        "made_by": "make vectors (tools/vectors/verity.py)",
        "cases": cases,
    }
    text = json.dumps(document, indent=1, sort_keys=True) + "\n"
    (TARGET / "digests.json").write_text(text)
    sys.stdout.write(f"digests: {len(cases)} cases\n")


if __name__ == "__main__":
    main()
