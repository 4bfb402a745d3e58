#!/usr/bin/env python3
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
"""The catalogue of event ids, read out of the source.

``python tools/events.py`` writes ``doc/source/reference/events.rst``. An id
is any string expression of the right form that is an argument, a default, a
returned value or a named constant; expressions are followed through the
constants of their module (``EVENT + ".nonce"``). Where a part is known only
at run time it stands in angle brackets. Nothing is imported.
"""

import ast
import pathlib
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field

ROOT = pathlib.Path(__file__).resolve().parents[1]
PAGE = ROOT / "doc/source/reference/events.rst"
PACKAGES = (
    "mh_core",
    "mh_reader",
    "mh_kms",
    "mh_attest",
    "mh_nova",
    "mh_scheduler",
    "mh_glance",
    "mh_client",
)
WHO = {
    "core": "Checks of ``mh_core``, which every package runs",
    "kms": "Key server",
    "attest": "Attestation server",
    "agent": "Agent on the compute host",
    "hook": "Driver hook in nova-compute",
    "scheduler": "Filter and extra-spec validator",
    "glance": "Encrypting and uploading images",
    "client": "Commands of the client",
    "reader": "Reader of file systems, on tenants' machines and hosts",
}
_PART = r"[a-z0-9<>_]+(?:[-_][a-z0-9<>_]+)*"
ID = re.compile(rf"(?:{'|'.join(WHO)})(?:\.{_PART}){{1,5}}")
# dotted names that are files
_FILE = re.compile(
    r"\.(conf|crt|json|jwk|pem|sock|sqlite|toml)$|^[a-z]+\.(key|log|token)$"
)


@dataclass
class Found:
    """One id: the modules that use it, and what they say."""

    modules: set[str] = field(default_factory=set)
    messages: set[str] = field(default_factory=set)


def _text(node: ast.expr, names: dict[str, str]) -> str | None:
    """The string an expression stands for; ``<name>`` for what is open."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else None
    if isinstance(node, ast.Name):
        return names.get(node.id)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        left, right = _text(node.left, names), _text(node.right, names)
        if left is None:
            return None
        return left + (right or f"<{_name(node.right)}>")
    if isinstance(node, ast.JoinedStr):
        parts = []
        for value in node.values:
            if isinstance(value, ast.FormattedValue):
                known = _text(value.value, names)
                parts.append(known or f"<{_name(value.value)}>")
            else:
                parts.append(_text(value, names) or "")
        return "".join(parts)
    return None


def _name(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else "value"


def _constants(tree: ast.Module) -> dict[str, str]:
    """String constants of the module and of its classes, in order."""
    names: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and len(node.targets) == 1:
            target, value = node.targets[0], node.value
        elif isinstance(node, ast.AnnAssign) and node.value is not None:
            target, value = node.target, node.value
        else:
            continue
        if isinstance(target, ast.Name) and target.id.isupper():
            text = _text(value, names)
            if text is not None:
                names[target.id] = text
    return names


def _used(tree: ast.Module) -> Iterator[tuple[ast.expr, ast.expr | None]]:
    """Expressions that may be ids, with what may be the message."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            words = [*node.args, *(word.value for word in node.keywords)]
            for place, word in enumerate(words):
                after = words[place + 1 :]
                yield word, after[0] if after else None
        elif isinstance(node, ast.Return) and node.value is not None:
            yield node.value, None
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            if node.value is not None:
                yield node.value, None
        elif isinstance(node, ast.Dict):
            for value in node.values:
                yield value, None
        elif isinstance(node, ast.arguments):
            for default in (*node.defaults, *node.kw_defaults):
                if default is not None:
                    yield default, None


def _flat(node: ast.expr) -> Iterator[ast.expr]:
    """The branches of a conditional, the items of a tuple."""
    if isinstance(node, ast.IfExp):
        yield from _flat(node.body)
        yield from _flat(node.orelse)
    elif isinstance(node, ast.Tuple | ast.List):
        for item in node.elts:
            yield from _flat(item)
    else:
        yield node


def scan(source: str, module: str, found: dict[str, Found]) -> None:
    """Add the ids of one module."""
    tree = ast.parse(source)
    names = _constants(tree)
    for expression, after in _used(tree):
        for node in _flat(expression):
            text = _text(node, names)
            if text is None or not ID.fullmatch(text) or _FILE.search(text):
                continue
            if _is_prefix(expression, tree, text):
                continue
            one = found.setdefault(text, Found())
            one.modules.add(module)
            message = _text(after, names) if after is not None else None
            if message and " " in message and not ID.fullmatch(message):
                one.messages.add(" ".join(message.split()))


def _is_prefix(node: ast.expr, tree: ast.Module, text: str) -> bool:
    """Is this the assignment of a constant that ids are made from?"""
    if text.count(".") > 1:
        return False
    return any(
        isinstance(statement, ast.Assign | ast.AnnAssign)
        and statement.value is node
        for statement in tree.body
    )


def catalogue(root: pathlib.Path = ROOT) -> dict[str, Found]:
    """Every id of the packages."""
    found: dict[str, Found] = {}
    for package in PACKAGES:
        for path in sorted((root / package).rglob("*.py")):
            module = ".".join(path.relative_to(root).with_suffix("").parts)
            scan(path.read_text(), module.removesuffix(".__init__"), found)
    return found


def render(found: dict[str, Found]) -> str:
    """The page."""
    lines = [
        ".. Written by tools/events.py; do not edit.",
        "",
        "=========",
        "Event ids",
        "=========",
        "",
        "Every refusal, and every grant, has one of these ids: in the answer",
        "of a service, in its audit record, in nova's fault, in tests.",
        "Ids are stable; sentences are not. A part in angle brackets is",
        "filled in at run time.",
        "",
    ]
    for who, title in WHO.items():
        ids = sorted(one for one in found if one.split(".")[0] == who)
        if not ids:
            continue
        lines += [title, "=" * len(title), "", ".. list-table::"]
        lines += ["   :header-rows: 1", "   :widths: 30 45 25", ""]
        lines += ["   * - id", "     - says", "     - module"]
        for one in ids:
            said = "; ".join(sorted(found[one].messages)[:3])
            where = ", ".join(f"``{m}``" for m in sorted(found[one].modules))
            lines += [
                f"   * - ``{one}``",
                f"     - {_escape(said)}".rstrip(),
                f"     - {where}",
            ]
        lines.append("")
    return "\n".join(lines)


def _escape(text: str) -> str:
    return re.sub(r"([\\*`_|])", r"\\\1", text)


def main() -> int:
    PAGE.write_text(render(catalogue()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
