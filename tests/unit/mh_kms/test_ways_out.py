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

"""Key material leaves by two functions; read from the source itself."""

import ast
import pathlib
from collections.abc import Iterator

import mh_kms

ROOT = pathlib.Path(mh_kms.__file__).parent


def calls() -> Iterator[tuple[str, str, ast.Call]]:
    """(module:function, what is called, call) for all of mh_kms."""
    for path in sorted(ROOT.rglob("*.py")):
        module = path.relative_to(ROOT).as_posix()
        tree = ast.parse(path.read_text())
        for name, node in _with_function(tree, "<module>"):
            if isinstance(node, ast.Call):
                yield f"{module}:{name}", ast.unparse(node.func), node


def _with_function(node: ast.AST, name: str) -> Iterator[tuple[str, ast.AST]]:
    for child in ast.iter_child_nodes(node):
        inner = name
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            inner = child.name
        yield inner, child
        yield from _with_function(child, inner)


def where(*names: str) -> set[str]:
    return {
        place
        for place, called, _ in calls()
        if called.rsplit(".", 1)[-1] in names
    }


def test_wrap_has_two_callers() -> None:
    assert where("wrap") == {
        "release.py:release_key",
        "deliver.py:deliver_key",
    }


def test_payloads_are_made_in_one_place() -> None:
    assert where("ReleasePayload") == {"release.py:release_key"}
    assert where("to_bytes") <= {"release.py:release_key"}


def test_sealed_keys_are_opened_where_they_leave() -> None:
    opened = {
        place
        for place, called, _ in calls()
        if called.endswith("key_store.open")
    }
    assert opened == {
        "release.py:release_key",
        "deliver.py:deliver_key",
        # the server's own transport key
        "transport.py:load",
    }
    assert where("sealed_dek", "sealed_root") == {
        "release.py:release_key",
        "deliver.py:deliver_key",
        # to destroy
        "api/keys.py:delete",
    }


def test_secrets_are_revealed_in_few_places() -> None:
    assert where("reveal") == {
        "release.py:_overlay_keys",
        "deliver.py:deliver_key",
        # its length
        "api/keys.py:create",
        "snapshot.py:_key",
        "key_stores/software.py:seal",
        # not keys: the transport key, tokens
        "transport.py:unwrap",
        "transport.py:sign",
        "transport.py:load",
        "db/tokens.py:add",
        "attestors/native.py:_once",
        "cmd/manage.py:_write",
        "cmd/manage.py:token_create",
    }


def test_no_other_way_to_encrypt_or_to_reach_jose() -> None:
    for path in sorted(ROOT.rglob("*.py")):
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom):
                assert (node.module or "").split(".")[0] != "joserfc"
                if node.module == "mh_core.jose":
                    raise AssertionError(f"{path}: import jose as a module")


def test_release_key_is_called_by_the_two_forms() -> None:
    assert where("release_key") == {
        "api/release.py:release",
        "compat.py:release_to_ak",
    }
    assert where("deliver_key") == {"api/keys.py:deliver"}
