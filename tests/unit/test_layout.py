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
"""Facts about the tree, held by tests."""

import ast
import configparser
import importlib.util
import pathlib
import re
import subprocess
import sys
import types

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
PACKAGES = (
    "mh_attest",
    "mh_client",
    "mh_core",
    "mh_glance",
    "mh_kms",
    "mh_nova",
    "mh_reader",
    "mh_scheduler",
)
OWN_NAMESPACES = {
    "mh_attest.evidence",
    "mh_kms.attestors",
    "mh_kms.key_stores",
    "mh_kms.policy_checks",
    "mh_nova.driver",
    "mh_nova.measurers",
    "mh_scheduler.filters",
}
MAX_LINES = 400
# a test module may hold one long table of cases
MAX_TEST_LINES = 900
# none; a file that grows longer is two files
LONGER: frozenset[str] = frozenset()
PROTOCOL = ROOT / "doc/source/reference/protocol.rst"


def _files(*suffixes: str) -> list[pathlib.Path]:
    """Files of the tree: what git has, and what it would add."""
    done = subprocess.run(
        ["git", "ls-files", "-z", "-c", "-o", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
        text=True,
    )
    paths = [ROOT / name for name in done.stdout.split("\0") if name]
    return [
        path
        for path in paths
        if path.is_file() and (not suffixes or path.suffix in suffixes)
    ]


def _name(path: pathlib.Path) -> str:
    return str(path.relative_to(ROOT))


def _setup() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    return parser


def _entry_points() -> dict[str, dict[str, str]]:
    """Group to name to ``module[:attribute]``, as setup.cfg has them."""
    groups = {}
    for group, text in _setup()["entry_points"].items():
        lines = [line for line in text.splitlines() if line.strip()]
        pairs = (line.split("=", 1) for line in lines)
        groups[group] = {name.strip(): to.strip() for name, to in pairs}
    return groups


def test_the_tree_is_seen() -> None:
    names = {_name(path) for path in _files(".py")}
    assert "mh_core/errors.py" in names
    assert "tests/unit/test_layout.py" in names


def test_every_source_file_has_the_licence_header() -> None:
    header = (ROOT / "mh_core/errors.py").read_text().splitlines()[:11]
    bare = []
    for path in _files(".py"):
        lines = path.read_text().splitlines()
        if lines and lines[0].startswith("#!"):
            del lines[0]
        if lines and lines[:11] != header:
            bare.append(_name(path))
    assert bare == []


def _most(path: pathlib.Path) -> int:
    return MAX_TEST_LINES if _name(path).startswith("tests/") else MAX_LINES


def test_no_source_file_is_long() -> None:
    long = {
        _name(path)
        for path in _files(".py")
        if len(path.read_text().splitlines()) > _most(path)
    }
    assert long == LONGER


def test_no_file_names_a_path_of_one_machine() -> None:
    pattern = re.compile(rb"(?<![\w.}\-])/(?:work/|farm/|root/\.)")
    named = [
        _name(path)
        for path in _files()
        if path != pathlib.Path(__file__).resolve()
        and pattern.search(path.read_bytes())
    ]
    assert named == []


def test_every_entry_point_resolves() -> None:
    # in one process per kind: nova must be the first to import threads
    groups = _entry_points()
    wanted = sorted(
        {
            (f"{group}.{name}", target)
            for group, names in groups.items()
            for name, target in names.items()
        }
    )
    program = (
        "import importlib, sys\n"
        "for line in sys.stdin:\n"
        "    point, target = line.split()\n"
        "    module, _, name = target.partition(':')\n"
        "    try:\n"
        "        found = importlib.import_module(module)\n"
        "        for part in name.split('.') if name else ():\n"
        "            found = getattr(found, part)\n"
        "    except Exception as exc:\n"
        "        print(point, type(exc).__name__, exc)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        input="".join(f"{point} {target}\n" for point, target in wanted),
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""


def test_namespaces_are_those_of_the_design() -> None:
    groups = {name for name in _entry_points() if name.startswith("mh_")}
    assert groups == OWN_NAMESPACES


def _contracts(group: str) -> list[str]:
    """Names of the abstract classes with a contract behind a namespace.

    :raises ImportError: a driver does not load.
    """
    program = (
        "import importlib, inspect, sys\n"
        "for target in sys.argv[1:]:\n"
        "    module, _, name = target.partition(':')\n"
        "    made = getattr(importlib.import_module(module), name)\n"
        "    print(' '.join(\n"
        "        one.__name__ for one in made.__mro__[1:]\n"
        "        if one.__module__.startswith('mh_')\n"
        "        and getattr(one, '__abstractmethods__', None)\n"
        "        and 'ecurity contract' in (inspect.getdoc(one) or '')))\n"
    )
    targets = sorted(_entry_points()[group].values())
    done = subprocess.run(
        [sys.executable, "-c", program, *targets],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        timeout=120,
    )
    if done.returncode:
        raise ImportError(done.stderr)
    return done.stdout.splitlines()


@pytest.mark.parametrize("group", sorted(OWN_NAMESPACES))
def test_every_driver_has_a_security_contract(group: str) -> None:
    found = _contracts(group)
    assert found
    assert all(found), f"{group}: no abstract class states its contract"
    assert len(set(found)) == 1, "drivers of one namespace, one contract"


def _documented() -> set[tuple[str, str]]:
    """(method, path) of every row of the protocol page's tables."""
    request = re.compile(r"``(GET|POST|PUT|DELETE) (/[^ `]+)``")
    return {
        (method, path)
        for line in PROTOCOL.read_text().splitlines()
        if line.startswith("``")
        for method, path in request.findall(line)
    }


def _plain(path: str) -> str:
    """A path with its parameters unnamed."""
    return re.sub(r"\{[^}]*\}", "{}", path)


def _routes(source: str) -> set[tuple[str, str]]:
    """(method, path) of a service's one route table, ``ROUTES``."""
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            f"from {source} import ROUTES\n"
            "for path, methods in ROUTES.items():\n"
            "    for method in methods:\n"
            "        print(method, path)\n",
        ],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return {
        (method, _plain(path))
        for method, path in (line.split() for line in done.stdout.splitlines())
    }


@pytest.mark.parametrize("source", ["mh_kms.handler", "mh_attest.routes"])
def test_every_route_is_on_the_protocol_page(source: str) -> None:
    routes = _routes(source)
    documented = {(method, _plain(path)) for method, path in _documented()}
    assert ("GET", "/v1") in routes
    assert routes - documented == set()


def test_the_protocol_page_promises_no_route_that_is_not_there() -> None:
    routes = _routes("mh_kms.handler") | _routes("mh_attest.routes")
    documented = {(method, _plain(path)) for method, path in _documented()}
    assert documented - routes == set()


def _calls(path: pathlib.Path, name: str) -> list[str]:
    """Functions of a module that call ``name`` (``f()`` or ``m.f()``)."""
    callers = []
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.FunctionDef):
            continue
        for call in ast.walk(node):
            if isinstance(call, ast.Call) and name == (
                getattr(call.func, "id", None)
                or getattr(call.func, "attr", None)
            ):
                callers.append(node.name)
    return callers


def test_a_key_is_wrapped_in_two_places_only() -> None:
    """release_key() to a host, deliver_key() to an owner."""
    found = {
        (_name(path), function)
        for path in _files(".py")
        if _name(path).startswith("mh_kms/")
        for function in _calls(path, "wrap")
    }
    assert found == {
        ("mh_kms/release.py", "release_key"),
        ("mh_kms/deliver.py", "deliver_key"),
    }


def test_every_command_has_a_unit_or_is_for_people() -> None:
    commands = set(_entry_points()["console_scripts"])
    units = "".join(
        path.read_text()
        for path in (ROOT / "etc/systemd").rglob("*")
        if path.is_file()
    )
    started = set(re.findall(r"^ExecStart=/usr/bin/(\S+)", units, re.M))
    assert started <= commands
    # libvirt's own, by the script that is its hook
    hook = (ROOT / "etc/mh-nova/libvirt-qemu-hook").read_text()
    started |= set(re.findall(r"^exec (\S+)", hook, re.M))
    assert started <= commands
    assert commands - started == {"mh-kms-manage", "mh-attest-manage"}


def _events() -> types.ModuleType:
    spec = importlib.util.spec_from_file_location(
        "events", ROOT / "tools/events.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_the_catalogue_of_event_ids_is_complete() -> None:
    page = (ROOT / "doc/source/reference/events.rst").read_text()
    listed = set(re.findall(r"^   \* - ``(.+)``$", page, re.M))
    assert listed - {"id"} == set(_events().catalogue()), (
        "run: python tools/events.py"
    )


def test_no_literal_event_id_escapes_the_catalogue() -> None:
    """Independent of the catalogue's own reading of the source."""
    events = _events()
    listed = set(events.catalogue())
    who = "|".join(events.WHO)
    literal = re.compile(rf'"((?:{who})(?:\.[a-z0-9_-]+){{2,}})"')
    escaped = set()
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            escaped |= set(literal.findall(path.read_text())) - listed
    prefixes = {one.rpartition(".")[0] for one in listed}
    assert escaped - prefixes == set()


def test_the_catalogue_follows_constants_and_marks_what_is_open() -> None:
    events = _events()
    found: dict[str, object] = {}
    events.scan(
        'EVENT = "agent.thing"\n'
        "def f(name):\n"
        '    raise Denied(EVENT + ".sort", "a reason")\n'
        "def g(name):\n"
        '    raise Denied(f"{EVENT}.{name}", "x")\n'
        'PATH = "/etc/agent.conf"\n',
        "mh_nova.agent.thing",
        found,
    )
    assert set(found) == {"agent.thing.sort", "agent.thing.<name>"}
    assert found["agent.thing.sort"].messages == {"a reason"}  # type: ignore[attr-defined]


def _pages() -> list[pathlib.Path]:
    return [ROOT / "README.rst", *_files(".rst")]


def test_every_file_that_the_documentation_names_is_there() -> None:
    path = re.compile(r"``((?:mh_[a-z]+|tests|tools|etc|doc)/[\w/.\-]+)``")
    missing = {
        (_name(page), name)
        for page in _pages()
        for name in path.findall(page.read_text())
        if not (ROOT / name).exists()
    }
    assert missing == set()


def _options() -> dict[str, set[str]]:
    """Options of our own by group, from every ``oslo.config.opts``."""
    program = (
        "import importlib, sys\n"
        "for target in sys.argv[1:]:\n"
        "    module, _, name = target.partition(':')\n"
        "    made = getattr(importlib.import_module(module), name)()\n"
        "    for group, options in made:\n"
        "        for option in options:\n"
        "            print(getattr(group, 'name', group), option.dest)\n"
    )
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            program,
            *_entry_points()["oslo.config.opts"].values(),
        ],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, set[str]] = {}
    for line in done.stdout.splitlines():
        group, option = line.split()
        found.setdefault(group, set()).add(option)
    return found


def _settings(text: str) -> set[tuple[str, str]]:
    """(group, option) of the configuration files shown in a page."""
    group, found = "", set()
    for line in text.splitlines():
        if not line.startswith("    "):
            group = "" if line.strip() else group
        elif head := re.fullmatch(r" +\[(\w+)\]", line):
            group = head[1]
        elif group and (one := re.match(r" +(\w+) = ", line)):
            found.add((group, one[1]))
    return found


def test_every_setting_in_the_installation_guide_exists() -> None:
    options = _options()
    shown = {
        setting
        for page in (ROOT / "doc/source/install").glob("*.rst")
        if page.name != "client.rst"
        for setting in _settings(page.read_text())
        if setting[0] in options
    }
    assert ("kms", "origin") in shown
    unknown = {
        (group, option)
        for group, option in shown
        if option not in options[group]
    }
    assert unknown == set()


def test_every_name_of_an_event_in_the_documentation_exists() -> None:
    events = _events()
    known = set(events.catalogue())
    open_ended = {one.partition("<")[0] for one in known if "<" in one}
    prefixes = {one.rpartition(".")[0] for one in known}
    missing = {
        (_name(page), name)
        for page in _pages()
        if page.name not in ("events.rst", "protocol.rst")
        for name in re.findall(
            r"``([a-z]+(?:\.[a-z0-9-]+){2,})``", page.read_text()
        )
        if name.split(".")[0] in events.WHO
        and name not in known | prefixes
        and not any(name.startswith(start) for start in open_ended)
    }
    assert missing == set()
