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
``libvirt.LibvirtDriver``, once with ``mh.TrustedLibvirtDriver``, on the same
two hosts: both enrolled, so that a guest that moves while it runs does so
over TLS with either driver, and with Cinder. Not every test can pass here:
the cloud has no network, and nobody can log in to its guests. What counts is
the difference. The last line is one JSON object.

What is left off, and why:

* ``interface_attach``, floating addresses, extensions: there is no network,
  but a stand-in of its API. tempest is told that it is there, else it skips
  everything that might want one: live migration, volumes, rescue.
* ``vnc_console``, ``spice_console``, ``serial_console``: no proxy of nova's
  runs.
* ``change_password``: no agent of QEMU's is in the guests.
* ``volume_backed_live_migration``, and :data:`LEFT_OUT`: libvirt moves no
  guest with a volume that is a file at both ends, unless the file system is
  one of those it knows as shared ("Unsafe migration: Migration without shared
  storage is unsafe"). nova leaves the server in ERROR, and each such test
  waits minutes for that to pass.
* ``swap_volume``, ``attach_encrypted_volume``: no compute test that runs asks
  for them.
* scheduler filters: what the cloud has, not what nova has.
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
import typing

from mh_nova.agent.migration_tls import CA
from tests.minicloud import bootimage, guest, layout
from tests.minicloud.cloud import Cloud
from tests.minicloud.process import CloudError
from tests.minicloud.setup_cloud import PEOPLE
from tests.minicloud.trusted import FILTERS, TrustedCloud, wait_for

ALL = r"^tempest\.api\.compute\."
LEFT_OUT = "test_live_block_migration_with_attached_volume"
#: The short form: servers created, acted on, moved, deleted, rescued.
SHORT_LIST = (
    r"test_create_server\.ServersTestJSON\.",
    r"test_delete_server\.DeleteServersTestJSON\.test_delete_active",
    r"test_delete_server\.\w+\.test_delete_server_while_in_shutoff",
    r"test_delete_server\.\w+\.test_delete_server_while_in_pause",
    r"test_server_actions\.\w+\.test_reboot_server_hard",
    r"test_server_actions\.\w+\.test_rebuild_server\b",
    r"test_server_actions\.\w+\.test_stop_start",
    r"test_server_actions\.\w+\.test_pause_unpause",
    r"test_server_actions\.\w+\.test_lock_unlock",
    r"test_server_actions\.\w+\.test_suspend_resume",
    r"test_server_actions\.\w+\.test_shelve_unshelve_server\b",
    r"test_server_actions\.ServerActionsTest\w+\.test_create_backup",
    r"test_server_actions\.\w+\.test_get_console_output\b",
    r"test_server_actions\.\w+\.test_resize_server_confirm\b",
    r"test_server_rescue\.ServerRescueTestJSON\.",
    r"test_images_oneserver\.ImagesOneServerTestJSON\.",
    r"test_migrations\.MigrationsAdminTest\.test_cold_migration\b",
    r"test_attach_volume\.AttachVolumeTestJSON\.test_attach_detach_volume",
)
SHORT = "|".join(SHORT_LIST)
#: A guest takes no part when a disk of this bus is taken out while it runs.
#: Ours have no ACPI, and would never let go of one of virtio-blk.
SCSI = {"hw_disk_bus": "scsi", "hw_scsi_model": "virtio-scsi"}
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
max_microversion = latest
[compute-feature-enabled]
resize = true
cold_migration = true
live_migration = true
block_migration_for_live_migration = true
volume_backed_live_migration = false
volume_multiattach = {volumes}
console_output = true
config_drive = true
suspend = true
pause = true
shelve = true
shelve_migrate = true
snapshot = true
rescue = true
stable_rescue = true
personality = true
interface_attach = false
change_password = false
vnc_console = false
spice_console = false
serial_console = false
attach_encrypted_volume = false
swap_volume = false
scheduler_enabled_filters = {filters}
nova_policy_roles = admin,manager,member,reader,service
[enforce_scope]
nova = true
[volume]
region = RegionOne
endpoint_type = public
catalog_type = volumev3
build_interval = 1
build_timeout = 120
max_microversion = latest
volume_type_multiattach = {multiattach}
storage_protocol = file
[service_available]
nova = true
glance = true
neutron = true
cinder = {volumes}
swift = false
horizon = false
[network]
region = RegionOne
endpoint_type = public
[network-feature-enabled]
floating_ips = false
api_extensions =
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
            image = guest.upload(
                admin,
                f"tempest-{number}",
                disk,
                **(SCSI if number == 1 else {}),
            )
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
                filters=",".join(FILTERS[:-1]),
                volumes=str(self.cloud.volumes).lower(),
                multiattach=self._multiattach(admin),
            )
        )
        (self.folder / ".stestr.conf").write_text(
            "[DEFAULT]\ntest_path=tempest.test_discover\n"
            f"top_dir={self._package()}\n"
        )

    def _multiattach(self, admin: typing.Any) -> str:
        """A type of volumes that several servers may have at once."""
        name = "tempest-multiattach"
        storage = admin.block_storage
        if self.cloud.volumes and storage.find_type(name) is None:
            storage.create_type(
                name=name, extra_specs={"multiattach": "<is> True"}
            )
        return name

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
                + ["--concurrency", str(jobs)]
                + ["--exclude-regex", LEFT_OUT, regex],
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
        if not found:
            raise CloudError(f"tempest ran nothing; see {log}")
        return {_name(test): word for test, word in found.items()}


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


#: What testtools names the common part of a class's tests, and the class.
_FIXTURE = re.compile(r"(?:setUpClass|tearDownClass) \((.+)\)")


def failed(results: dict[str, str]) -> list[str]:
    return sorted(test for test, word in results.items() if word == "fail")


def these(tests: list[str]) -> str:
    """For stestr: these tests, and whole classes whose common part is one."""
    found = []
    for test in dict.fromkeys(tests):
        of_class = _FIXTURE.fullmatch(test)
        if of_class:
            found.append(rf"{re.escape(of_class[1])}\.")
        else:
            found.append(rf"{re.escape(test)}(\[|$)")
    return "|".join(found)


def enrol(product: TrustedCloud) -> None:
    """Both hosts, and wait for their certificates: libvirt, with whichever
    driver, lets no guest come in or leave without."""
    for node in product.cloud.nodes:
        host = product.enrol(node)
        if host["level"] != "trusted":
            raise CloudError(f"{node.name} is {host['level']}")
    for node in product.cloud.nodes:
        wait_for(
            f"migration certificate of {node.name}",
            node.path(f"/run/mystery-hill/migration/{CA}").exists,
        )


def compare(
    product: TrustedCloud, folder: pathlib.Path, regex: str, jobs: int
) -> dict[str, dict[str, str]]:
    """Run both, and once more by itself what failed, since a busy machine
    makes tests time out: with nova's own driver, too, else what it failed
    would not be compared."""
    enrol(product)
    suite = Suite(product.cloud, folder)
    suite.configure()
    out = {}
    for driver in DRIVERS:
        suite.use(driver)
        out[driver] = suite.run(driver, regex, jobs, timeout=4 * 3600)
        if "success" not in out[driver].values():
            raise CloudError(f"nothing passes with {driver}: {out[driver]}")
        again = failed(out[driver])
        if driver == "ours":
            again += worse(out["stock"], out["ours"])
        if again:
            once_more = suite.run(driver, these(again), 1, timeout=3600)
            for test in failed(out[driver]):
                del out[driver][test]
            out[driver] |= once_more
    return out


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.tempest.run")
    parser.add_argument("--regex", default=ALL)
    parser.add_argument("--short", action="store_true")
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args()
    base = os.environ.get("MH_CLOUD_BASE")
    product = TrustedCloud(
        Cloud(pathlib.Path(base) if base else None, volumes=True)
    )
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
