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
"""``make demo``: the main job, the refusals and the search, on real parts."""

from __future__ import annotations

import argparse
import signal
import sys
import typing

from tests.minicloud import layout
from tests.minicloud.cloud import Cloud
from tests.minicloud.process import CloudError
from tests.minicloud.refusals import load, try_one
from tests.minicloud.report import Report
from tests.minicloud.searches import Searches
from tests.minicloud.story import Story
from tests.minicloud.trusted import TrustedCloud
from tests.minicloud.world import World

SUMMARY = layout.RUN / "demo.json"


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


def _tail(report: Report, product: TrustedCloud) -> None:
    """The logs of our own services, and where the rest is."""
    logs = product.cloud.where.log
    names = ["mh-kms", "mh-attest", "node1-mh-agent", "node1-nova-compute"]
    for name in names:
        path = logs / f"{name}.log"
        if path.exists():
            text = path.read_text(errors="replace").splitlines()[-15:]
            report.say(f"--- the end of {path}")
            for line in text:
                report.say(line[:300])
    report.say(f"--- all logs are in {logs}")


def play(report: Report, product: TrustedCloud) -> None:
    """Everything, in order; a step that fails makes later ones missing."""
    with report.happen("step", "the cloud and the product start"):
        product.start()
    world = World(product)
    story = Story(world, report.say)
    why = ""
    for name, method in story.steps():
        if why and method.__name__ not in ("bare_ak_is_off",):
            report.missing("step", name, why)
            continue
        try:
            with report.happen("step", name) as line:
                line.event = method()
        except Exception as error:
            if method.__name__ not in ("debian", "bare_ak"):
                why = f"after a step that failed: {error}"
    searches = Searches(story)
    _each(report, "search", searches.while_running(), why)
    for one in load():
        name = f"{one.name}: by the {one.by}"
        if why:
            report.missing("refusal", name, why)
            continue
        try:
            with report.happen("refusal", name) as line:
                line.event = try_one(world, story.disk_image, one)
        except Exception:  # noqa: S112 - happen() has said it
            continue
    _each(report, "search", searches.after_deletion(), why)


def _each(
    report: Report, kind: str, cases: list[tuple[str, typing.Any]], why: str
) -> None:
    for name, method in cases:
        if why:
            report.missing(kind, name, why)
            continue
        try:
            with report.happen(kind, name) as line:
                line.event = method()
        except Exception:  # noqa: S112 - happen() has said it
            continue


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.minicloud.demo")
    parser.add_argument("--keep", action="store_true")
    keep = parser.parse_args().keep
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _interrupt)
    report = Report()
    product = TrustedCloud(Cloud())
    code = 1
    try:
        play(report, product)
        code = 0 if report.ok else 1
    except KeyboardInterrupt:
        report.say("interrupted")
        keep, code = False, 130
    except CloudError as error:
        report.say(f"failed: {error}")
    finally:
        if code:
            _tail(report, product)
        if keep:
            _explain(report, product)
        else:
            product.stop()
    report.table()
    report.save(SUMMARY)
    report.say(f"summary: {SUMMARY}")
    report.say("as expected" if code == 0 else "NOT as expected")
    return code


def _explain(report: Report, product: TrustedCloud) -> None:
    """Write what a person sources, and say so."""
    for user in ("tenant", "admin"):
        path = product.base / f"openrc-{user}"
        lines = [
            f"export {name}={value!r}"
            for name, value in product.environment(user).items()
        ]
        lines.append(f"export PATH={str(product.cloud.where.bin)!r}:$PATH")
        path.write_text("\n".join(lines) + "\n")
        report.say(f"as {user}: . {path}")
    report.say("then: openstack trusted --help; make demo-stop ends it")


if __name__ == "__main__":
    sys.exit(main())
