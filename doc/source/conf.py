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
"""Sphinx configuration: ``sphinx-build -W -b html doc/source doc/build``."""

import importlib.metadata

project = "Mystery Hill"
author = "The Mystery Hill developers"
copyright = author  # noqa: A001
try:
    release = importlib.metadata.version("mystery-hill")
except importlib.metadata.PackageNotFoundError:
    release = "unknown"
extensions: list[str] = []
root_doc = "index"
exclude_patterns: list[str] = []
nitpicky = True
html_theme = "alabaster"
html_show_sourcelink = False
