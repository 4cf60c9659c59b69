"""Writes state_ltx2_v1.json, a small continuation state as FastVideo's server would send it.

Needs Pillow, numpy, ml_dtypes and safetensors:  python make_state_golden.py
What lies in the frames and latents is a formula that the test in supervisor/store/export.rs computes too.
"""

import base64
import io
import json
import pathlib

import numpy as np
from ml_dtypes import bfloat16
from PIL import Image
from safetensors.numpy import save

WIDTH = HEIGHT = 64
SHAPE = [1, 8, 6, 16]


def frame_b64(index):
    y, x, c = np.indices((HEIGHT, WIDTH, 3))
    rgb = ((3 * x + 5 * y + 7 * c + 11 * index) % 256).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(rgb).save(file, format="PNG")
    return base64.b64encode(file.getvalue()).decode("ascii")


def latents_b64():
    values = (np.arange(np.prod(SHAPE)) % 256 - 128) / 64
    file = save({"t": values.astype(bfloat16).reshape(SHAPE)})
    return base64.b64encode(file).decode("ascii")


state = {
    "kind": "ltx2.v1",
    "payload": {
        "schema_version": 1,
        "segment_index": 3,
        "video_conditioning_frame_idx": 0,
        "video_conditioning_strength": 0.75,
        "audio_conditioning_num_frames": 51,
        "audio_conditioning_strength": 1.0,
        "video_position_offset_sec": 40 / 24,
        "metadata": {"note": "café", "nested": {"list": [1, 2.5, None, True]}},
        "audio_sample_rate": 24000,
        "video": {"frames_b64": [frame_b64(0), frame_b64(1)]},
        "audio": {"safetensors_b64": latents_b64()},
    },
}
path = pathlib.Path(__file__).with_name("state_ltx2_v1.json")
path.write_text(json.dumps(state, indent=1) + "\n")
