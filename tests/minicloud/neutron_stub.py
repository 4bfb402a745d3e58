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

"""The only stand-in of the minicloud: a Networking API without networks.

Nova asks the Networking service about the ports of each server even when
the server has none.  Every collection is empty and nothing can be made.
"""

import http.server
import json
import sys


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def answer(self, code: int, body: object) -> None:
        data = json.dumps(body).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def refuse(self, code: int, kind: str, message: str) -> None:
        self.answer(
            code,
            {"NeutronError": {"type": kind, "message": message, "detail": ""}},
        )

    def do_GET(self) -> None:
        path = self.path.partition("?")[0].strip("/")
        parts = path.removesuffix(".json").split("/")
        if parts in ([""], ["v2.0"]):
            here = f"http://{self.headers.get('Host')}/v2.0/"
            version = {
                "id": "v2.0",
                "status": "CURRENT",
                "links": [{"rel": "self", "href": here}],
            }
            if parts == [""]:
                self.answer(200, {"versions": [version]})
            else:
                self.answer(200, {"version": version, "resources": []})
        elif len(parts) == 2:
            self.answer(200, {parts[1].replace("-", "_"): []})
        elif parts[1:2] == ["quotas"] and len(parts) == 3:
            self.answer(200, {"quota": {"port": -1}})
        else:
            self.refuse(404, "NotFound", self.path)

    def do_POST(self) -> None:
        self.refuse(403, "Forbidden", "no networks in this test cloud")

    do_PUT = do_DELETE = do_POST

    def log_message(self, format: str, *args: object) -> None:
        print(self.command, self.path, flush=True)


if __name__ == "__main__":
    http.server.ThreadingHTTPServer(
        ("127.0.0.1", int(sys.argv[1])), Handler
    ).serve_forever()
