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
"""What a host will measure inside an image, measured here and now.

The tenant's machine reads the plain image with the program that a host
reads the encrypted one with (:mod:`mh_reader.run`), shut in just as there;
what it finds is what the manifest demands.
"""

import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

from mh_core.errors import InputError
from mh_core.image import luks1
from mh_core.manifest import MAX_MODULES
from mh_core.secret import Secret
from mh_glance.inspect import inspect
from mh_reader.export import Source, encrypted, exported
from mh_reader.run import run

EVENT = "client.measure"
FORMS = "ciphertext, boot, all, or modules=<path>[,<path>...]"


@dataclass(frozen=True)
class Question:
    """
    :param measure: one of ``mh_core.manifest.MEASURES``.
    :param names: of ``modules``: a path that is on one volume only, or
        ``<volume>:<path>``.
    """

    measure: str = "ciphertext"
    names: tuple[str, ...] = ()


def parse(text: str) -> Question:
    """:raises InputError: ``client.measure.form``."""
    kind, equals, listed = text.partition("=")
    if not equals and kind in ("ciphertext", "boot", "all"):
        return Question(kind)
    names = tuple(name for name in listed.split(",") if name)
    if kind != "modules" or not names:
        raise InputError(EVENT + ".form", f"not one of {FORMS}")
    if len(names) > MAX_MODULES:
        raise InputError(EVENT + ".form", f"more than {MAX_MODULES} modules")
    return Question(kind, names)


def measure(
    path: str,
    form: str | None,
    question: Question,
    key: Callable[[], Secret],
) -> dict[str, str]:
    """Modules of an image, for its manifest.

    :param form: of the image, see ``mh_glance.inspect.inspect``.
    :param key: asked where the image is raw LUKS already.
    :returns: full name to SHA-256 (hex); empty where only the ciphertext
        is to be measured.
    :raises InputError: ``client.image.*``, ``client.measure.file|number``.
    :raises Denied: ``reader.run.*``: it cannot be measured so.
    :raises Unavailable: ``reader.*``.
    """
    if question.measure == "ciphertext":
        return {}
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as exc:
        raise InputError(
            EVENT + ".file", f"cannot read {path}: {exc.strerror}"
        ) from exc
    try:
        with _opened(fd, form, key) as blocks:
            found = run(blocks, question.measure, question.names)
    finally:
        os.close(fd)
    if len(found) > MAX_MODULES:
        raise InputError(
            EVENT + ".number", f"the image has more than {MAX_MODULES} modules"
        )
    return found


def _opened(
    fd: int, form: str | None, key: Callable[[], Secret]
) -> AbstractContextManager[Source]:
    if form == "luks":
        passphrase = Secret(luks1.passphrase(key().reveal()))
        return encrypted(fd, "luks", passphrase)
    return exported(fd, inspect(fd, form).options(fd))
