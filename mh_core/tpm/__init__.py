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

"""Pure parsing, building and checking of TPM 2.0 structures.

Nothing here does I/O, reads a clock or needs libtss2: the key server, the
attestation server and the agent hand over bytes and get an answer or one
exception of :mod:`mh_core.errors`.

* :class:`mh_core.errors.InputError`: the bytes are not the structure;
* :class:`mh_core.errors.VerificationError`: they are, and prove nothing.

Sources are named as "Part 1" .. "Part 3": Trusted Computing Group, "Trusted
Platform Module Library", family 2.0, parts "Architecture", "Structures" and
"Commands".
"""
