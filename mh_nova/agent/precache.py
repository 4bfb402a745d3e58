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
"""cache: a base that is fetched ahead of any launch.

There is no release yet, so no key to verify the manifest with: what came is
held against what the manifest *claims*, which finds a broken transfer, not a
liar. A launch holds the same digest against the verified manifest.
"""

import hmac

from mh_core.encoding import unb64u
from mh_core.errors import Denied, InputError, MHError
from mh_core.manifest import Manifest
from mh_nova.agent.work import Work

EVENT = "agent.cache"
CACHED = EVENT + ".cached"
STAGES = ("begin", "end", "failed")
#: Stands where a launch has its instance.
_USER = "cache"


def claimed(token: str) -> Manifest:
    """What a manifest says, unverified.

    :raises InputError: ``core.manifest``, ``agent.cache.manifest``.
    """
    try:
        return Manifest.parse(unb64u(token.split(".")[1]))
    except IndexError as exc:
        raise InputError(EVENT + ".manifest", "not a manifest") from exc


class Caching(Work):
    """nova's image precaching."""

    def cache(self, image: str, token: str, stage: str) -> None:
        """
        :param token: the image's manifest.
        :param stage: ``begin``: hash the download as it grows; ``end``: it
            is complete, and becomes the base; ``failed``: it is not coming.
        :raises Denied: ``agent.cache.content``: not what the manifest
            claims; ``agent.cache.container``; ``agent.measure.writer``.
        :raises MHError: ``agent.hash.*``, as :func:`claimed`.
        """
        bases = self._p.bases
        if stage == "failed":
            bases.reject(image, _USER)
            return
        manifest = claimed(token)
        if manifest.container is not None:
            raise Denied(
                EVENT + ".container",
                "an OVA is fetched when it is launched",
            )
        if stage == "begin":
            # of a nova-compute that died
            bases.leave(image, _USER)
            bases.follow(image, _USER)
            return
        bases.downloaded(image)
        try:
            with bases.candidate(image, self._conf.measure_timeout) as hashed:
                if (
                    manifest.image != image
                    or hashed.size != manifest.size
                    or not hmac.compare_digest(hashed.sha256, manifest.sha256)
                ):
                    raise Denied(
                        EVENT + ".content",
                        "what came is not what the manifest claims",
                    )
                bases.adopt(image, hashed)
        except MHError:
            bases.reject(image, _USER)
            raise
        bases.leave(image, _USER)
        self._p.journal.write(
            CACHED, "", durable=False, image=image, sha256=manifest.sha256
        )
