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

"""Key stores, loaded by the name that the configuration gives."""

import stevedore
from oslo_config import cfg

from mh_kms.key_stores.base import KeyStore

NAMESPACE = "mh_kms.key_stores"


def load(conf: cfg.ConfigOpts) -> KeyStore:
    """The configured driver; whatever goes wrong stops the caller."""
    manager = stevedore.DriverManager(
        NAMESPACE,
        conf.kms.key_store,
        invoke_on_load=True,
        invoke_args=(conf,),
    )
    driver = manager.driver
    if not isinstance(driver, KeyStore):
        raise TypeError(f"{conf.kms.key_store} is not a key store")
    return driver
