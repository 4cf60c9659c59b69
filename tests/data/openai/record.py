"""Records what the `openai` packages for Python and for Node send to the routes of videos, one file per request: the head and
the body, as they are on the wire.

    python record.py NODE_MODULES

writes python/*.http and node/*.http beside this file. It needs the package `openai` in this Python, and the one of npm in the
folder NODE_MODULES. The host, the length and what tells the machine are taken out of the heads.
"""

import io
import pathlib
import socket
import subprocess
import sys
import threading

import openai

HERE = pathlib.Path(__file__).parent
ID = "video_0199a1b2c3d47e5f8a9b0c1d2e3f4a5b"
# The headers that say what kind of request it is.
KEPT = {"accept", "content-type", "authorization", "idempotency-key", "user-agent"}
VIDEO = (
    f'{{"id": "{ID}", "object": "video", "model": "sora-2", "status": "completed", "progress": 100, "created_at": 1,'
    ' "size": "64x64", "seconds": "4"}'
)
LIST = f'{{"object": "list", "data": [{VIDEO}], "first_id": "{ID}", "last_id": "{ID}", "has_more": false}}'
# A picture of one pixel.
PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d49484452000000010000000108020000009077"
    "53de0000000c4944415408d763f8cfc0000003010100c9fe92ef0000000049454e44ae426082"
)
DATA_URL = "data:image/png;base64,iVBORw0KGgo="


class Recorder:
    """Answers one request after the other, and keeps the last one."""

    def __init__(self):
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.socket.getsockname()[1]}/v1"
        self.requests = []
        threading.Thread(target=self.run, daemon=True).start()

    def run(self):
        while True:
            connection, _ = self.socket.accept()
            with connection:
                self.serve(connection.makefile("rb"), connection)

    def serve(self, reader, connection):
        line = reader.readline()
        headers = []
        while (header := reader.readline().rstrip(b"\r\n")):
            name, _, value = header.partition(b":")
            headers.append((name.decode().lower(), value.strip()))
        known = dict(headers)
        if known.get("transfer-encoding") == b"chunked":
            body = b""
            while size := int(reader.readline(), 16):
                body += reader.read(size)
                reader.readline()
            reader.readline()
        else:
            body = reader.read(int(known.get("content-length", 0)))
        head = [line.rstrip(b"\r\n")]
        head += [name.encode() + b": " + value for name, value in headers if name in KEPT]
        self.requests.append(b"\r\n".join(head) + b"\r\n\r\n" + body)
        path = line.split()[1].decode().partition("?")[0]
        answer = LIST if line.startswith(b"GET") and path == "/v1/videos" else VIDEO
        connection.sendall(
            b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nconnection: close\r\ncontent-length: "
            + f"{len(answer)}\r\n\r\n{answer}".encode()
        )


def record_python(recorder):
    client = openai.OpenAI(base_url=recorder.url, api_key="key", max_retries=0)
    videos = client.videos
    image = ("fox.png", io.BytesIO(PNG), "image/png")
    calls = {
        "create": lambda: videos.create(prompt="a fox", model="sora-2", seconds="4", size="1280x720"),
        "create_with_file": lambda: videos.create(prompt="a fox", input_reference=image),
        "create_with_bytes": lambda: videos.create(prompt="a fox", input_reference=PNG),
        "create_with_data_url": lambda: videos.create(
            prompt="a fox", extra_body={"input_reference": {"image_url": DATA_URL}}
        ),
        "create_with_extras": lambda: videos.create(
            prompt="ein Fuchs läuft\nüber „Schnee“",
            extra_body={
                "seed": 18446744073709551615,
                "fps": 24,
                "guidance_scale": 1.5,
                "enhance_prompt": True,
                "negative_prompt": None,
                "metadata": {"project": "winter", "shot": "7"},
                "video_params": {"width": 640, "height": 384},
            },
            extra_headers={"Idempotency-Key": "shot-7"},
        ),
        "remix": lambda: videos.remix(ID, prompt="a wolf"),
        "edit": lambda: videos.edit(prompt="a wolf", video=openai.omit, extra_body={"video": {"id": ID}}),
        "extend": lambda: videos.extend(
            prompt="it stops", seconds="4", video=openai.omit, extra_body={"video": {"id": ID}}
        ),
        "extend_file": lambda: videos.extend(prompt="it stops", seconds="4", video=b"\0\0\0\x18ftypisom"),
        "list": lambda: videos.list(after=ID, limit=2, order="asc"),
        "retrieve": lambda: videos.retrieve(ID),
        "poll": lambda: videos.poll(ID),
        "download_content": lambda: videos.download_content(ID, variant="thumbnail").read(),
        "delete": lambda: videos.delete(ID),
        "models": lambda: client.models.list(),
    }
    return run(recorder, "python", calls)


def run(recorder, folder, calls):
    folder = HERE / folder
    folder.mkdir(exist_ok=True)
    for name, call in calls.items():
        recorder.requests.clear()
        try:
            call()
        except (openai.OpenAIError, TypeError, RuntimeError) as error:
            print(f"{name}: {error!r}")
        if recorder.requests:
            (folder / f"{name}.http").write_bytes(recorder.requests[0])


def record_node(recorder, modules):
    script = HERE / "record.mjs"

    def call(name):
        subprocess.run(["node", script, pathlib.Path(modules).resolve(), recorder.url, name, ID], check=True, timeout=60)

    names = subprocess.run(["node", script], check=True, capture_output=True, text=True).stdout.split()
    return run(recorder, "node", {name: lambda name=name: call(name) for name in names})


if __name__ == "__main__":
    RECORDER = Recorder()
    record_python(RECORDER)
    record_node(RECORDER, sys.argv[1])
