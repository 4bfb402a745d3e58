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
"""Files inside an encrypted image, measured by the agent's own process."""

import dataclasses
import os
import pathlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from mh_core.errors import Denied, InputError, MHError
from mh_core.secret import Secret
from mh_glance.encrypt import encrypt
from mh_glance.measure import Question, measure
from mh_nova.agent.measurers.files import FilesMeasurer
from tests.functional.mh_nova.agent.world import World
from tests.functional.mh_reader import disks


class Host(World):
    """Whose tenant has an operating system in the image."""

    MEASURERS = ("ciphertext", "files")

    def __init__(self, folder: Path, form: str = "qcow2") -> None:
        self.plain = folder / "plain"
        files = folder / "files"
        (files / "boot/grub").mkdir(parents=True)
        (files / "boot/vmlinuz").write_bytes(os.urandom(100_000))
        (files / "boot/grub/grub.cfg").write_text("linux /boot/vmlinuz\n")
        (files / "etc").mkdir()
        (files / "etc/passwd").write_text("root:x:0:0::/root:/bin/sh\n")
        disks.ext(self.plain, files, mib=8)
        super().__init__(folder)
        self.tenant.file.unlink()
        encrypt(
            str(self.plain),
            str(self.tenant.file),
            Secret(self.tenant.dek),
            kind=form,
        )
        self.format = {"qcow2": "qcow2+luks", "luks": "luks"}[form]

    def ask(self, what: str, **changes: str) -> None:
        """Sign a manifest that asks for it; ``changes`` are lies in it."""
        kind, _, names = what.partition("=")
        question = Question(kind, tuple(names.split(",")) if names else ())
        modules = measure(
            str(self.plain), "raw", question, lambda: Secret(b"")
        )
        described = dataclasses.replace(
            self.tenant.describe(),
            format=self.format,
            measure=kind,
            modules=modules | changes,
        )
        self.modules = described.modules
        self.tenant.manifest = described.sign(self.tenant.signing)

    def verdicts(self) -> dict[str, str]:
        attempt = self.launcher._attempts.get(self.instance)
        assert attempt is not None
        assert attempt.measured is not None
        return attempt.measured.verdicts


@pytest.fixture
def host(tmp_path: pathlib.Path) -> Iterator[Host]:
    world = Host(tmp_path)
    yield world
    # the group of options, and so what is set in it, is all tests' own
    for name in ("reader_sha256", "reader_memory", "reader_user"):
        world.conf.clear_override(name, group="agent")
    world.stop()


def refusal(host: Host) -> str:
    with pytest.raises(Denied) as caught:
        host.make()
    assert caught.value.event == "agent.measure.measurer"
    assert not host.base.exists()
    assert not host.disk.exists()
    assert host.secrets.ever == 0
    assert "agent.measure.measurer" in host.events()
    return caught.value.message


@pytest.mark.parametrize(
    "what", ["modules=/etc/passwd,disk:/boot/", "boot", "all"]
)
def test_what_the_tenant_measured_the_host_finds(
    host: Host, what: str
) -> None:
    host.ask(what)
    host.make()
    assert host.modules
    assert host.verdicts() == {
        "ciphertext": "ok",
        "files": "ok",
        **{f"files:{name}": "ok" for name in host.modules},
    }
    host.start()
    assert host.secrets.defined


def test_nothing_is_read_where_nothing_is_asked(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(*_args: object) -> None:
        raise AssertionError("read")

    host.ask("ciphertext")
    monkeypatch.setattr(FilesMeasurer, "_measure", none)
    host.make()
    assert host.verdicts() == {"ciphertext": "ok"}


def test_raw_luks(tmp_path: pathlib.Path) -> None:
    host = Host(tmp_path, "luks")
    try:
        host.ask("boot")
        host.make()
        assert host.verdicts()["files:disk:/boot/vmlinuz"] == "ok"
    finally:
        host.stop()


def test_one_module_differs(host: Host) -> None:
    host.ask("boot", **{"disk:/boot/vmlinuz": "12" * 32})
    assert "disk:/boot/vmlinuz is not what the manifest says" in refusal(host)


def test_one_module_more_than_the_manifest_lists(host: Host) -> None:
    host.ask("boot")
    del host.modules["disk:/boot/vmlinuz"]
    described = dataclasses.replace(
        host.tenant.describe(), measure="boot", modules=host.modules
    )
    host.tenant.manifest = described.sign(host.tenant.signing)
    assert "disk:/boot/vmlinuz is not in the manifest" in refusal(host)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("disk:/etc/shadow", "disk:/etc/shadow: is not there"),
        ("p1:/etc/passwd", "no such volume"),
        ("disk:/" + "long/" * 800 + "end", "end: is not there"),
    ],
)
def test_one_module_that_is_not_there(
    host: Host, name: str, words: str
) -> None:
    host.ask("modules=/etc/passwd", **{name: "12" * 32})
    message = refusal(host)
    assert words in message or "reader.run.disk" in message
    assert len(message) < 500


def test_a_boot_module_that_is_not_there(host: Host) -> None:
    host.ask("boot", **{"disk:/boot/other": "12" * 32})
    assert "disk:/boot/other is not there" in refusal(host)


def test_a_host_without_the_measurer_does_not_start_it(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Host, "MEASURERS", ("ciphertext",))
    host = Host(tmp_path)
    try:
        host.ask("boot")
        assert "no measurer of this host measures 'boot'" in refusal(host)
    finally:
        host.stop()


def test_a_measurer_that_was_not_configured(host: Host) -> None:
    host.ask("boot")
    measurer = host.measurers["files"]
    assert isinstance(measurer, FilesMeasurer)
    measurer._reader = None
    assert "there is no reader" in refusal(host)


def test_another_program_is_not_run(host: Host) -> None:
    host.conf.set_override("reader_sha256", "12" * 32, group="agent")
    host.measurers["files"].configure(host.conf.agent)
    host.ask("boot")
    assert "reader.program.digest" in refusal(host)


def test_a_file_system_that_ends_the_process(host: Host) -> None:
    """The image is the tenant's own; its file system is hostile."""
    host.conf.set_override("reader_memory", 64, group="agent")
    host.measurers["files"].configure(host.conf.agent)
    host.ask("boot")
    disks.run(
        *("debugfs", "-w", "-R"),
        "set_inode_field /boot/vmlinuz size 0x7fffffffffff",
        host.plain,
    )
    host.tenant.file.unlink()
    encrypt(str(host.plain), str(host.tenant.file), Secret(host.tenant.dek))
    described = dataclasses.replace(
        host.tenant.describe(), measure="boot", modules=host.modules
    )
    host.tenant.manifest = described.sign(host.tenant.signing)
    message = refusal(host)
    assert "reader.run." in message
    # and the agent goes on
    other = host.record(manifest=host.tenant.manifest)
    host.launcher.prepare(other, "launch", "")


def test_what_was_measured_is_not_measured_again(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    host.ask("boot")
    host.make()
    host.start()
    host.launcher.started(host.instance, True)

    def none(*_args: object) -> None:
        raise AssertionError("measured again")

    with monkeypatch.context() as patched:
        patched.setattr(FilesMeasurer, "_measure", none)
        host.start("start")
        assert host.verdicts()["files"] == "ok"
        host.launcher.started(host.instance, True)
    # another question about the same bytes is another question
    host.ask("modules=/etc/passwd", **{"disk:/etc/passwd": "12" * 32})
    host.instance = host.new_instance()
    with pytest.raises(MHError, match="is not what the manifest says"):
        host.make()


def test_the_key_is_in_no_argument_of_the_export(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[bytes] = []
    real = FilesMeasurer._measure

    def watched(self: FilesMeasurer, *args: object) -> None:
        import mh_nova.agent.measurers.files as module

        run = module.run

        def looking(*inner: object) -> dict[str, str]:
            for task in pathlib.Path("/proc/self/task").iterdir():
                for child in (task / "children").read_text().split():
                    path = pathlib.Path("/proc") / child
                    seen.append((path / "cmdline").read_bytes())
                    seen.append((path / "environ").read_bytes())
            return run(*inner)  # type: ignore[arg-type]

        monkeypatch.setattr(module, "run", looking)
        real(self, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(FilesMeasurer, "_measure", watched)
    host.ask("boot")
    host.make()
    assert any(b"qemu-nbd" in one for one in seen)
    dek = host.tenant.dek
    for one in seen:
        assert dek not in one
        assert dek.hex().encode() not in one


@pytest.mark.parametrize("user", ["root", "nobody-of-this-name"])
def test_a_user_that_will_not_do(host: Host, user: str) -> None:
    host.conf.set_override("reader_user", user, group="agent")
    with pytest.raises(InputError) as caught:
        host.measurers["files"].configure(host.conf.agent)
    assert caught.value.event == "agent.conf.reader"
