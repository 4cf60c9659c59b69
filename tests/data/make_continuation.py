"""Continuation states of kind ltx2.v1 as FastVideo's server writes and reads them, made with the libraries that it uses.

Usage, with the packages of requirements.txt beside this file (`make python` puts them into target/python):

    python make_continuation.py                        writes the states in continuation/
    python make_continuation.py --check FILE [--blobs DIRECTORY]
                                                       reads a state, however large, and fails unless it is one of these

A blob lies in a file that is named for its id. What is in the frames and latents is a formula that the tests compute
too, of as many frames of any size as there are.
"""

import argparse
import base64
import io
import json
import pathlib
import sys

import numpy as np
from ml_dtypes import bfloat16
from PIL import Image
from safetensors import deserialize
from safetensors.numpy import save

HERE = pathlib.Path(__file__).parent
WIDTH, HEIGHT, FRAMES = 24, 16, 2
LATENTS = (1, 8, 6, 16)
DTYPES = {"BF16": bfloat16, "F16": np.float16, "F32": np.float32}

FIELDS = {
    "schema_version": 1,
    "segment_index": 3,
    "video_conditioning_frame_idx": 0,
    "video_conditioning_strength": 0.75,
    "audio_conditioning_num_frames": 51,
    "audio_conditioning_strength": 1.0,
    "video_position_offset_sec": 40 / 24,
    "metadata": {"note": "café", "nested": {"list": [1, 2.5, None, True]}},
}
SAMPLE_RATE = 24000


def picture(index, height, width):
    """Noise, which no PNG makes smaller."""
    y, x, c = np.indices((height, width, 3), dtype=np.uint64)
    n = x * 73856093 ^ y * 19349663 ^ c * 83492791 ^ np.uint64(index * 49979687)
    return (n * 2654435761 >> 24 & 255).astype(np.uint8)


def latents(shape, dtype):
    """8 significant bits, which bf16 holds too."""
    return ((np.arange(np.prod(shape)) % 256 - 128) / 64).astype(dtype).reshape(shape)


def png(rgb):
    file = io.BytesIO()
    Image.fromarray(rgb).save(file, format="PNG")
    return file.getvalue()


def base64_text(data):
    return base64.b64encode(data).decode("ascii")


def number(n):
    return n.to_bytes(4, "big")


def write(name, audio, blobs=None):
    """`audio` is the latents' dtype, or None; `blobs` the ids of the frames' and the latents' blob, or None."""
    payload = dict(FIELDS)
    pngs = [png(picture(i, HEIGHT, WIDTH)) for i in range(FRAMES)]
    if blobs:
        framed = b"".join(number(len(data)) + data for data in pngs)
        (HERE / "continuation" / blobs[0]).write_bytes(number(FRAMES) + framed)
        payload["video"] = {"blob_id": blobs[0], "frame_count": FRAMES}
    else:
        payload["video"] = {"frames_b64": [base64_text(data) for data in pngs]}
    if audio:
        payload["audio_sample_rate"] = SAMPLE_RATE
        file = save({"t": latents(LATENTS, audio)})
        if blobs:
            (HERE / "continuation" / blobs[1]).write_bytes(file)
            payload["audio"] = {"blob_id": blobs[1]}
        else:
            payload["audio"] = {"safetensors_b64": base64_text(file)}
    state = {"kind": "ltx2.v1", "payload": payload}
    path = HERE / "continuation" / f"{name}.json"
    path.write_text(json.dumps(state, indent=1) + "\n")


def read_frames(video, blob):
    if "frames_b64" in video:
        pngs = [base64.b64decode(text, validate=True) for text in video["frames_b64"]]
    else:
        data = blob(video["blob_id"])
        count, at, pngs = int.from_bytes(data[:4], "big"), 4, []
        for _ in range(count):
            end = at + 4 + int.from_bytes(data[at : at + 4], "big")
            pngs.append(data[at + 4 : end])
            at = end
        assert at == len(data), f"{len(data)} bytes of frames, {at} are accounted for"
        assert video["frame_count"] == count, f"{count} frames in {video}"
    return [np.array(Image.open(io.BytesIO(data)).convert("RGB")) for data in pngs]


def read_latents(audio, blob):
    if "safetensors_b64" in audio:
        file = base64.b64decode(audio["safetensors_b64"], validate=True)
    else:
        file = blob(audio["blob_id"])
    # Not safetensors.numpy.load, which writes bf16 and does not read it.
    [(name, tensor)] = deserialize(file)
    assert name == "t", name
    return np.frombuffer(tensor["data"], DTYPES[tensor["dtype"]]).reshape(tensor["shape"])


def check(path, blobs):
    """Prints what the state holds."""

    def blob(blob_id):
        return (blobs / blob_id).read_bytes()

    state = json.loads(path.read_text())
    assert state["kind"] == "ltx2.v1", state["kind"]
    payload = state["payload"]
    tensors = {name: payload.pop(name, None) for name in ("video", "audio")}
    rate = payload.pop("audio_sample_rate", None)
    assert payload == FIELDS, payload
    assert [type(value) for value in payload.values()] == [type(FIELDS[name]) for name in payload]

    frames = read_frames(tensors["video"], blob)
    for i, frame in enumerate(frames):
        assert (frame == picture(i, *frame.shape[:2])).all(), f"frame {i} is another picture"
    height, width, _ = frames[0].shape
    print(f"{len(frames)} frames of {width}x{height}", end="")
    if tensors["audio"] is None:
        assert rate is None, rate
        print(", no sound")
        return
    assert rate == SAMPLE_RATE, rate
    read = read_latents(tensors["audio"], blob)
    assert (read == latents(read.shape, read.dtype)).all(), "other latents"
    print(f", latents {list(read.shape)} {read.dtype}")


def main():
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--check", metavar="FILE", type=pathlib.Path)
    parser.add_argument("--blobs", metavar="DIRECTORY", type=pathlib.Path)
    args = parser.parse_args()
    if args.check:
        return check(args.check, args.blobs or args.check.parent)
    (HERE / "continuation").mkdir(exist_ok=True)
    write("bf16", bfloat16)
    write("f32", np.float32)
    write("f16", np.float16)
    write("silent", None)
    ids = "8a3f0e5d6c1b4f7e9a2d4c6b8e0f1a3c", "1c9e7b5a3d2f4e6c8b0a9f7d5e3c1b2a"
    write("blobs", bfloat16, ids)


if __name__ == "__main__":
    sys.exit(main())
