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
"""Flavors that ask for trusted hosts."""

from typing import Any, Protocol

from mh_core.errors import Conflict, Denied, MHError

EVENT = "client.flavor"
EXTRA_SPECS = {
    "trust:trusted_host": "trusted",
    "trait:CUSTOM_MH_TRUSTED_LAUNCH": "required",
}


class ComputeApi(Protocol):
    """An adapter to the compute endpoint; paths below the version."""

    def get(self, url: str, **kwargs: Any) -> Any: ...

    def post(self, url: str, **kwargs: Any) -> Any: ...

    def delete(self, url: str, **kwargs: Any) -> Any: ...


def checked(response: Any, event: str) -> Any:
    """:raises MHError: what nova answers, where that is an error."""
    code = int(response.status_code)
    if code < 400:
        return response
    try:
        body = response.json()
        text = str(next(iter(body.values()))["message"])
    except (ValueError, AttributeError, StopIteration, KeyError, TypeError):
        text = " ".join(str(response.text).split())
    kinds: dict[int, type[MHError]] = {403: Denied, 409: Conflict}
    raise kinds.get(code, MHError)(
        event, f"the compute service answered {code}: {text[:300]}"
    )


class Flavors:
    def __init__(self, api: ComputeApi) -> None:
        self._api = api

    def create(
        self, name: str, ram: int, vcpus: int, disk: int, flavor_id: str = ""
    ) -> dict[str, Any]:
        """:param ram: MiB. :param disk: GiB."""
        body = {"name": name, "ram": ram, "vcpus": vcpus, "disk": disk}
        answer = checked(
            self._api.post(
                "/flavors",
                json={"flavor": {**body, "id": flavor_id or None}},
                raise_exc=False,
            ),
            EVENT + ".create",
        )
        flavor = dict(answer.json()["flavor"])
        try:
            checked(
                self._api.post(
                    f"/flavors/{flavor['id']}/os-extra_specs",
                    json={"extra_specs": EXTRA_SPECS},
                    raise_exc=False,
                ),
                EVENT + ".extra-specs",
            )
        except MHError:
            # a flavor that asks for nothing must not stay
            self._api.delete(f"/flavors/{flavor['id']}", raise_exc=False)
            raise
        return {**flavor, "extra_specs": dict(EXTRA_SPECS)}
