#!/usr/bin/env python3
"""Write a tiny preview decoder and the reference ("golden") frames that it makes.

    python make_preview.py TAEHV_PY OUT_DIR

TAEHV_PY is the reference implementation's `taehv.py`, of github.com/madebyollin/taehv at 1f14a568.  The decoder has the
design of `taeltx_2` and `taeltx2_3` with random weights and narrow layers, and takes the latents of the tiny checkpoints of
make_goldens.py.

    OUT_DIR/decoder.safetensors    the decoder, named as in the released files
    OUT_DIR/golden.safetensors     latents [1, C, F, h, w], and their frames [n, 3, 32h, 32w], 0 to 1
"""

import argparse
import importlib.util
import math
from pathlib import Path

import torch
from safetensors.torch import save_file

SEED = 22
CHANNELS = 8  # of the tiny checkpoints' latents; the released ones have 128
WIDTHS = [12, 10, 8, 6]  # released: 256, 128, 64, 64
FRAMES, HEIGHT, WIDTH = 4, 2, 1  # of the latents
PATCH = 4


def load_module(path):
    spec = importlib.util.spec_from_file_location("taehv", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def narrow_decoder(taehv):
    """The layers of the reference's decoder, in its order, at other widths."""
    conv, layers = taehv.conv, [taehv.Clamp(), taehv.conv(CHANNELS, WIDTHS[0]), torch.nn.ReLU()]
    for width, next_width in zip(WIDTHS, WIDTHS[1:]):
        layers += [taehv.MemBlock(width, width) for _ in range(3)]
        layers += [torch.nn.Upsample(scale_factor=2), taehv.TGrow(width, 2)]
        layers += [conv(width, next_width, bias=False)]
    layers += [torch.nn.ReLU(), conv(WIDTHS[-1], 3 * PATCH**2)]
    return torch.nn.Sequential(*layers)


@torch.no_grad()
def fill(decoder, generator):
    """Random weights of a scale at which no layer dies, and frames that are mostly between black and white."""
    for name, tensor in decoder.named_parameters():
        if tensor.dim() == 1:
            tensor.copy_(0.1 * torch.randn(tensor.shape, generator=generator))
        else:
            gain = 0.7 if ".conv.4." in name else math.sqrt(2)
            fan_in = tensor[0].numel()
            tensor.copy_(gain / math.sqrt(fan_in) * torch.randn(tensor.shape, generator=generator))
    last = decoder[len(decoder) - 1]
    last.weight.mul_(0.3)
    last.bias.add_(0.5)


@torch.no_grad()
def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("taehv", type=Path)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    taehv = load_module(args.taehv)

    # What the module does for a file with `taeltx` in its name.
    model = taehv.TAEHV(
        checkpoint_path=None, patch_size=PATCH, latent_channels=CHANNELS,
        encoder_time_downscale=(True,) * 3, decoder_time_upscale=(True,) * 3,
    )
    released = [type(layer).__name__ for layer in model.decoder]
    model.decoder = narrow_decoder(taehv)
    assert [type(layer).__name__ for layer in model.decoder] == released
    generator = torch.Generator().manual_seed(SEED)
    fill(model.decoder, generator)

    # A little beyond what latents have, so that the limit is seen.
    latents = 1.5 * torch.randn(1, FRAMES, CHANNELS, HEIGHT, WIDTH, generator=generator)
    together = model.decode_video(latents, parallel=True, show_progress_bar=False)
    one_by_one = model.decode_video(latents, parallel=False, show_progress_bar=False)
    assert torch.allclose(together, one_by_one, atol=1e-5)
    assert together.shape == (1, 8 * (FRAMES - 1) + 1, 3, 32 * HEIGHT, 32 * WIDTH)
    inside = ((together > 0) & (together < 1)).float().mean().item()
    print(f"{together.shape[1]} frames, {inside:.0%} of the values between black and white")

    args.out.mkdir(parents=True, exist_ok=True)
    decoder = {f"decoder.{name}": tensor.contiguous() for name, tensor in model.decoder.state_dict().items()}
    save_file(decoder, args.out / "decoder.safetensors")
    save_file(
        {"latents": latents.transpose(1, 2).contiguous(), "frames": together[0].contiguous()},
        args.out / "golden.safetensors",
    )


if __name__ == "__main__":
    main()
