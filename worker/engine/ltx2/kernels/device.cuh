// What the kernels take from the GPU's instruction set. Compiled in front of `common.cuh`. Tests of the kernels on a CPU have functions
// of the same names in `tests/kernels/cuda.hpp`.

// Two floats as bfloat16, `low` in the lower half, rounded to nearest even.
static __device__ unsigned pack_bf16(float low, float high) {
  unsigned pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
}

#if __CUDA_ARCH__ >= 890
#define HAS_FLOAT8

// Four floats as e4m3, the first in the lowest byte, rounded to nearest even. What is larger than the format becomes its largest value.
static __device__ unsigned pack_e4m3(float a, float b, float c, float d) {
  unsigned short low, high;
  asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(low) : "f"(b), "f"(a));
  asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(high) : "f"(d), "f"(c));
  return low | static_cast<unsigned>(high) << 16;
}
#endif
