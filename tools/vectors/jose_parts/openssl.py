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

"""What is asked of the openssl command."""

import pathlib
import subprocess
import tempfile

from jwcrypto import jwk


def run(*arguments: str, data: bytes | None = None) -> bytes:
    """Run openssl; its standard output."""
    done = subprocess.run(
        ["openssl", *arguments], input=data, capture_output=True, check=True
    )
    return done.stdout


def version() -> str:
    return run("version").split()[1].decode()


def _write(directory: str, name: str, data: bytes) -> str:
    path = pathlib.Path(directory, name)
    path.write_bytes(data)
    return str(path)


def _private(directory: str, key: jwk.JWK) -> str:
    pem = key.export_to_pem(private_key=True, password=None)
    return _write(directory, "key.pem", pem)


def derive(key: jwk.JWK, peer: jwk.JWK) -> bytes:
    """ECDH: the shared secret's x coordinate."""
    with tempfile.TemporaryDirectory() as directory:
        other = _write(directory, "peer.pem", peer.export_to_pem())
        return run(
            "pkeyutl",
            "-derive",
            "-inkey",
            _private(directory, key),
            "-peerkey",
            other,
        )


def decrypt(key: jwk.JWK, data: bytes) -> bytes:
    """RSA-OAEP with SHA-256."""
    with tempfile.TemporaryDirectory() as directory:
        return run(
            "pkeyutl",
            "-decrypt",
            "-inkey",
            _private(directory, key),
            "-pkeyopt",
            "rsa_padding_mode:oaep",
            "-pkeyopt",
            "rsa_oaep_md:sha256",
            "-pkeyopt",
            "rsa_mgf1_md:sha256",
            data=data,
        )


def sign(key: jwk.JWK, data: bytes) -> bytes:
    """ECDSA with SHA-256; ECDSA-Sig-Value in DER."""
    with tempfile.TemporaryDirectory() as directory:
        return run(
            "dgst", "-sha256", "-sign", _private(directory, key), data=data
        )


def sha256(data: bytes) -> str:
    """Hexadecimal."""
    return run("dgst", "-sha256", "-r", data=data).split()[0].decode()
