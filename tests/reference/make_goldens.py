#!/usr/bin/env python3
"""Write a tiny LTX-2.0 checkpoint and the reference ("golden") tensors for it.

    python make_goldens.py OUT_DIR

The checkpoint has random weights, a few thousand times fewer parameters than
the released model, and exactly the released file layout, so a loader and an
engine that reproduce these numbers need no change for the released weights.
All reference numbers come from diffusers + transformers on the CPU in float32.

    OUT_DIR/checkpoint/diffusers/   folder layout of the Lightricks/LTX-2 repository
    OUT_DIR/checkpoint/fastvideo/   the same weights as FastVideo's converter lays them out
    OUT_DIR/checkpoint/fastvideo.json   how to make the second layout from the first: names, configurations, copies
    OUT_DIR/golden/*.safetensors    inputs and outputs, stage by stage
    OUT_DIR/manifest.json           versions, settings, every tensor's shape, file digests

Weights are drawn from numpy's PCG64 (one stream per tensor name), so they do
not depend on the torch build, and are rounded to bfloat16.  They are stored as
bfloat16, like the release; the reference widens them to float32, which is
exact, so a float32 engine must agree to rounding error.
"""

import argparse
import hashlib
import json
import os
import shutil
import time
import zlib
from collections import Counter
from itertools import combinations
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import diffusers
import numpy as np
import torch
import transformers
from diffusers import (
    AutoencoderKLLTX2Audio,
    AutoencoderKLLTX2Video,
    FlowMatchEulerDiscreteScheduler,
    LTX2ConditionPipeline,
    LTX2LatentUpsamplePipeline,
    LTX2Pipeline,
    LTX2VideoTransformer3DModel,
)
from diffusers.pipelines.ltx2 import LTX2LatentUpsamplerModel, LTX2TextConnectors, LTX2Vocoder
from diffusers.pipelines.ltx2.pipeline_ltx2 import calculate_shift
from diffusers.pipelines.ltx2.pipeline_ltx2_condition import LTX2VideoCondition
from diffusers.pipelines.ltx2.utils import DISTILLED_SIGMA_VALUES, STAGE_2_DISTILLED_SIGMA_VALUES
from safetensors.torch import load_file, save_file
from transformers import Gemma3Config, Gemma3ForConditionalGeneration, GemmaTokenizer

# --------------------------------------------------------------------------
# Settings.  Key names are those of the released config files.  Widths differ
# from each other wherever the release's do, so a transposed or mixed-up
# dimension cannot pass unnoticed.
# --------------------------------------------------------------------------

SEED = 10
FPS = 24.0
NUM_FRAMES = 25  # 4 latent frames
HEIGHT, WIDTH = 64, 96  # stage 1: 2 x 3 latent cells; stage 2 doubles both
TEXT_LEN = 64

TRANSFORMER = dict(
    in_channels=8, out_channels=8, patch_size=1, patch_size_t=1,
    num_attention_heads=4, attention_head_dim=16, cross_attention_dim=64,
    vae_scale_factors=(8, 32, 32), pos_embed_max_pos=20, base_height=2048, base_width=2048,
    gated_attn=False, cross_attn_mod=False,
    audio_in_channels=16, audio_out_channels=16, audio_patch_size=1, audio_patch_size_t=1,
    audio_num_attention_heads=4, audio_attention_head_dim=8, audio_cross_attention_dim=32,
    audio_scale_factor=4, audio_pos_embed_max_pos=20, audio_sampling_rate=16000, audio_hop_length=160,
    audio_gated_attn=False, audio_cross_attn_mod=False,
    num_layers=3, activation_fn="gelu-approximate", qk_norm="rms_norm_across_heads",
    norm_elementwise_affine=False, norm_eps=1e-6, caption_channels=48,
    attention_bias=True, attention_out_bias=True, rope_theta=10000.0, rope_double_precision=True,
    causal_offset=1, timestep_scale_multiplier=1000, cross_attn_timestep_scale_multiplier=1000,
    rope_type="split", use_prompt_embeddings=True, perturbed_attn=False,
)

GEMMA_LAYERS = 4
CONNECTORS = dict(
    caption_channels=48, text_proj_in_factor=GEMMA_LAYERS + 1,
    video_connector_num_attention_heads=3, video_connector_attention_head_dim=16,
    video_connector_num_layers=2, video_connector_num_learnable_registers=16, video_gated_attn=False,
    audio_connector_num_attention_heads=3, audio_connector_attention_head_dim=16,
    audio_connector_num_layers=2, audio_connector_num_learnable_registers=16, audio_gated_attn=False,
    connector_rope_base_seq_len=4096, rope_theta=10000.0, rope_double_precision=True,
    causal_temporal_positioning=False, rope_type="split", per_modality_projections=False, proj_bias=False,
)

VAE = dict(
    in_channels=3, out_channels=3, latent_channels=8,
    block_out_channels=(16, 32, 64, 64), down_block_types=("LTX2VideoDownBlock3D",) * 4,
    # The original layout derives the decoder's widths: latent_channels times the stages' factors.
    decoder_block_out_channels=(16, 32, 64), layers_per_block=(2, 1, 1, 1, 1),
    decoder_layers_per_block=(2, 1, 1, 1),
    spatio_temporal_scaling=(True,) * 4, decoder_spatio_temporal_scaling=(True,) * 3,
    decoder_inject_noise=(False,) * 4,
    downsample_type=("spatial", "temporal", "spatiotemporal", "spatiotemporal"),
    upsample_type=("spatiotemporal",) * 3, upsample_residual=(True,) * 3, upsample_factor=(2, 2, 2),
    timestep_conditioning=False, patch_size=4, patch_size_t=1, resnet_norm_eps=1e-6,
    encoder_causal=True, decoder_causal=False,
    encoder_spatial_padding_mode="zeros", decoder_spatial_padding_mode="reflect",
    spatial_compression_ratio=32, temporal_compression_ratio=8,
)

AUDIO_VAE = dict(
    base_channels=16, output_channels=2, ch_mult=(1, 2, 4), num_res_blocks=1, attn_resolutions=None,
    in_channels=2, resolution=256, latent_channels=4, norm_type="pixel", causality_axis="height",
    dropout=0.0, mid_block_add_attention=False, sample_rate=16000, mel_hop_length=160,
    is_causal=True, mel_bins=16, double_z=True,
)

VOCODER = dict(
    in_channels=32, hidden_channels=64, out_channels=2,
    upsample_kernel_sizes=[16, 15, 8, 4, 4], upsample_factors=[6, 5, 2, 2, 2],
    resnet_kernel_sizes=[3, 7, 11], resnet_dilations=[[1, 3, 5]] * 3,
    act_fn="leaky_relu", leaky_relu_negative_slope=0.1, antialias=False,
    final_act_fn="tanh", final_bias=True, output_sampling_rate=24000,
)

UPSAMPLER = dict(
    in_channels=8, mid_channels=32, num_blocks_per_stage=2, dims=3, spatial_upsample=True,
    temporal_upsample=False, rational_spatial_scale=2.0, use_rational_resampler=True,
)

# What the release's converter writes for a distilled checkpoint ...
SCHEDULER_DISTILLED = dict(
    use_dynamic_shifting=False, base_shift=0.95, max_shift=2.05,
    base_image_seq_len=1024, max_image_seq_len=4096, shift_terminal=None,
)
# ... and for the base ("dev") one.
SCHEDULER_BASE = dict(SCHEDULER_DISTILLED, use_dynamic_shifting=True, shift_terminal=0.1)

PROMPT = "A paper boat drifts along a rainy gutter while a distant bell rings twice."
NEGATIVE = "blurry, flickering, silent"
CORPUS = (
    "a paper boat drifts along the rainy street . a distant bell rings . the camera follows the boat . "
    "rain falls on the paper . a slow wide shot of a quiet harbour at dawn . the bell rings twice while gulls cry . "
    "blurry flickering silent footage . a small lantern glows . water runs along the gutter and the rails ."
)

# Guidance switched off, LTX-2.0 conventions (the call's own defaults are for later models).
PLAIN = dict(
    guidance_scale=1.0, stg_scale=0.0, modality_scale=1.0, guidance_rescale=0.0,
    audio_guidance_scale=1.0, audio_stg_scale=0.0, audio_modality_scale=1.0, audio_guidance_rescale=0.0,
    spatio_temporal_guidance_blocks=None, use_cross_timestep=False,
    frame_rate=FPS, max_sequence_length=TEXT_LEN, return_dict=False,
)


# --------------------------------------------------------------------------
# Portable random numbers
# --------------------------------------------------------------------------


def uniform(name, shape, low=-1.0, high=1.0):
    """float32 tensor, uniform in [low, high), a function of `name` and `shape` only."""
    rng = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode())))
    values = rng.random(int(np.prod(shape, dtype=np.int64)), dtype=np.float32)
    return torch.from_numpy(values.reshape(tuple(shape))) * (high - low) + low


def gaussian(name, shape):
    """Unit-variance noise that needs no libm: a centred sum of twelve uniforms."""
    return uniform(name, (12, *shape), 0.0, 1.0).sum(0) - 6.0


@torch.no_grad()
def fill(module, tag):
    """Give every stored tensor of `module` random, bfloat16-representable values."""
    for name, tensor in module.state_dict().items():
        if not tensor.is_floating_point() or name.endswith("blur_down.kernel"):
            continue
        key, shape = f"{tag}/{name}", tensor.shape
        leaf = name.split(".")[-1]
        if leaf == "latents_mean":
            value = uniform(key, shape, -0.3, 0.3)
        elif leaf == "latents_std":
            value = uniform(key, shape, 0.6, 1.4)
        elif "scale_shift_table" in name:
            value = uniform(key, shape, -0.5, 0.5)
        elif leaf == "learnable_registers" or "embed_tokens" in name or "position_embedding" in name:
            value = uniform(key, shape)
        elif leaf == "bias":
            value = uniform(key, shape, -0.1, 0.1)
        elif len(shape) == 1:  # a norm's gain; Gemma stores gain - 1
            value = uniform(key, shape, -0.2, 0.2) + (0.0 if tag == "text_encoder" else 1.0)
        else:  # keep the variance: bound = sqrt(3 / fan_in)
            fan_in = max(1, tensor.numel() // shape[0])
            bound = (3.0 / fan_in) ** 0.5
            value = uniform(key, shape, -bound, bound)
        tensor.copy_(value.to(torch.bfloat16).to(tensor.dtype))
    return module.eval()


# --------------------------------------------------------------------------
# Components
# --------------------------------------------------------------------------


def build_tokenizer(vocab_size=448):
    """A byte-fallback BPE of Gemma's kind, with merges learned from CORPUS."""
    vocab = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    vocab += [f"<0x{byte:02X}>" for byte in range(256)]
    text = [c for c in CORPUS.replace(" ", "\u2581")]
    vocab += sorted(set(text) | set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz,.!?'\u2581"))
    merges = []
    while len(vocab) < vocab_size:
        # A piece may start with the space mark but not contain one further in.
        pairs = Counter((a, b) for a, b in zip(text, text[1:]) if not b.startswith("\u2581"))
        (left, right), count = min(pairs.items(), key=lambda item: (-item[1], item[0]))
        if count < 2:
            break
        merges.append((left, right))
        if left + right not in vocab:
            vocab.append(left + right)
        joined, i = [], 0
        while i < len(text):
            if i + 1 < len(text) and (text[i], text[i + 1]) == (left, right):
                joined.append(left + right)
                i += 2
            else:
                joined.append(text[i])
                i += 1
        text = joined
    return GemmaTokenizer(
        vocab={piece: i for i, piece in enumerate(vocab)}, merges=merges, model_max_length=TEXT_LEN,
        padding_side="left", add_bos_token=True,
    )


def build_text_encoder():
    text = dict(
        vocab_size=512, hidden_size=48, intermediate_size=96, num_hidden_layers=GEMMA_LAYERS,
        num_attention_heads=4, num_key_value_heads=2, head_dim=16, query_pre_attn_scalar=16,
        sliding_window=8, layer_types=["sliding_attention", "full_attention"] * (GEMMA_LAYERS // 2),
        max_position_embeddings=1024, rms_norm_eps=1e-6, hidden_activation="gelu_pytorch_tanh",
        rope_parameters={
            "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1000000.0},
        },
    )
    # Stored in the release too; text encoding never touches it.
    vision = dict(
        model_type="siglip_vision_model", hidden_size=16, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=2, image_size=28, patch_size=14, vision_use_head=False,
    )
    config = Gemma3Config(
        text_config=text, vision_config=vision, mm_tokens_per_image=4,
        image_token_index=511, boi_token_index=509, eoi_token_index=510,
    )
    return Gemma3ForConditionalGeneration(config)


def build_checkpoint(root):
    parts = dict(
        scheduler=FlowMatchEulerDiscreteScheduler(**SCHEDULER_DISTILLED),
        tokenizer=build_tokenizer(),
        vae=fill(AutoencoderKLLTX2Video(**VAE), "vae"),
        audio_vae=fill(AutoencoderKLLTX2Audio(**AUDIO_VAE), "audio_vae"),
        text_encoder=fill(build_text_encoder(), "text_encoder"),
        connectors=fill(LTX2TextConnectors(**CONNECTORS), "connectors"),
        transformer=fill(LTX2VideoTransformer3DModel(**TRANSFORMER), "transformer"),
        vocoder=fill(LTX2Vocoder(**VOCODER), "vocoder"),
    )
    for part in parts.values():
        if isinstance(part, torch.nn.Module):
            part.to(torch.bfloat16)
    pipe = LTX2Pipeline(**parts)
    # Small shards, so that the index.json path is exercised.
    pipe.save_pretrained(root, safe_serialization=True, max_shard_size="400KB")
    upsampler = fill(LTX2LatentUpsamplerModel(**UPSAMPLER), "latent_upsampler").to(torch.bfloat16)
    upsampler.save_pretrained(root / "latent_upsampler")


# --------------------------------------------------------------------------
# The same weights under FastVideo's names
# --------------------------------------------------------------------------


def load_component(folder):
    tensors = {}
    for file in sorted(folder.glob("*.safetensors")):
        tensors.update(load_file(file))
    return tensors


def replace_all(name, pairs):
    for old, new in pairs:
        name = name.replace(old, new)
    return name


def native_transformer(name):
    pairs = [
        ("av_cross_attn_video_scale_shift.", "av_ca_video_scale_shift_adaln_single."),
        ("av_cross_attn_video_a2v_gate.", "av_ca_a2v_gate_adaln_single."),
        ("av_cross_attn_audio_scale_shift.", "av_ca_audio_scale_shift_adaln_single."),
        ("av_cross_attn_audio_v2a_gate.", "av_ca_v2a_gate_adaln_single."),
        ("video_a2v_cross_attn_scale_shift_table", "scale_shift_table_a2v_ca_video"),
        ("audio_a2v_cross_attn_scale_shift_table", "scale_shift_table_a2v_ca_audio"),
        ("proj_in.", "patchify_proj."), ("time_embed.", "adaln_single."),
        ("norm_q.", "q_norm."), ("norm_k.", "k_norm."),
    ]
    return replace_all(name, pairs)


def native_connector(name):
    pairs = [
        ("video_connector.", "embeddings_connector."), ("audio_connector.", "audio_embeddings_connector."),
        ("transformer_blocks.", "transformer_1d_blocks."), ("text_proj_in.", "aggregate_embed."),
        ("norm_q.", "q_norm."), ("norm_k.", "k_norm."),
    ]
    return replace_all(name, pairs)


def native_statistics(name):
    return {
        "latents_mean": "per_channel_statistics.mean-of-means",
        "latents_std": "per_channel_statistics.std-of-means",
    }.get(name, name)


def native_vae(name):
    """One flat list of blocks: residual stages at even positions, resamplers at odd ones."""
    side, _, rest = name.partition(".")
    field = "down_blocks" if side == "encoder" else "up_blocks"
    words = rest.split(".")
    if words[0] == "mid_block":
        position, tail = (2 * len(VAE["block_out_channels"]) if side == "encoder" else 0), words[1:]
    elif words[0] == field:
        stage, tail = int(words[1]), words[2:]
        resampler = tail[0] in ("downsamplers", "upsamplers")
        position = 2 * stage + (int(resampler) if side == "encoder" else 2 - int(resampler))
        tail = tail[2:] if resampler else tail
    else:
        return native_statistics(name)
    return ".".join([side, field, str(position), *tail]).replace("resnets.", "res_blocks.")


def native_vocoder(name):
    pairs = [("upsamplers.", "ups."), ("resnets.", "resblocks."), ("conv_in.", "conv_pre."), ("conv_out.", "conv_post.")]
    return replace_all(name, pairs)


def write_fastvideo_layout(source, target):
    recipe = {"parts": {}, "copies": {"text_encoder": "text_encoder/gemma", "tokenizer": "tokenizer"}}

    def put(folder, part, rename, config):
        (target / folder).mkdir(parents=True)
        tensors = load_component(source / part)
        names = {name: rename(name) for name in sorted(tensors)}
        assert len(set(names.values())) == len(tensors)
        save_file({names[name]: tensor for name, tensor in tensors.items()}, target / folder / "model.safetensors")
        (target / folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        recipe["parts"][folder] = {"from": part, "config": config, "names": names}

    t, c, v, a, o = TRANSFORMER, CONNECTORS, VAE, AUDIO_VAE, VOCODER
    put("transformer", "transformer", native_transformer, {
        "_class_name": "LTX2Transformer3DModel",
        "num_attention_heads": t["num_attention_heads"], "attention_head_dim": t["attention_head_dim"],
        "num_layers": t["num_layers"], "cross_attention_dim": t["cross_attention_dim"],
        "caption_channels": t["caption_channels"], "norm_eps": t["norm_eps"], "attention_type": "default",
        "positional_embedding_theta": t["rope_theta"],
        "positional_embedding_max_pos": [t["pos_embed_max_pos"], t["base_height"], t["base_width"]],
        "timestep_scale_multiplier": 1000, "use_middle_indices_grid": True, "rope_type": "split",
        "double_precision_rope": True, "in_channels": t["in_channels"], "out_channels": t["out_channels"],
        "audio_num_attention_heads": t["audio_num_attention_heads"],
        "audio_attention_head_dim": t["audio_attention_head_dim"],
        "audio_in_channels": t["audio_in_channels"], "audio_out_channels": t["audio_out_channels"],
        "audio_cross_attention_dim": t["audio_cross_attention_dim"],
        "audio_positional_embedding_max_pos": [t["audio_pos_embed_max_pos"]],
        "av_ca_timestep_scale_multiplier": t["cross_attn_timestep_scale_multiplier"],
    })
    stage = {"spatial": "compress_space_res", "temporal": "compress_time_res", "spatiotemporal": "compress_all_res"}
    widths = (v["latent_channels"], *v["block_out_channels"])
    encoder_blocks = []
    for i, kind in enumerate(v["downsample_type"]):
        encoder_blocks.append(["res_x", {"num_layers": v["layers_per_block"][i]}])
        encoder_blocks.append([stage[kind], {"multiplier": widths[i + 1] // widths[i]}])
    encoder_blocks.append(["res_x", {"num_layers": v["layers_per_block"][-1]}])
    layers = list(reversed(v["decoder_layers_per_block"]))
    decoder_blocks = [["res_x", {"num_layers": layers[0], "inject_noise": False}]]
    for count in layers[1:]:
        decoder_blocks.append(["compress_all", {"residual": True, "multiplier": 2}])
        decoder_blocks.append(["res_x", {"num_layers": count, "inject_noise": False}])
    put("vae", "vae", native_vae, {
        "_class_name": "CausalVideoAutoencoder",
        "vae": {
            "_class_name": "CausalVideoAutoencoder", "dims": 3, "in_channels": 3, "out_channels": 3,
            "latent_channels": v["latent_channels"], "encoder_blocks": encoder_blocks,
            # The configuration lists the decoder from the picture inwards.
            "decoder_blocks": list(reversed(decoder_blocks)), "patch_size": v["patch_size"],
            "norm_layer": "pixel_norm", "latent_log_var": "uniform", "causal_decoder": False,
            "encoder_spatial_padding_mode": "zeros", "decoder_spatial_padding_mode": "reflect",
            "timestep_conditioning": False, "use_quant_conv": False, "normalize_latent_channels": False,
        },
    })
    put("audio_vae", "audio_vae", native_statistics, {
        "_class_name": "LTX2AudioDecoder",
        "audio_vae": {
            "model": {"params": {"sampling_rate": a["sample_rate"], "ddconfig": {
                "ch": a["base_channels"], "out_ch": a["output_channels"], "ch_mult": list(a["ch_mult"]),
                "num_res_blocks": a["num_res_blocks"], "attn_resolutions": [], "resolution": a["resolution"],
                "z_channels": a["latent_channels"], "double_z": True, "in_channels": a["in_channels"],
                "mid_block_add_attention": False, "norm_type": "pixel", "causality_axis": "height",
                "mel_bins": a["mel_bins"],
            }}},
            "preprocessing": {"stft": {"hop_length": a["mel_hop_length"], "filter_length": 1024, "causal": True}},
        },
    })
    put("vocoder", "vocoder", native_vocoder, {
        "_class_name": "LTX2Vocoder",
        "vocoder": {
            "resblock": "1", "resblock_kernel_sizes": o["resnet_kernel_sizes"],
            "resblock_dilation_sizes": o["resnet_dilations"], "upsample_rates": o["upsample_factors"],
            "upsample_kernel_sizes": o["upsample_kernel_sizes"], "upsample_initial_channel": o["hidden_channels"],
            "stereo": True, "output_sample_rate": o["output_sampling_rate"],
        },
    })
    put("text_encoder", "connectors", native_connector, {
        "architectures": ["LTX2GemmaTextEncoderModel"], "hidden_size": c["caption_channels"],
        "num_hidden_layers": GEMMA_LAYERS, "num_attention_heads": c["video_connector_num_attention_heads"],
        "text_len": TEXT_LEN, "pad_token_id": 0, "eos_token_id": 2, "gemma_model_path": "gemma",
        "gemma_dtype": "bfloat16", "padding_side": "left",
        "feature_extractor_in_features": c["caption_channels"] * c["text_proj_in_factor"],
        "feature_extractor_out_features": c["caption_channels"],
        "connector_num_attention_heads": c["video_connector_num_attention_heads"],
        "connector_attention_head_dim": c["video_connector_attention_head_dim"],
        "connector_num_layers": c["video_connector_num_layers"],
        "connector_positional_embedding_theta": 10000.0, "connector_positional_embedding_max_pos": [4096],
        "connector_rope_type": "split", "connector_double_precision_rope": True,
        "connector_num_learnable_registers": c["video_connector_num_learnable_registers"],
    })
    put("spatial_upscaler", "latent_upsampler", lambda name: name, {
        "_class_name": "LTX2LatentUpsampler", "in_channels": UPSAMPLER["in_channels"],
        "mid_channels": UPSAMPLER["mid_channels"], "num_blocks_per_stage": UPSAMPLER["num_blocks_per_stage"],
        "dims": 3, "spatial_upsample": True, "temporal_upsample": False,
        "spatial_scale": 2.0, "rational_resampler": True,
    })
    for part, folder in recipe["copies"].items():
        shutil.copytree(source / part, target / folder)
    recipe["model_index"] = {
        "_class_name": "LTX2Pipeline", "_diffusers_version": "0.33.0.dev0",
        "transformer": ["diffusers", "LTX2Transformer3DModel"], "vae": ["diffusers", "CausalVideoAutoencoder"],
        "text_encoder": ["transformers", "LTX2GemmaTextEncoderModel"], "tokenizer": ["transformers", "AutoTokenizer"],
        "audio_vae": ["diffusers", "LTX2AudioDecoder"], "vocoder": ["diffusers", "LTX2Vocoder"],
    }
    (target / "model_index.json").write_text(json.dumps(recipe["model_index"], indent=2) + "\n")
    target.with_suffix(".json").write_text(json.dumps(recipe, indent=1) + "\n")


# --------------------------------------------------------------------------
# Recording
# --------------------------------------------------------------------------


class Golden:
    """Tensors of one file, by name."""

    def __init__(self, folder, name):
        self.path, self.tensors, self.handles = folder / f"{name}.safetensors", {}, []

    def add(self, name, value):
        if isinstance(value, (tuple, list)):
            for i, item in enumerate(value):
                self.add(f"{name}.{i}", item)
        elif torch.is_tensor(value):
            assert name not in self.tensors, name
            self.tensors[name] = value.detach().clone().contiguous()

    def watch(self, module, name, inputs=False):
        """Record the first call of `module`: its output and, if asked, its keyword inputs."""

        def hook(_module, args, kwargs, output):
            if f"{name}.seen" in seen:
                return
            seen.add(f"{name}.seen")
            if inputs:
                for i, value in enumerate(args):
                    self.add(f"{name}.in.{i}", value)
                for key, value in kwargs.items():
                    self.add(f"{name}.in.{key}", value)
            self.add(f"{name}.out" if inputs else name, output)

        seen = set()
        self.handles.append(module.register_forward_hook(hook, with_kwargs=True))

    def watch_steps(self, transformer, name):
        """Record every call of the transformer: latents in, predicted velocity out."""

        def hook(_module, args, kwargs, output):
            self.add(f"{name}.step{count[0]:02d}.video_latents", kwargs["hidden_states"])
            self.add(f"{name}.step{count[0]:02d}.audio_latents", kwargs["audio_hidden_states"])
            self.add(f"{name}.step{count[0]:02d}.video_velocity", output[0])
            self.add(f"{name}.step{count[0]:02d}.audio_velocity", output[1])
            count[0] += 1

        count = [0]
        handle = transformer.register_forward_hook(hook, with_kwargs=True)
        self.handles.append(handle)
        return handle

    def save(self):
        for handle in self.handles:
            handle.remove()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        save_file(self.tensors, self.path)
        return {name: [str(t.dtype).removeprefix("torch."), list(t.shape)] for name, t in sorted(self.tensors.items())}


# --------------------------------------------------------------------------
# Golden sections
# --------------------------------------------------------------------------


def golden_rng(folder):
    """torch.randn on the CPU from a seed: what an engine must reproduce to honour `seed`."""
    g = Golden(folder, "rng")
    for label, shape, dtype in [
        ("f32_5", (5,), torch.float32), ("f32_15", (15,), torch.float32), ("f32_16", (16,), torch.float32),
        ("f32_17", (17,), torch.float32), ("f32_1x24x8", (1, 24, 8), torch.float32),
        ("bf16_5", (5,), torch.bfloat16), ("bf16_1x24x8", (1, 24, 8), torch.bfloat16),
    ]:
        g.add(f"seed{SEED}.{label}", torch.randn(shape, generator=torch.Generator().manual_seed(SEED), dtype=dtype))
    # Two draws from one generator, in the order a text-to-video request makes them.
    generator = torch.Generator().manual_seed(SEED)
    g.add(f"seed{SEED}.pair.0", torch.randn((1, 8, 4, 2, 3), generator=generator))
    g.add(f"seed{SEED}.pair.1", torch.randn((1, 4, 26, 4), generator=generator))
    return g.save()


def golden_text(pipe, folder):
    g = Golden(folder, "text")
    for label, prompt in (("prompt", PROMPT), ("negative", NEGATIVE)):
        tokens = pipe.tokenizer(
            [prompt], padding="max_length", max_length=TEXT_LEN, truncation=True, add_special_tokens=True,
            return_tensors="pt",
        )
        g.add(f"{label}.input_ids", tokens.input_ids)
        g.add(f"{label}.attention_mask", tokens.attention_mask)
        states = pipe.text_encoder(
            input_ids=tokens.input_ids, attention_mask=tokens.attention_mask, output_hidden_states=True
        ).hidden_states
        g.add(f"{label}.hidden_states", torch.stack(states))  # [layers + 1, 1, text, hidden]
        packed = torch.stack(states, dim=-1).flatten(2, 3)
        if label == "prompt":
            g.watch(pipe.connectors.text_proj_in, "prompt.text_proj_in", inputs=True)
            for stream in ("video", "audio"):
                connector = pipe.connectors.get_submodule(f"{stream}_connector")
                g.watch(connector.rope, f"prompt.{stream}_connector.rope")
                for i, block in enumerate(connector.transformer_blocks):
                    g.watch(block, f"prompt.{stream}_connector.block{i}", inputs=True)
        video, audio, mask = pipe.connectors(packed, tokens.attention_mask, padding_side="left")
        g.add(f"{label}.video_context", video)
        g.add(f"{label}.audio_context", audio)
        g.add(f"{label}.context_mask", mask)
    return g.save()


def audio_frames(num_frames=NUM_FRAMES):
    return round(num_frames / FPS * 16000 / 160 / 4)


def golden_transformer(pipe, folder):
    """Fixed inputs, batch of two at different noise levels; every stage of block 0."""
    g = Golden(folder, "transformer")
    model, tokens, audio = pipe.transformer, 4 * 2 * 3, audio_frames()
    inputs = dict(
        hidden_states=gaussian("t.video", (2, tokens, 8)),
        audio_hidden_states=gaussian("t.audio", (2, audio, 16)),
        encoder_hidden_states=gaussian("t.video_context", (2, TEXT_LEN, 48)),
        audio_encoder_hidden_states=gaussian("t.audio_context", (2, TEXT_LEN, 48)),
        timestep=torch.tensor([725.0, 250.0]),
    )
    grid = dict(num_frames=4, height=2, width=3, fps=FPS, audio_num_frames=audio, return_dict=False)
    for name, value in inputs.items():
        g.add(f"in.{name}", value)
    g.add("coords.video", model.rope.prepare_video_coords(2, 4, 2, 3, "cpu", fps=FPS))
    g.add("coords.audio", model.audio_rope.prepare_audio_coords(2, audio, "cpu"))
    for name in (
        "rope", "audio_rope", "cross_attn_rope", "cross_attn_audio_rope", "proj_in", "audio_proj_in",
        "time_embed", "audio_time_embed", "av_cross_attn_video_scale_shift", "av_cross_attn_audio_scale_shift",
        "av_cross_attn_video_a2v_gate", "av_cross_attn_audio_v2a_gate", "caption_projection",
        "audio_caption_projection", "norm_out", "audio_norm_out",
    ):
        g.watch(model.get_submodule(name), name)
    g.watch(model.time_embed.emb.time_proj, "time_embed.sinusoid")
    g.watch(model.transformer_blocks[0], "block0", inputs=True)
    for name in (
        "norm1", "attn1", "attn1.norm_q", "audio_attn1", "attn2", "audio_attn2", "audio_to_video_attn",
        "video_to_audio_attn", "ff", "audio_ff",
    ):
        g.watch(model.transformer_blocks[0].get_submodule(name), f"block0.{name}")
    for i in (1, 2):
        g.watch(model.transformer_blocks[i], f"block{i}.out")
    g.add("out", model(**inputs, **grid))

    # One noise level per token, as conditioning needs it; an explicit text mask; the two streams isolated.
    per_token = torch.cat([torch.zeros(1, 12), torch.full((1, 12), 725.0)], dim=1)
    audio_per_token = torch.cat([torch.zeros(1, 5), torch.full((1, audio - 5), 725.0)], dim=1)
    first = {name: value[:1] for name, value in inputs.items()}
    g.add("per_token.timestep", per_token)
    g.add("per_token.audio_timestep", audio_per_token)
    g.add("per_token.out", model(**dict(first, timestep=per_token, audio_timestep=audio_per_token), **grid))
    mask = torch.ones(1, TEXT_LEN)
    mask[:, 40:] = 0
    g.add("masked.text_mask", mask)
    g.add("masked.out", model(**first, encoder_attention_mask=mask, audio_encoder_attention_mask=mask, **grid))
    g.add("isolated.out", model(**first, isolate_modalities=True, **grid))

    # The same pass computed in bfloat16, to size the tolerance of a bfloat16 engine.
    source = folder.parent / "checkpoint/diffusers/transformer"
    half = LTX2VideoTransformer3DModel.from_pretrained(source, dtype=torch.bfloat16)
    cast = {k: v if k == "timestep" else v.to(torch.bfloat16) for k, v in inputs.items()}
    g.add("bfloat16.out", half(**cast, **grid))
    return g.save()


def fewer_steps(steps):
    """Keep `steps` + 1 of the distilled sigmas: the choice with the smallest largest drop,
    then the smallest last drop, then the smallest sum of squared drops."""
    full = [*DISTILLED_SIGMA_VALUES, 0.0]

    def cost(inner):
        picked = [full[i] for i in (0, *inner, len(full) - 1)]
        drops = [a - b for a, b in zip(picked, picked[1:])]
        return max(drops), drops[-1], sum(d * d for d in drops)

    inner = min(combinations(range(1, len(full) - 1), steps - 1), key=cost)
    return [full[i] for i in (0, *inner, len(full) - 1)]


def golden_scheduler(folder):
    g = Golden(folder, "scheduler")
    distilled = FlowMatchEulerDiscreteScheduler(**SCHEDULER_DISTILLED)
    for label, sigmas in (("distilled8", DISTILLED_SIGMA_VALUES), ("refine3", STAGE_2_DISTILLED_SIGMA_VALUES)):
        distilled.set_timesteps(len(sigmas), sigmas=sigmas)
        g.add(f"{label}.sigmas", distilled.sigmas)
        g.add(f"{label}.timesteps", distilled.timesteps)
    for steps in range(2, 8):
        g.add(f"distilled{steps}.sigmas", torch.tensor(fewer_steps(steps)))
    g.add("refine2.sigmas", torch.tensor([STAGE_2_DISTILLED_SIGMA_VALUES[0], STAGE_2_DISTILLED_SIGMA_VALUES[2], 0.0]))
    base = FlowMatchEulerDiscreteScheduler(**SCHEDULER_BASE)
    for steps, tokens in ((3, 24), (40, 1024), (40, 4096), (30, 8160)):
        base.set_timesteps(steps, sigmas=np.linspace(1.0, 1 / steps, steps), mu=calculate_shift(tokens, 1024, 4096, 0.95, 2.05))
        g.add(f"base.steps{steps}.tokens{tokens}.sigmas", base.sigmas)
    # One Euler step on fixed values.
    distilled.set_timesteps(8, sigmas=DISTILLED_SIGMA_VALUES)
    distilled.set_begin_index(5)
    x, v = gaussian("s.x", (1, 24, 8)), gaussian("s.v", (1, 24, 8))
    g.add("euler.x", x)
    g.add("euler.velocity", v)
    g.add("euler.from5", distilled.step(v, distilled.timesteps[5], x, return_dict=False)[0])
    return g.save()


def test_clip(frames):
    """A smooth moving pattern, uint8 [frames, HEIGHT, WIDTH, 3]; integers only, so portable."""
    t, y, x = np.meshgrid(np.arange(frames), np.arange(HEIGHT), np.arange(WIDTH), indexing="ij")
    red, green, blue = (2 * x + 5 * t) % 256, (3 * y + 2 * x + 7 * t) % 256, (x * y // 16 + 11 * t) % 256
    return np.stack([red, green, blue], axis=-1).astype(np.uint8)


def to_rgb8(sample):
    """Decoder output [1, 3, F, H, W] in [-1, 1] to uint8 [F, H, W, 3], truncating."""
    return ((sample[0] / 2 + 0.5).clamp(0, 1) * 255).to(torch.uint8).permute(1, 2, 3, 0)


def golden_video_vae(pipe, folder):
    g, vae = Golden(folder, "video_vae"), pipe.vae
    clip = test_clip(9)
    g.add("encode.rgb8", torch.from_numpy(clip))
    pixels = torch.from_numpy(clip).float().permute(3, 0, 1, 2)[None] / 127.5 - 1.0
    g.watch(vae.encoder.conv_in, "encode.conv_in")
    for i, block in enumerate(vae.encoder.down_blocks):
        g.watch(block, f"encode.down{i}")
        g.watch(block.downsamplers[0], f"encode.down{i}.downsampler", inputs=True)
    g.watch(vae.encoder.mid_block, "encode.mid")
    posterior = vae.encode(pixels).latent_dist
    g.add("encode.moments", posterior.parameters)
    mode = posterior.mode()
    g.add("encode.latents", mode)
    mean, std = (s.view(1, -1, 1, 1, 1) for s in (vae.latents_mean, vae.latents_std))
    g.add("encode.latents_normalized", (mode - mean) / std)
    g.add("encode.single_frame", vae.encode(pixels[:, :, :1]).latent_dist.mode())

    latents = gaussian("v.latents", (1, 8, 4, 2, 3))
    g.add("decode.latents", latents)
    g.watch(vae.decoder.conv_in, "decode.conv_in")
    g.watch(vae.decoder.mid_block.resnets[0], "decode.mid.resnet0", inputs=True)
    g.watch(vae.decoder.mid_block, "decode.mid")
    for i, block in enumerate(vae.decoder.up_blocks):
        g.watch(block, f"decode.up{i}")
    g.watch(vae.decoder.up_blocks[0].upsamplers[0], "decode.up0.upsampler", inputs=True)
    sample = vae.decode(latents, return_dict=False)[0]
    g.add("decode.sample", sample)
    g.add("decode.rgb8", to_rgb8(sample))

    # Overlapping tiles in space and time, blended linearly.
    wide = gaussian("v.wide", (1, 8, 3, 4, 4))
    g.add("tiled.latents", wide)
    tiled = AutoencoderKLLTX2Video.from_config(vae.config).eval()
    tiled.load_state_dict(vae.state_dict())
    tiled.enable_tiling(96, 96, 16, 64, 64, 8)
    g.add("tiled.spatial.even_frames", tiled.decode(wide, return_dict=False)[0][:, :, ::2])
    tiled.use_framewise_decoding = True
    g.add("tiled.spatial_temporal.even_frames", tiled.decode(wide, return_dict=False)[0][:, :, ::2])
    return g.save()


def golden_audio(pipe, folder):
    g, vae = Golden(folder, "audio"), pipe.audio_vae
    mel = gaussian("a.mel", (1, 2, 101, 16))
    g.add("encode.mel", mel)
    posterior = vae.encode(mel).latent_dist
    g.add("encode.moments", posterior.parameters)
    g.add("encode.latents", posterior.mode())
    latents = gaussian("a.latents", (1, 4, audio_frames(), 4))
    g.add("decode.latents", latents)
    g.watch(vae.decoder.conv_in, "decode.conv_in")
    for i, stage in enumerate(vae.decoder.up):
        if hasattr(stage, "upsample"):
            g.watch(stage.upsample, f"decode.up{i}.upsample", inputs=True)
    decoded = vae.decode(latents, return_dict=False)[0]
    g.add("decode.mel", decoded)
    g.watch(pipe.vocoder.conv_in, "vocoder.conv_in")
    for i in range(5):
        g.watch(pipe.vocoder.upsamplers[i], f"vocoder.upsampler{i}")
    g.watch(pipe.vocoder.resnets[0], "vocoder.resnet0")
    g.add("vocoder.waveform", pipe.vocoder(decoded))
    return g.save()


def golden_generate(pipe, upsampler, folder):
    """Text to video and audio: eight steps, upsample, three refining steps, decode."""
    g = Golden(folder, "generate")
    generator = torch.Generator().manual_seed(SEED)
    handle = g.watch_steps(pipe.transformer, "stage1")
    video, audio = pipe(
        prompt=PROMPT, height=HEIGHT, width=WIDTH, num_frames=NUM_FRAMES, num_inference_steps=8,
        sigmas=DISTILLED_SIGMA_VALUES, generator=generator, output_type="latent", **PLAIN,
    )
    handle.remove()
    g.add("stage1.video", video)  # un-normalized, [1, C, F, H, W]
    g.add("stage1.audio", audio)  # un-normalized, [1, C, L, M]
    g.watch(upsampler.initial_conv, "upsample.initial_conv")
    g.watch(upsampler.upsampler, "upsample.upsampler")
    large = LTX2LatentUpsamplePipeline(vae=pipe.vae, latent_upsampler=upsampler)(
        latents=video, height=HEIGHT, width=WIDTH, num_frames=NUM_FRAMES, output_type="latent", return_dict=False
    )[0]
    g.add("upsample.video", large)
    handle = g.watch_steps(pipe.transformer, "stage2")
    decoded = {}
    hooks = [
        pipe.vae.decoder.register_forward_hook(lambda _m, _i, out: decoded.setdefault("sample", out)),
        pipe.audio_vae.decoder.register_forward_hook(lambda _m, _i, out: decoded.setdefault("mel", out)),
    ]
    frames, waveform = pipe(
        latents=large, audio_latents=audio, prompt=PROMPT, height=2 * HEIGHT, width=2 * WIDTH,
        num_frames=NUM_FRAMES, num_inference_steps=3, sigmas=STAGE_2_DISTILLED_SIGMA_VALUES,
        noise_scale=STAGE_2_DISTILLED_SIGMA_VALUES[0], generator=generator, output_type="pt", **PLAIN,
    )
    handle.remove()
    for hook in hooks:
        hook.remove()
    g.add("stage2.sample.frames_0_12_24", decoded["sample"][:, :, [0, 12, 24]])
    g.add("stage2.rgb8", to_rgb8(decoded["sample"]))
    assert torch.equal(frames[0].permute(0, 2, 3, 1), (decoded["sample"][0] / 2 + 0.5).clamp(0, 1).permute(1, 2, 3, 0))
    g.add("stage2.mel", decoded["mel"])
    g.add("stage2.waveform", waveform)
    return g.save()


def golden_guided(pipe, folder):
    """Base model settings: shifted schedule, text and modality guidance, rescaling."""
    g = Golden(folder, "guided")
    keep = pipe.scheduler
    pipe.scheduler = FlowMatchEulerDiscreteScheduler(**SCHEDULER_BASE)
    g.watch_steps(pipe.transformer, "call")  # two calls a step: [negative, positive], then isolated
    settings = dict(
        PLAIN, guidance_scale=3.0, audio_guidance_scale=7.0, modality_scale=3.0, audio_modality_scale=3.0,
        guidance_rescale=0.7, audio_guidance_rescale=0.7,
    )
    video, audio = pipe(
        prompt=PROMPT, negative_prompt=NEGATIVE, height=HEIGHT, width=WIDTH, num_frames=NUM_FRAMES,
        num_inference_steps=3, generator=torch.Generator().manual_seed(SEED), output_type="latent", **settings,
    )
    g.add("video", video)
    g.add("audio", audio)
    pipe.scheduler = keep
    return g.save()


def golden_condition(pipe, folder):
    """Nine given frames at the head of the clip, through the library's own pipeline."""
    g = Golden(folder, "condition")
    clip = test_clip(9)
    g.add("rgb8", torch.from_numpy(clip))
    parts = {k: v for k, v in pipe.components.items() if k not in ("processor", "prompt_enhancer", "duration_head")}
    conditioned = LTX2ConditionPipeline(**parts)
    conditioned.set_progress_bar_config(disable=True)
    conditions = [LTX2VideoCondition(frames=clip, index=0, strength=1.0)]
    noisy, mask, clean, _ = conditioned.prepare_latents(
        conditions=conditions, num_channels_latents=8, height=HEIGHT, width=WIDTH, num_frames=NUM_FRAMES,
        frame_rate=FPS, noise_scale=1.0, dtype=torch.float32, device=torch.device("cpu"),
        generator=torch.Generator().manual_seed(SEED),
    )
    g.add("initial.noisy", noisy)
    g.add("initial.mask", mask)
    g.add("initial.clean", clean)
    g.watch_steps(pipe.transformer, "call")
    video, audio = conditioned(
        conditions=conditions, prompt=PROMPT, height=HEIGHT, width=WIDTH, num_frames=NUM_FRAMES,
        num_inference_steps=8, sigmas=DISTILLED_SIGMA_VALUES, generator=torch.Generator().manual_seed(SEED),
        output_type="latent", **PLAIN,
    )
    g.add("video", video)
    g.add("audio", audio)
    return g.save()


# --------------------------------------------------------------------------
# Continuation, as the streaming application drives it.  The library has no
# pipeline for this; the loop below states the rules on top of its modules.
# --------------------------------------------------------------------------


def continuation_stage(model, context, noise, sigmas, grid, clean=None, mask=None,
                       audio_clean=None, audio_mask=None, offset=0.0, start=None):
    """One sampling stage in normalized token space.

    noise, start, clean: (video [1, N, C], audio [1, L, D]) pairs or tensors; a mask is 1 where the
    model generates and 0 where the clean value is kept.  `offset` moves the video's clock forward.
    """
    video, audio = noise
    mask = torch.ones_like(video[..., :1]) if mask is None else mask
    audio_mask = torch.ones_like(audio[..., :1]) if audio_mask is None else audio_mask
    sigma0 = sigmas[0]
    clean = torch.zeros_like(video) if clean is None else clean
    video = video * (mask * sigma0) + clean * (1 - mask * sigma0)
    if start is not None:  # refining: the first stage's audio, noised back up
        audio = audio * sigma0 + start * (1 - sigma0)
    audio_clean = torch.zeros_like(audio) if audio_clean is None else audio_clean
    audio = audio * audio_mask + audio_clean * (1 - audio_mask)
    coords = model.rope.prepare_video_coords(1, *grid, "cpu", fps=FPS)
    coords[:, 0] += offset
    for sigma, sigma_next in zip(sigmas, sigmas[1:]):
        at, audio_at = sigma * mask[..., 0], sigma * audio_mask[..., 0]
        velocity, audio_velocity = model(
            hidden_states=video, audio_hidden_states=audio, encoder_hidden_states=context[0],
            audio_encoder_hidden_states=context[1], timestep=at * 1000, audio_timestep=audio_at * 1000,
            video_coords=coords, audio_num_frames=audio.shape[1], return_dict=False,
        )
        video_x0 = (video - velocity * at[..., None]) * mask + clean * (1 - mask)
        audio_x0 = (audio - audio_velocity * audio_at[..., None]) * audio_mask + audio_clean * (1 - audio_mask)
        video = video + (video - video_x0) / sigma * (sigma_next - sigma)
        audio = audio + (audio - audio_x0) / sigma * (sigma_next - sigma)
    return video, audio


def golden_continuation(pipe, upsampler, folder):
    """Segment 2 of a session, two stages, conditioned on segment 1's last frames and audio."""
    g = Golden(folder, "continuation")
    model, vae = pipe.transformer, pipe.vae
    video_frames, audio_prefix = 9, 17  # trailing frames kept; frames' worth of audio kept
    extra = audio_prefix - video_frames
    total = round((NUM_FRAMES + extra) / FPS * 25)
    kept = max(1, round(audio_prefix / FPS * 25))
    offset = extra / FPS
    mean, std = (s.view(1, -1, 1, 1, 1) for s in (vae.latents_mean, vae.latents_std))
    text = load_file(folder / "text.safetensors")
    context = (text["prompt.video_context"], text["prompt.audio_context"])

    clip = test_clip(video_frames)
    previous_audio = gaussian("c.audio", (1, 4, audio_frames(), 4))  # normalized latents of segment 1
    g.add("in.rgb8", torch.from_numpy(clip))
    g.add("in.audio_latents", previous_audio)
    audio_clean = torch.zeros(1, total, 16)
    audio_clean[:, :kept] = pipe._pack_audio_latents(previous_audio)[:, -kept:]
    audio_mask = torch.ones(1, total, 1)
    audio_mask[:, :kept] = 0.0
    g.add("audio_clean", audio_clean)
    g.add("audio_mask", audio_mask)
    g.add("video_offset_seconds", torch.tensor(offset))

    def conditioning(scale, base):
        """Encode the kept frames at this stage's size and lay them over the head of the clip."""
        pixels = torch.from_numpy(clip).float().permute(0, 3, 1, 2)
        pixels = torch.nn.functional.interpolate(
            pixels, size=(HEIGHT * scale, WIDTH * scale), mode="bilinear", align_corners=False
        )
        pixels = pixels.permute(1, 0, 2, 3)[None] / 127.5 - 1.0
        latents = (vae.encode(pixels).latent_dist.mode() - mean) / std
        clean, mask = base.clone(), torch.ones(1, 1, *base.shape[2:])
        clean[:, :, : latents.shape[2]] = latents
        mask[:, :, : latents.shape[2]] = 0.0
        return pipe._pack_latents(clean), pipe._pack_latents(mask)

    clean, mask = conditioning(1, torch.zeros(1, 8, 4, 2, 3))
    noise = gaussian("c.noise1", (1, 24, 8)), gaussian("c.audio_noise1", (1, total, 16))
    g.add("stage1.clean", clean)
    g.add("stage1.mask", mask)
    g.add("stage1.noise", noise)
    video, audio = continuation_stage(
        model, context, noise, fewer_steps(5), (4, 2, 3), clean, mask, audio_clean, audio_mask, offset
    )
    g.add("stage1.video", video)
    g.add("stage1.audio", audio)

    latents = pipe._unpack_latents(video, 4, 2, 3)
    large = (upsampler(latents * std + mean) - mean) / std
    g.add("upsampled", large)
    clean, mask = conditioning(2, large)
    noise = gaussian("c.noise2", (1, 96, 8)), gaussian("c.audio_noise2", (1, total, 16))
    g.add("stage2.clean", clean)
    g.add("stage2.mask", mask)
    g.add("stage2.noise", noise)
    sigmas = [STAGE_2_DISTILLED_SIGMA_VALUES[0], STAGE_2_DISTILLED_SIGMA_VALUES[2], 0.0]
    video, audio = continuation_stage(
        model, context, noise, sigmas, (4, 4, 6), clean, mask, audio_clean, audio_mask, offset, start=audio
    )
    g.add("stage2.video", video)
    g.add("stage2.audio", audio)
    sample = vae.decode(pipe._unpack_latents(video, 4, 4, 6) * std + mean, return_dict=False)[0]
    g.add("rgb8", to_rgb8(sample))
    denormalized = audio * pipe.audio_vae.latents_std + pipe.audio_vae.latents_mean
    mel = pipe.audio_vae.decode(pipe._unpack_audio_latents(denormalized, total, num_mel_bins=4), return_dict=False)[0]
    g.add("waveform", pipe.vocoder(mel))
    return g.save()


# --------------------------------------------------------------------------


@torch.no_grad()
def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="folder to write (created; must not hold an earlier run)")
    out = parser.parse_args().out.resolve()
    if (out / "checkpoint").exists():
        parser.error(f"{out} already holds a checkpoint")
    # One thread and fixed kernels: the same additions in the same order every time.
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    diffusers.utils.logging.set_verbosity_error()
    diffusers.utils.logging.disable_progress_bar()

    started = time.monotonic()
    source, folder = out / "checkpoint/diffusers", out / "golden"
    build_checkpoint(source)
    write_fastvideo_layout(source, out / "checkpoint/fastvideo")
    pipe = LTX2Pipeline.from_pretrained(source, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    upsampler = LTX2LatentUpsamplerModel.from_pretrained(source / "latent_upsampler", dtype=torch.float32)

    sections = {
        "rng": golden_rng(folder),
        "text": golden_text(pipe, folder),
        "transformer": golden_transformer(pipe, folder),
        "scheduler": golden_scheduler(folder),
        "video_vae": golden_video_vae(pipe, folder),
        "audio": golden_audio(pipe, folder),
        "generate": golden_generate(pipe, upsampler, folder),
        "guided": golden_guided(pipe, folder),
        "condition": golden_condition(pipe, folder),
        "continuation": golden_continuation(pipe, upsampler, folder),
    }
    files = {
        str(path.relative_to(out)): {"bytes": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
        for path in sorted(out.rglob("*")) if path.is_file()
    }
    manifest = {
        "versions": {m.__name__: m.__version__ for m in (torch, diffusers, transformers, np)},
        "settings": {
            "seed": SEED, "fps": FPS, "num_frames": NUM_FRAMES, "height": HEIGHT, "width": WIDTH,
            "text_len": TEXT_LEN, "prompt": PROMPT, "negative": NEGATIVE,
            "distilled_sigmas": DISTILLED_SIGMA_VALUES, "refine_sigmas": STAGE_2_DISTILLED_SIGMA_VALUES,
        },
        "golden": sections,
        "files": files,
    }
    (out / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")
    for part in ("checkpoint/diffusers", "checkpoint/fastvideo", "golden"):
        size = sum(entry["bytes"] for name, entry in files.items() if name.startswith(part))
        print(f"{part}: {size / 1e6:.2f} MB")
    print(f"done in {time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
