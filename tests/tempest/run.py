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
"""``tox -e tempest``: what passes with nova's own driver passes with ours.

tempest's compute API tests run against the minicloud twice: once with
``libvirt.LibvirtDriver``, once with ``mh.TrustedLibvirtDriver``. Not every
test can pass here: the cloud has neither Cinder nor a network. What counts
is the difference. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

from tests.minicloud import bootimage, guest, layout
from tests.minicloud.cloud import Cloud
from tests.minicloud.process import CloudError
from tests.minicloud.setup_cloud import PEOPLE
from tests.minicloud.trusted import TrustedCloud

ALL = r"^tempest\.api\.compute\."
#: The short form: servers created, acted on, deleted, listed, rescued.
SHORT = (
    r"test_create_server\.ServersTestJSON\."
    r"|test_delete_server\.DeleteServersTestJSON\.(test_delete_active"
    r"|test_delete_server_while_in_shutoff|test_delete_server_while_in_pause)"
    r"|test_server_actions\.ServerActionsTestJSON\.(test_reboot_server_hard"
    r"|test_rebuild_server\b|test_stop_start|test_pause_unpause"
    r"|test_lock_unlock|test_suspend_resume|test_shelve_unshelve_server\b"
    r"|test_create_backup|test_get_console_output\b)"
    r"|test_server_rescue\.ServerRescueTestJSON\."
    r"|test_images_oneserver\.ImagesOneServerTestJSON\."
)
DRIVERS = {
    "stock": ("libvirt.LibvirtDriver", "nova-compute"),
    "ours": ("mh.TrustedLibvirtDriver", "mh-nova-compute"),
}

CONF = """\
[DEFAULT]
log_file = {folder}/tempest.log
[oslo_concurrency]
lock_path = {folder}/lock
[auth]
use_dynamic_credentials = true
create_isolated_networks = false
admin_username = admin
admin_password = {password}
admin_project_name = {project}
admin_domain_name = Default
default_credentials_domain_name = Default
tempest_roles = member
[identity]
uri_v3 = {keystone}
auth_version = v3
region = RegionOne
v3_endpoint_type = public
[compute]
image_ref = {images[0]}
image_ref_alt = {images[1]}
flavor_ref = {flavors[0]}
flavor_ref_alt = {flavors[1]}
endpoint_type = public
region = RegionOne
build_interval = 1
build_timeout = 120
min_compute_nodes = 2
max_microversion = 2.95
[compute-feature-enabled]
resize = false
cold_migration = false
live_migration = false
console_output = true
config_drive = true
suspend = true
pause = true
shelve = true
snapshot = true
rescue = true
stable_rescue = false
interface_attach = false
vnc_console = false
attach_encrypted_volume = false
personality = false
[service_available]
nova = true
glance = true
neutron = false
cinder = false
swift = false
horizon = false
[validation]
run_validation = false
[image]
region = RegionOne
"""

READ = """\
import json, sys
import subunit, testtools
found = {}
def one(test):
    found[test["id"]] = test["status"]
result = testtools.StreamToDict(one)
result.startTestRun()
with open(sys.argv[1], "rb") as file:
    subunit.ByteStreamToStreamResult(file).run(result)
result.stopTestRun()
print(json.dumps(found))
"""


@dataclasses.dataclass
class Suite:
    """tempest's working folder and what it is pointed at."""

    cloud: Cloud
    folder: pathlib.Path

    def configure(self) -> None:
        """Two images, two flavors, one configuration; the folder anew."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        admin = self.cloud.connect("admin")
        images, flavors = [], []
        for number in (1, 2):
            disk = bootimage.write(
                self.folder / f"disk-{number}", b"tempest-%d" % number
            )
            image = guest.upload(admin, f"tempest-{number}", disk)
            admin.image.update_image(image, visibility="public")
            images.append(image.id)
            flavors.append(
                guest.flavor(admin, f"tempest-{number}", ram=64 * number).id
            )
        password, project, _ = PEOPLE["admin"]
        ports = layout.PORTS
        (self.folder / "tempest.conf").write_text(
            CONF.format(
                folder=self.folder,
                password=password,
                project=project,
                keystone=f"http://{layout.ADDRESS}:{ports['keystone']}/v3",
                images=images,
                flavors=flavors,
            )
        )
        (self.folder / ".stestr.conf").write_text(
            "[DEFAULT]\ntest_path=tempest.test_discover\n"
            f"top_dir={self._package()}\n"
        )

    @staticmethod
    def _package() -> str:
        import tempest

        return str(pathlib.Path(tempest.__file__).resolve().parents[1])

    def use(self, driver: str) -> None:
        """Both computes by one of :data:`DRIVERS`."""
        name, command = DRIVERS[driver]
        for node in self.cloud.nodes:
            node.options.driver = name
            node.options.command = [command]
            self.cloud.restart_compute(node)
        self.cloud.wait_computes()

    def run(
        self, driver: str, regex: str, jobs: int, timeout: float
    ) -> dict[str, str]:
        """
        :returns: test id to ``success``, ``fail``, ``skip``…
        """
        env = {
            "PATH": f"{self.cloud.where.bin}:{os.environ['PATH']}",
            "HOME": str(self.folder),
            "LANG": "C.UTF-8",
            "TMPDIR": str(self.cloud.where.tmp),
            "TEMPEST_CONFIG_DIR": str(self.folder),
            "TEMPEST_CONFIG": "tempest.conf",
            "OS_TEST_TIMEOUT": "300",
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONWARNINGS": "ignore",
        }
        stream = self.folder / f"{driver}.subunit"
        log = self.folder / f"{driver}.log"
        with stream.open("wb") as out, log.open("wb") as errors:
            subprocess.run(
                [self.cloud.where.bin / "stestr", "run", "--subunit"]
                + ["--concurrency", str(jobs), regex],
                cwd=self.folder,
                env=env,
                stdout=out,
                stderr=errors,
                stdin=subprocess.DEVNULL,
                timeout=timeout,
                check=False,
            )
        done = subprocess.run(
            [self.cloud.where.bin / "python", "-c", READ, stream],
            env=env,
            capture_output=True,
            text=True,
            check=True,
        )
        found: dict[str, str] = json.loads(done.stdout)
        found = {_name(test): word for test, word in found.items()}
        if not any(word == "success" for word in found.values()):
            raise CloudError(f"tempest ran nothing well; see {log}: {found}")
        return found


def _name(test: str) -> str:
    """Without the tags behind it."""
    return re.sub(r"\[.*\]$", "", test)


def worse(stock: dict[str, str], ours: dict[str, str]) -> list[str]:
    """What passes with nova's own driver and not with ours."""
    return sorted(
        test
        for test, word in stock.items()
        if word == "success" and ours.get(test) != "success"
    )


def compare(
    product: TrustedCloud, folder: pathlib.Path, regex: str, jobs: int
) -> dict[str, dict[str, str]]:
    """Run both; ours once more for what was worse, since a busy machine
    makes tests time out."""
    suite = Suite(product.cloud, folder)
    suite.configure()
    out = {}
    for driver in DRIVERS:
        suite.use(driver)
        out[driver] = suite.run(driver, regex, jobs, timeout=4 * 3600)
    again = worse(out["stock"], out["ours"])
    if again:
        regex = "|".join(rf"{re.escape(test)}(\[|$)" for test in again)
        out["ours"] |= suite.run("ours", regex, 1, timeout=3600)
    return out


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.tempest.run")
    parser.add_argument("--regex", default=ALL)
    parser.add_argument("--short", action="store_true")
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args()
    base = os.environ.get("MH_CLOUD_BASE")
    product = TrustedCloud(Cloud(pathlib.Path(base) if base else None))
    folder = layout.RUN / "tempest"
    try:
        product.start()
        found = compare(
            product,
            folder,
            SHORT if options.short else options.regex,
            options.jobs,
        )
    finally:
        product.stop()
    (folder / "results.json").write_text(json.dumps(found, indent=1))
    bad = worse(found["stock"], found["ours"])
    for test in bad:
        print(f"worse with ours: {test}")
    counts = {
        driver: {
            word: sum(other == word for other in results.values())
            for word in sorted(set(results.values()))
        }
        for driver, results in found.items()
    }
    print(json.dumps({"tempest": counts, "worse": len(bad)}))
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
