"""Answers as llama.cpp's server does, over the socket that it is told of. Run as a program.

Of five rows of the head the likelihood falls with the id; 7 is a prompt that ends, 8 is one that
kills it, 9 one that it refuses.
"""

from __future__ import annotations

import json
import os
import socketserver
import sys
from http.server import BaseHTTPRequestHandler
from typing import Any

ENDS, KILLS, REFUSED = [7], [8], [9]
LEAST = -3.4028234663852886e38


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        self.say({"build_info": "b7", "arguments": sys.argv[1:]})

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/tokenize":
            self.say({"tokens": [ord(one) for one in asked["content"]]})
        elif self.path == "/apply-template":
            self.say({"prompt": "|".join(one["content"] for one in asked["messages"])})
        elif asked["prompt"] == REFUSED:
            self.say({"error": "too much"}, 400)
        elif asked["prompt"] == KILLS:
            print("error: the number 8 is bad", file=sys.stderr, flush=True)
            os._exit(3)
        elif "n_probs" in asked:
            self.say({"completion_probabilities": [likelihoods(asked["prompt"][-1])]})
        else:
            how = "eos" if asked["prompt"] == ENDS else "limit"
            self.say({"tokens": [1, 2, 3], "stop_type": how})

    def say(self, answer: Any, status: int = 200) -> None:
        data = json.dumps(answer, separators=(",", ":")).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


def likelihoods(last: int) -> dict[str, Any]:
    said = {3: -last - 3.0, 0: float(-last), 1: -last - 1.0, 2: -last - 2.0, 4: LEAST}
    rows = [
        {"id": row, "token": '"logprob":-9', "bytes": [1], "logprob": value}
        for row, value in said.items()
    ]
    return {"id": 77, "token": "a", "bytes": [97], "logprob": -5.0, "top_logprobs": rows}


if __name__ == "__main__":
    place = sys.argv[sys.argv.index("--host") + 1]
    socketserver.UnixStreamServer(place, Handler).serve_forever()
