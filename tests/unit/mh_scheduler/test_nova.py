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
"""How Nova finds the filter, the validator and the options."""

import nova.conf
import pytest
from nova import exception
from nova.api.validation.extra_specs import validators
from nova.scheduler import filters as nova_filters
from oslo_config import cfg

from mh_scheduler import conf, extra_specs, filters
from mh_scheduler.trusted import TrustedFilter


def test_the_filter_loads_as_nova_loads_it() -> None:
    handler = nova_filters.HostFilterHandler()
    classes = handler.get_matching_classes(
        ["mh_scheduler.filters.all_filters"]
    )
    assert classes == [TrustedFilter]
    assert classes[0]() is not None


def test_an_absent_filter_is_an_error() -> None:
    conf.register_opts(nova.conf.CONF)
    nova.conf.CONF.set_override("filters", ["nothing"], "mh_scheduler")
    try:
        with pytest.raises(RuntimeError, match="nothing"):
            filters.all_filters()
    finally:
        nova.conf.CONF.clear_override("filters", "mh_scheduler")


@pytest.mark.parametrize("value", ["trusted", "untrusted"])
def test_nova_accepts_the_extra_spec(value: str) -> None:
    validators.validate("trust:trusted_host", value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("trust:trusted_host", "maybe"),
        ("trust:trusted_host", "Trusted"),
        ("trust:trusted_hots", "trusted"),
        ("trust:nonsense", "x"),
    ],
)
def test_nova_refuses_a_misspelt_one(name: str, value: str) -> None:
    with pytest.raises(exception.ValidationError):
        validators.validate(name, value)


def test_register_is_what_nova_calls() -> None:
    (one,) = extra_specs.register()
    assert one.name == "trust:trusted_host"


def test_options_have_help_and_register_twice() -> None:
    own = cfg.ConfigOpts()
    conf.register_opts(own)
    conf.register_opts(own)
    own([])
    assert own.mh_scheduler.max_batch == 1000
    for _group, options in conf.list_opts():
        assert all(len(option.help) > 20 for option in options)
    with pytest.raises(ValueError, match="1000"):
        own.set_override("max_batch", 1001, "mh_scheduler")
