// What the kernels share. Compiled in front of each of them, without any header of CUDA's: none need be installed.
//
// Memory holds bfloat16 or float32, sixteen bytes a load; arithmetic is float32 and is rounded once, when stored.

struct bf16 {
  unsigned short bits;
};

// Sixteen bytes of T as float32 values.
template <typename T>
struct Vector;

template <>
struct Vector<float> {
  static constexpr int WIDTH = 4;

  static __device__ void load(const float* from, float (&values)[4]) {
    const float4 raw = *reinterpret_cast<const float4*>(from);
    values[0] = raw.x;
    values[1] = raw.y;
    values[2] = raw.z;
    values[3] = raw.w;
  }

  static __device__ void store(float* to, const float (&values)[4]) {
    *reinterpret_cast<float4*>(to) = make_float4(values[0], values[1], values[2], values[3]);
  }

  // Rounds the values to what T holds.
  static __device__ void round(float (&)[4]) {}
};

template <>
struct Vector<bf16> {
  static constexpr int WIDTH = 8;

  static __device__ void unpack(unsigned pair, float& low, float& high) {
    low = __uint_as_float(pair << 16);
    high = __uint_as_float(pair & 0xffff0000u);
  }

  static __device__ void load(const bf16* from, float (&values)[8]) {
    const uint4 raw = *reinterpret_cast<const uint4*>(from);
    unpack(raw.x, values[0], values[1]);
    unpack(raw.y, values[2], values[3]);
    unpack(raw.z, values[4], values[5]);
    unpack(raw.w, values[6], values[7]);
  }

  static __device__ void store(bf16* to, const float (&values)[8]) {
    *reinterpret_cast<uint4*>(to) = make_uint4(
        pack_bf16(values[0], values[1]), pack_bf16(values[2], values[3]),
        pack_bf16(values[4], values[5]), pack_bf16(values[6], values[7]));
  }

  static __device__ void round(float (&values)[8]) {
    for (int i = 0; i < 8; i += 2) unpack(pack_bf16(values[i], values[i + 1]), values[i], values[i + 1]);
  }
};

struct Sum {
  static constexpr float NONE = 0.0f;
  static __device__ float of(float a, float b) { return a + b; }
};

struct Largest {
  static constexpr float NONE = 0.0f;  // of amounts
  static __device__ float of(float a, float b) { return fmaxf(a, b); }
};

// The sum, or another operation, over `lanes` neighbouring threads, a power of two up to 32, in each of them.
template <typename Operation = Sum>
__device__ float over_lanes(float value, int lanes) {
  for (int offset = lanes / 2; offset > 0; offset /= 2) {
    value = Operation::of(value, __shfl_xor_sync(0xffffffffu, value, offset));
  }
  return value;
}

// The same over the block, in every thread. Blocks are whole warps.
template <typename Operation = Sum>
__device__ float over_block(float value) {
  __shared__ float warps[32];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  value = over_lanes<Operation>(value, 32);
  __syncthreads();  // the values of an earlier call have been read
  if (lane == 0) warps[warp] = value;
  __syncthreads();
  return over_lanes<Operation>(lane < blockDim.x / 32 ? warps[lane] : Operation::NONE, 32);
}
