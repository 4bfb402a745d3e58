#!/bin/bash
# ruff, mypy strict and the import rules; the same as `tox -e pep8`.
set -e
BIN=${1:+$1/}
"${BIN}ruff" check .
"${BIN}ruff" format --check .
"${BIN}mypy"
"${BIN}lint-imports" --cache-dir run/cache/imports
