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

import tpm_cases
import tpm_more
from tpm_device import Tpm

TARGET = pathlib.Path("tests/vectors/tpm")


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


def write(name: str, tool: str, cases: list[dict[str, Any]]) -> None:
    """Write one file of cases."""
    document = {
        "tool": tool,
        "versions": versions(),
        "made_by": "make vectors (tools/vectors/tpm.sh)",
        "cases": cases,
    }
    text = json.dumps(document, indent=1, sort_keys=True) + "\n"
    (TARGET / f"{name}.json").write_text(text)
    sys.stdout.write(f"{name}: {len(cases)} cases\n")


def main() -> None:
    """Make every file."""
    TARGET.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory(prefix="mh-vectors-") as directory,
        Tpm(pathlib.Path(directory)) as tpm,
    ):
        for index in (0, 2, 4, 7):
            tpm.run("tpm2_pcrextend", f"{index}:sha256={index + 1:064x}")
        tpm_cases.keys(tpm)
        write("quote", "tpm2_quote", tpm_cases.quotes(tpm))
        write(
            "certify", "tpm2_send, tpm2_certify", tpm_cases.certifications(tpm)
        )
        write("public", "tpm2_readpublic", tpm_more.publics(tpm))
        write(
            "policy", "tpm2_createpolicy, tpm2_policy*", tpm_more.policies(tpm)
        )
        write(
            "credential",
            "tpm2_makecredential, tpm2_activatecredential",
            tpm_more.credentials(tpm),
        )
        write(
            "ekcert", "swtpm_setup, swtpm_localca", tpm_more.certificates(tpm)
        )
        write("eventlog", "tpm2_eventlog", tpm_more.logs(tpm))


if __name__ == "__main__":
    main()
