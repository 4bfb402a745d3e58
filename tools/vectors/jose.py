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

"""Makes tests/vectors/jose and tests/vectors/core with jwcrypto, openssl."""

import importlib.metadata
import json
import pathlib
import sys
from typing import Any

from jose_parts import certificates, documents, keys, openssl, signed, wrapped

ROOT = pathlib.Path(__file__).parents[2]
TARGET = ROOT / "tests/vectors"


def write(name: str, tool: str, cases: list[dict[str, Any]]) -> None:
    """Write one file of cases."""
    document = {
        "tool": tool,
        "versions": {
            "jwcrypto": importlib.metadata.version("jwcrypto"),
            "openssl": openssl.version(),
        },
        "made_by": "make vectors (tools/vectors/jose.py)",
        "cases": cases,
    }
    names = [case["name"] for case in cases]
    if len(set(names)) != len(names):
        raise RuntimeError(f"{name}: a name appears twice")
    path = TARGET / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=1, sort_keys=True) + "\n")
    sys.stdout.write(f"{name}: {len(cases)} cases\n")


def main() -> None:
    """Make every file."""
    write("jose/jwk", "jwcrypto", keys.cases())
    write("jose/jwe", "jwcrypto, openssl pkeyutl", wrapped.cases())
    write("jose/jws", "jwcrypto, openssl dgst", signed.cases())
    write("core/result", "jwcrypto", documents.results())
    write("core/manifest", "jwcrypto, openssl dgst", documents.manifests())
    write("core/digest", "openssl dgst", documents.digests())
    write("core/akcert", "openssl x509", certificates.cases())


if __name__ == "__main__":
    main()
