#!/usr/bin/env python3
"""Time the reference implementation (diffusers) on this machine's GPU, at full size, with random bfloat16 weights.

    python3 reference_bench.py OUT.json

The same work as `examples/bench.rs` does: one pass of the transformer at each stage's size, and an untiled decode. Eager,
with PyTorch's own choice of attention kernels; text without padding and therefore without a mask, which is the faster
way. `--tiny` runs small sizes on the CPU, to try the script.
"""

import argparse
import json
import statistics
import time

import torch
from diffusers.models.autoencoders.autoencoder_kl_ltx2 import AutoencoderKLLTX2Video
from diffusers.models.transformers.transformer_ltx2 import LTX2VideoTransformer3DModel

# The published configuration of LTX-2.0.
TRANSFORMER = dict(
    in_channels=128, out_channels=128, patch_size=1, patch_size_t=1,
    num_attention_heads=32, attention_head_dim=128, cross_attention_dim=4096,
    vae_scale_factors=(8, 32, 32), pos_embed_max_pos=20, base_height=2048, base_width=2048,
    audio_in_channels=128, audio_out_channels=128, audio_patch_size=1, audio_patch_size_t=1,
    audio_num_attention_heads=32, audio_attention_head_dim=64, audio_cross_attention_dim=2048,
    audio_scale_factor=4, audio_pos_embed_max_pos=20, audio_sampling_rate=16000, audio_hop_length=160,
    num_layers=48, activation_fn="gelu-approximate", qk_norm="rms_norm_across_heads",
    norm_elementwise_affine=False, norm_eps=1e-6, caption_channels=3840,
    attention_bias=True, attention_out_bias=True, rope_theta=10000.0, rope_double_precision=True,
    causal_offset=1, timestep_scale_multiplier=1000, cross_attn_timestep_scale_multiplier=1000,
    rope_type="split",
)
VAE = dict(
    in_channels=3, out_channels=3, latent_channels=128,
    block_out_channels=(256, 512, 1024, 2048), down_block_types=("LTX2VideoDownBlock3D",) * 4,
    decoder_block_out_channels=(256, 512, 1024), layers_per_block=(4, 6, 6, 2, 2),
    decoder_layers_per_block=(5, 5, 5, 5),
    spatio_temporal_scaling=(True,) * 4, decoder_spatio_temporal_scaling=(True,) * 3,
    decoder_inject_noise=(False,) * 4,
    downsample_type=("spatial", "temporal", "spatiotemporal", "spatiotemporal"),
    upsample_residual=(True,) * 3, upsample_factor=(2, 2, 2),
    timestep_conditioning=False, patch_size=4, patch_size_t=1, resnet_norm_eps=1e-6,
    encoder_causal=True, decoder_causal=False,
    encoder_spatial_padding_mode="zeros", decoder_spatial_padding_mode="reflect",
)
# Latent frames, rows and columns of the two stages at 1088 x 1920, 121 frames; audio latents; text tokens.
STAGES = {"stage1": (16, 17, 30), "stage2": (16, 34, 60)}
AUDIO, TEXT, FPS = 126, 1024, 24.0


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("out")
    parser.add_argument("--tiny", action="store_true")
    arguments = parser.parse_args()
    device = torch.device("cpu" if arguments.tiny else "cuda")
    stages, repeats = STAGES, 2
    if arguments.tiny:
        TRANSFORMER.update(num_layers=1, num_attention_heads=2, cross_attention_dim=256,
                           audio_num_attention_heads=2, audio_cross_attention_dim=128)
        VAE.update(decoder_block_out_channels=(16, 32, 64), block_out_channels=(16, 32, 64, 64),
                   layers_per_block=(1,) * 5, decoder_layers_per_block=(1,) * 4)
        stages = {"stage1": (2, 2, 3), "stage2": (2, 4, 6)}

    results = Results(arguments.out)
    results.update({"torch": torch.__version__, "cudnn": torch.backends.cudnn.version()})
    if not arguments.tiny:
        results["gpu"] = torch.cuda.get_device_name(0)
    with torch.no_grad():
        measure_transformer(results, device, stages, repeats)
        if not arguments.tiny:
            torch.cuda.empty_cache()
        measure_decode(results, device, stages["stage2"], repeats)


class Results(dict):
    """What has been measured, written to a file each time, so that a later failure loses nothing."""

    def __init__(self, path):
        self.path = path

    def save(self):
        with open(self.path, "w") as file:
            json.dump(self, file, indent=2)


def build(cls, config, device):
    """A model with its own random initialisation, drawn on the device."""
    torch.manual_seed(10)
    torch.set_default_dtype(torch.bfloat16)
    with device:
        model = cls(**config)
    torch.set_default_dtype(torch.float32)
    return model.to(torch.bfloat16).eval()


def measure_transformer(results, device, stages, repeats):
    model = timed(results, "transformer.build", device, lambda: build(LTX2VideoTransformer3DModel, TRANSFORMER, device))
    results["transformer.parameters"] = sum(p.numel() for p in model.parameters())
    draw = dict(device=device, dtype=torch.bfloat16)
    for stage, (frames, rows, columns) in stages.items():
        inputs = dict(
            hidden_states=torch.randn(1, frames * rows * columns, TRANSFORMER["in_channels"], **draw),
            audio_hidden_states=torch.randn(1, AUDIO, TRANSFORMER["audio_in_channels"], **draw),
            encoder_hidden_states=torch.randn(1, TEXT, TRANSFORMER["caption_channels"], **draw),
            audio_encoder_hidden_states=torch.randn(1, TEXT, TRANSFORMER["caption_channels"], **draw),
            timestep=torch.tensor([725.0], device=device), sigma=torch.tensor([725.0], device=device),
            num_frames=frames, height=rows, width=columns, fps=FPS, audio_num_frames=AUDIO,
            video_coords=model.rope.prepare_video_coords(1, frames, rows, columns, device, fps=FPS),
            audio_coords=model.audio_rope.prepare_audio_coords(1, AUDIO, device),
            use_cross_timestep=False, return_dict=False,
        )
        repeat(results, f"{stage}.step", device, repeats, lambda: model(**inputs))


def measure_decode(results, device, grid, repeats):
    model = build(AutoencoderKLLTX2Video, VAE, device)
    latents = torch.randn(1, VAE["latent_channels"], *grid, device=device, dtype=torch.bfloat16)
    repeat(results, "decode", device, repeats, lambda: model.decode(latents, return_dict=False)[0])


def repeat(results, what, device, count, work):
    """Median seconds after one run to warm up, and the peak of memory in bytes."""
    reset_peak(device)
    elapsed(device, work)
    seconds = [elapsed(device, work)[1] for _ in range(count)]
    results[f"{what}.seconds"] = statistics.median(seconds)
    results[f"{what}.all_seconds"] = seconds
    if device.type == "cuda":
        results[f"{what}.peak_bytes"] = torch.cuda.max_memory_allocated()
        results[f"{what}.peak_reserved_bytes"] = torch.cuda.max_memory_reserved()
    results.save()
    print(f"{what}: {seconds}", flush=True)


def timed(results, what, device, work):
    result, seconds = elapsed(device, work)
    results[f"{what}.seconds"] = seconds
    print(f"{what}: {seconds:.2f} s", flush=True)
    return result


def elapsed(device, work):
    synchronize(device)
    begin = time.perf_counter()
    result = work()
    synchronize(device)
    return result, time.perf_counter() - begin


def synchronize(device):
    if device.type == "cuda":
        torch.cuda.synchronize()


def reset_peak(device):
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()


if __name__ == "__main__":
    main()
