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

"""MHImage through nova's own ``Image.cache``, with an agent that may lie."""

import threading
from pathlib import Path
from typing import Any

import pytest
from lxml import etree
from nova import context as nova_context
from nova.virt.libvirt import imagebackend, imagecache

from mh_core.errors import Denied, InputError, MHError, Unavailable
from mh_nova.hook.backend import MHBackend
from mh_nova.hook.image import MHImage
from mh_nova.hook.launch import Launcher
from mh_nova.hook.ours import Ours
from mh_nova.hook.rescue import Rescues
from tests.functional.mh_nova.hook.conftest import (
    IMAGE,
    OTHER,
    Glance,
    base_file,
    make_instance,
    write_disk,
)
from tests.unit.mh_nova.hook.fake_agent import (
    BASE,
    DISKS,
    INSTANCE,
    OVERLAY,
    FakeAgent,
    no,
)
from tests.unit.mh_nova.hook.test_properties import image

MAPPING = {"bus": "virtio", "type": "disk", "dev": "vda"}
CONTEXT = nova_context.get_admin_context()


@pytest.fixture
def backend(agent: FakeAgent, glance: Glance) -> MHBackend:
    client = agent.client()
    return MHBackend(
        True, client, Launcher(client), Ours(client), Rescues(client)
    )


def never(*args: Any, **kwargs: Any) -> None:
    raise AssertionError("nova's own fetch would convert the image")


def cache(one: Any, instance: Any, size: int | None = None) -> None:
    """As ``LibvirtDriver._try_fetch_image_cache`` calls it."""
    one.cache(
        fetch_func=never,
        context=CONTEXT,
        filename=imagecache.get_cache_fname(IMAGE),
        image_id=instance.image_ref,
        size=size,
        trusted_certs=None,
    )


def launch(backend: MHBackend, instance: Any) -> MHImage:
    one = backend.by_name(instance, "disk", disk_info_mapping=MAPPING)
    with backend._launcher.launch(CONTEXT, instance, ()):
        cache(one, instance)
    assert isinstance(one, MHImage)
    return one


def left(where: Path) -> list[str]:
    return sorted(path.name for path in (where / "_base").iterdir())


def test_the_base_is_the_tenants_ciphertext(
    backend: MHBackend, agent: FakeAgent, glance: Glance, where: Path
) -> None:
    one = launch(backend, make_instance())
    base = base_file(where)
    assert base.read_bytes() == glance.source.read_bytes()
    # no file of stock nova's name, no .part
    assert left(where) == [base.name]
    assert Path(one.path).exists()
    assert agent.verbs() == ["prepare", "make"]
    # the key was asked for before the first byte came
    assert glance.begun == [["prepare"]]
    (request,) = agent.asked("prepare")
    assert request["ticket"] == "T" * 43
    assert request["purpose"] == "launch"
    assert request["host"] == "node1"
    assert request["disks"] == [{"name": "disk", "size": 1048576}]


def test_again_changes_nothing(
    backend: MHBackend, agent: FakeAgent, glance: Glance, where: Path
) -> None:
    instance = make_instance()
    one = launch(backend, instance)
    before = Path(one.path).read_bytes()
    agent.seen.clear()
    cache(one, instance)
    # at a hard reboot nova names the backing file itself
    one.cache(
        fetch_func=never,
        context=CONTEXT,
        filename=base_file(where).name,
        image_id=IMAGE,
        size=1048576,
    )
    assert Path(one.path).read_bytes() == before
    assert agent.seen == []
    assert glance.downloads == 1


def test_a_base_missing_at_a_later_start(
    backend: MHBackend, agent: FakeAgent, glance: Glance, where: Path
) -> None:
    instance = make_instance()
    one = launch(backend, instance)
    base_file(where).unlink()
    agent.seen.clear()
    cache(one, instance)
    # asked first: a disk that was flattened needs no base
    assert agent.verbs() == ["disks", "prepare", "make"]
    assert agent.seen[1]["purpose"] == "start"
    assert base_file(where).exists()


def test_a_flattened_disk_needs_no_image(
    backend: MHBackend, agent: FakeAgent, where: Path
) -> None:
    """Unshelved, then started: nova asks for the instance's first image."""
    instance = make_instance()
    one = launch(backend, instance)
    base_file(where).unlink()
    [disk] = DISKS["disks"]  # type: ignore[misc]
    flat = {**disk, "base": False, "base_secret": ""}
    agent.answers["disks"] = {"ok": True, "disks": [flat]}
    agent.seen.clear()
    cache(one, instance)
    assert agent.verbs() == ["disks"]
    assert not base_file(where).exists()


def test_four_at_once_download_once(
    backend: MHBackend, agent: FakeAgent, glance: Glance, where: Path
) -> None:
    glance.delay = 0.3
    failed: list[BaseException] = []

    def one(number: int) -> None:
        try:
            launch(backend, make_instance(uuid=f"{INSTANCE[:-1]}{number}"))
        except BaseException as exc:
            failed.append(exc)

    threads = [threading.Thread(target=one, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert failed == []
    assert glance.downloads == 1
    makes = [request["downloaded"] for request in agent.asked("make")]
    assert sorted(makes) == [False, False, False, True]


@pytest.mark.parametrize(
    ("verb", "answer", "event"),
    [
        ("prepare", no("agent.kms.origin"), "agent.kms.origin"),
        ("make", no("agent.measure.digest"), "agent.measure.digest"),
        ("make", None, "hook.agent.unavailable"),
        ("make", {"ok": True, "disks": "x"}, "hook.agent.answer"),
        # says yes and made nothing
        ("make", DISKS, "hook.image.overlay"),
    ],
)
def test_refused_and_nothing_left(
    backend: MHBackend,
    agent: FakeAgent,
    where: Path,
    verb: str,
    answer: Any,
    event: str,
) -> None:
    agent.answers[verb] = answer
    with pytest.raises(MHError) as caught:
        launch(backend, make_instance())
    assert caught.value.event == event
    assert not list(where.glob("_base/*"))
    assert not (where / INSTANCE / "disk").exists()


def test_a_plain_disk_from_the_agent_is_not_used(
    backend: MHBackend, agent: FakeAgent, where: Path
) -> None:
    def make(request: dict[str, Any]) -> dict[str, Any]:
        (where / INSTANCE / "disk").write_bytes(bytes(1024))
        return DISKS

    agent.answers["make"] = make
    with pytest.raises(Denied) as caught:
        launch(backend, make_instance())
    assert caught.value.event == "hook.image.overlay"


@pytest.mark.parametrize(
    ("content", "event"),
    [
        (b"not a disk image" * 64, "hook.image.inspection"),
        (b"", "hook.image.inspection"),
    ],
)
def test_novas_inspection_of_formats_is_kept(
    backend: MHBackend,
    agent: FakeAgent,
    glance: Glance,
    where: Path,
    content: bytes,
    event: str,
) -> None:
    glance.source.write_bytes(content)
    with pytest.raises(Denied) as caught:
        launch(backend, make_instance())
    assert caught.value.event == event
    assert agent.asked("make") == []
    assert left(where) == []


def test_an_image_that_went_away(
    backend: MHBackend, glance: Glance, where: Path
) -> None:
    """Not ImageNotFound: nova would fetch the base from another host."""
    glance.images.clear()
    with pytest.raises(Denied) as caught:
        launch(backend, make_instance())
    assert caught.value.event == "hook.image.missing"


def test_properties_stripped_in_glance_after_the_request(
    backend: MHBackend, agent: FakeAgent, glance: Glance
) -> None:
    glance.images[IMAGE] = image(mh_version=None)
    with pytest.raises(Denied) as caught:
        launch(backend, make_instance())
    assert caught.value.event == "hook.image.version"
    assert agent.seen == []


def test_another_image_than_the_instances(
    backend: MHBackend, agent: FakeAgent
) -> None:
    instance = make_instance()
    one = backend.by_name(instance, "disk", disk_info_mapping=MAPPING)
    for arguments in ({"image_id": OTHER}, {}):
        with pytest.raises(Denied) as caught:
            one.cache(
                fetch_func=never,
                context=CONTEXT,
                filename="x",
                **arguments,
            )
        assert caught.value.event == "hook.image.reference"
    assert agent.seen == []


def test_a_flavor_smaller_than_the_image(
    backend: MHBackend, agent: FakeAgent, glance: Glance
) -> None:
    glance.images[IMAGE] = image(os_decrypt_size=str(2 << 30))
    instance = make_instance()
    instance.flavor.root_gb = 1
    with pytest.raises(Denied) as caught:
        launch(backend, instance)
    assert caught.value.event == "hook.launch.disk-size"
    assert agent.seen == []


def test_the_flavors_size_is_the_overlays(
    backend: MHBackend, agent: FakeAgent
) -> None:
    instance = make_instance()
    instance.flavor.root_gb = 3
    launch(backend, instance)
    (request,) = agent.asked("prepare")
    assert request["disks"] == [{"name": "disk", "size": 3 << 30}]
    assert request["virtual_size"] == 1048576


def test_user_data_that_is_not_base64(backend: MHBackend) -> None:
    with pytest.raises(InputError) as caught:
        launch(backend, make_instance(user_data="A"))
    assert caught.value.event == "hook.launch.user-data"


def test_growing_is_the_agents(backend: MHBackend, agent: FakeAgent) -> None:
    one = launch(backend, make_instance())
    one.resize_image(1048576)
    assert agent.asked("resize") == []
    one.resize_image(1048577)
    (request,) = agent.asked("resize")
    assert (request["disk"], request["size"]) == ("disk", 1048577)
    agent.answers["resize"] = no("agent.resize.not-made")
    with pytest.raises(Denied) as caught:
        one.resize_image(1048577)
    assert caught.value.event == "agent.resize.not-made"


@pytest.mark.parametrize(
    "name", ["disk.info", "disk.eph", "disk.vtpm", "ramdisk", "kernel"]
)
def test_no_other_disk(backend: MHBackend, name: str) -> None:
    with pytest.raises(Denied) as caught:
        backend.by_name(make_instance(), name)
    assert caught.value.event == "hook.launch.disk"


@pytest.mark.parametrize(
    "name", ["disk.swap", "disk.local", "disk.eph0", "disk.rescue"]
)
def test_a_disk_that_the_agent_did_not_make(
    backend: MHBackend, where: Path, name: str
) -> None:
    """Never made, and never formatted, by nova."""
    instance = make_instance()
    launch(backend, instance)
    one = backend.by_name(instance, name, disk_info_mapping=MAPPING)
    for plain in (False, True):
        if plain:
            Path(one.path).write_bytes(bytes(4096))
        with pytest.raises(Denied) as caught:
            one.cache(
                fetch_func=never,
                context=CONTEXT,
                filename="swap_64",
                size=64 << 20,
                safe=True,
            )
        assert caught.value.event == "hook.image.overlay"
    Path(one.path).unlink()
    write_disk(one.path)
    one.cache(fetch_func=never, context=CONTEXT, filename="x", size=1)


def test_a_path_for_a_name(backend: MHBackend, where: Path) -> None:
    path = str(where / INSTANCE / "disk")
    assert backend.by_name(make_instance(), path).path == path
    one = backend.by_libvirt_path(make_instance(), path)
    assert isinstance(one, MHImage)
    # a path elsewhere is not followed
    assert backend.by_libvirt_path(make_instance(), "/x/disk").path == path


def test_plain_instances_get_novas_own_class(
    backend: MHBackend, agent: FakeAgent
) -> None:
    plain = make_instance(trusted=False)
    one = backend.by_name(plain, "disk", disk_info_mapping=MAPPING)
    assert type(one) is imagebackend.Qcow2
    assert type(backend.by_name(plain, "disk", "raw")) is imagebackend.Flat
    path = backend.by_libvirt_path(plain, one.path)
    assert type(path) is imagebackend.Qcow2
    assert agent.seen == []


def test_not_a_class_that_nova_opens_by_itself(backend: MHBackend) -> None:
    one = backend.by_name(make_instance(), "disk")
    assert not isinstance(one, imagebackend.Qcow2 | imagebackend.Flat)
    assert one.is_file_in_instance_path()
    with pytest.raises(Denied):
        one.snapshot_extract("/x", "raw")
    with pytest.raises(Exception, match=r"hook\.launch\.injection"):
        one.get_model(None)


def test_the_domains_disk(backend: MHBackend, where: Path) -> None:
    one = launch(backend, make_instance())
    dom = one.libvirt_info("none", {}, boot_order="1").format_dom()
    assert dom.get("type") == "file"
    secrets = [s.get("uuid") for s in dom.iter("secret")]
    assert secrets == [OVERLAY, BASE]
    sources = [s.get("file") for s in dom.iter("source")]
    assert sources == [one.path, str(base_file(where))]
    assert all(
        s.find("encryption").get("format") == "luks"
        for s in dom.iter("source")
    )
    assert etree.tostring(dom.find("driver")) == (
        b'<driver name="qemu" type="qcow2" cache="none"/>'
    )


@pytest.mark.parametrize(
    "answer",
    [
        {"ok": True, "disks": []},
        {"ok": True, "disks": [{**DISKS["disks"][0], "name": "disk.x"}]},
    ],
)
def test_no_domain_without_the_agents_secrets(
    backend: MHBackend, agent: FakeAgent, answer: Any
) -> None:
    one = launch(backend, make_instance())
    agent.answers["disks"] = answer
    with pytest.raises(Denied) as caught:
        one.libvirt_info("none", {})
    assert caught.value.event == "hook.image.overlay"
    agent.close()
    with pytest.raises(Unavailable):
        one.libvirt_info("none", {})


def test_half_downloads_of_a_dead_process_are_swept(
    backend: MHBackend, where: Path
) -> None:
    launch(backend, make_instance())
    stale = where / "_base" / ("0" * 40 + "_36.part")
    stale.write_bytes(b"x")
    other = where / "_base" / ("0" * 40 + ".part")
    other.write_bytes(b"x")
    Launcher.sweep()
    assert not stale.exists()
    assert other.exists()
    assert base_file(where).exists()


def test_write_disk_is_what_the_header_check_sees(where: Path) -> None:
    """The fixture's own check: the tests above use encrypted files."""
    path = where / "x"
    write_disk(str(path))
    assert path.read_bytes()[:4] == b"QFI\xfb"
    assert path.read_bytes()[32:36] == b"\0\0\0\2"
