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
"""For all tests: nothing is cached outside the run folder."""

from __future__ import annotations

import pathlib

from hypothesis import configuration, settings

RUN = pathlib.Path(__file__).resolve().parents[1] / "run"

configuration.set_hypothesis_home_dir(RUN / "cache" / "hypothesis")
# each run draws anew, so there is nothing to remember
settings.register_profile("tree", database=None, deadline=None)
settings.load_profile("tree")
