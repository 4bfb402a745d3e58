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

"""Makes tests/vectors/tpm/*.json with swtpm and tpm2-tools."""

import json
import pathlib
import re
import subprocess
import sys
import tempfile
from typing import Any

from tpm_parts import cases, ek, logs, names
from tpm_parts.device import Tpm

ROOT = pathlib.Path(__file__).parents[2]
TARGET = ROOT / "tests/vectors/tpm"


def versions() -> dict[str, str]:
    """Versions of the tools, as they say themselves."""
    found = {}
    for tool in ("tpm2_quote", "swtpm"):
        done = subprocess.run(
            [tool, "--version"], capture_output=True, check=True, text=True
        )
        match = re.search(r'version[= "]+([0-9][0-9.]*)', done.stdout)
        found[tool] = match.group(1) if match else done.stdout.strip()
    return {"tpm2-tools": found["tpm2_quote"], "swtpm": found["swtpm"]}


def write(name: str, tool: str, found: list[dict[str, Any]]) -> None:
    """Write one file of cases."""
    document = {
        "tool": tool,
        "versions": versions(),
        "made_by": "make vectors (tools/vectors/tpm.py)",
        "cases": found,
    }
    text = json.dumps(document, indent=1, sort_keys=True) + "\n"
    (TARGET / f"{name}.json").write_text(text)
    sys.stdout.write(f"{name}: {len(found)} cases\n")


def main() -> None:
    """Make every file."""
    TARGET.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory(prefix="mh-vectors-") as directory,
        Tpm(pathlib.Path(directory)) as tpm,
    ):
        for index in (0, 2, 4, 7):
            tpm.run("tpm2_pcrextend", f"{index}:sha256={index + 1:064x}")
        cases.keys(tpm)
        write("quote", "tpm2_quote", cases.quotes(tpm))
        write("certify", "tpm2_send, tpm2_certify", cases.certifications(tpm))
        write("public", "tpm2_readpublic", names.publics(tpm))
        write("policy", "tpm2_createpolicy, tpm2_policy*", names.policies(tpm))
        write(
            "credential",
            "tpm2_makecredential, tpm2_activatecredential",
            ek.credentials(tpm),
        )
        write("ekcert", "swtpm_setup, swtpm_localca", ek.certificates(tpm))
        write("eventlog", "tpm2_eventlog", logs.logs(tpm))


if __name__ == "__main__":
    main()
