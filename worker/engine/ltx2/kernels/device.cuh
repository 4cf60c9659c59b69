// What the kernels take from the GPU's instruction set. Compiled in front of `common.cuh`. Tests of the kernels on a CPU have functions
// of the same names in `tests/kernels/cuda.hpp`.

// Two floats as bfloat16, `low` in the lower half, rounded to nearest even.
static __device__ unsigned pack_bf16(float low, float high) {
  unsigned pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
}
