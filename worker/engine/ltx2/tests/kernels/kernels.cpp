// All kernels as functions for a CPU.

#include "cuda.hpp"

#include "../../kernels/common.cuh"

#include "../../kernels/transformer.cu"
#undef KERNELS
#include "../../kernels/video_vae.cu"

#define ON_HOST_BY_PARTS(kernel) \
  ON_HOST(kernel##_1)            \
  ON_HOST(kernel##_2)            \
  ON_HOST(kernel##_4)            \
  ON_HOST(kernel##_8)

#define ALL_ON_HOST(T)                      \
  ON_HOST(rms_norm_modulate_##T)            \
  ON_HOST(add_gated_##T)                    \
  ON_HOST(norm_rotate_##T)                  \
  ON_HOST_BY_PARTS(pixel_norm_silu_pad_##T) \
  ON_HOST_BY_PARTS(pad_##T)                 \
  ON_HOST(rgb8_##T)

ALL_ON_HOST(bf16)
ALL_ON_HOST(float)

ON_HOST(rms_norm_modulate_float8)
ON_HOST(gelu_float8)
ON_HOST(gate_float8)
