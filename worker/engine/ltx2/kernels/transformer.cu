// One block a token; a thread keeps its part of the row in registers, so that every value is read and written once.

// Sixteen-byte parts of a row that one thread holds at most.
constexpr int PARTS = 4;
// The same for each half of a row that is rotated.
constexpr int HALF_PARTS = 2;

// Which row of modulation belongs to a token: one for each of a few runs of tokens, or one for each token.
struct Runs {
  long long batch_stride, run_stride;  // of the rows, in elements
  int tokens;                          // of one batch entry
  int starts[3];                       // the first token of the second, third and fourth run
  int per_token;                       // whether each token is a run
};

__device__ long long modulation_row(const Runs& runs, int row) {
  const int batch = row / runs.tokens, token = row % runs.tokens;
  const int run =
      runs.per_token ? token : (token >= runs.starts[0]) + (token >= runs.starts[1]) + (token >= runs.starts[2]);
  return batch * runs.batch_stride + run * runs.run_stride;
}

// A thread's parts of one row.
template <typename T>
struct Row {
  static constexpr int WIDTH = Vector<T>::WIDTH;
  float values[PARTS][WIDTH];

  template <typename Body>
  static __device__ void each(int width, Body body) {
#pragma unroll
    for (int part = 0; part < PARTS; part++) {
      const int column = (part * blockDim.x + threadIdx.x) * WIDTH;
      if (column < width) body(part, column);
    }
  }

  __device__ void load(const T* from, int width) {
    each(width, [&](int part, int column) { Vector<T>::load(from + column, values[part]); });
  }

  __device__ void store(T* to, int width) const {
    each(width, [&](int part, int column) { Vector<T>::store(to + column, values[part]); });
  }

  // 1 / sqrt(mean of squares + eps).
  __device__ float inverse_rms(int width, float eps) const {
    float squares = 0.0f;
    each(width, [&](int part, int) {
      for (int i = 0; i < WIDTH; i++) squares += values[part][i] * values[part][i];
    });
    return rsqrtf(over_block(squares) / width + eps);
  }
};

// This block's row of rms(x) (1 + scale) + shift; x [rows, width].
template <typename T>
__device__ Row<T> modulated(const T* x, const T* scale, const T* shift, const Runs& runs, int width, float eps) {
  Row<T> row;
  row.load(x + static_cast<long long>(blockIdx.x) * width, width);
  const float factor = row.inverse_rms(width, eps);
  const long long modulation = modulation_row(runs, blockIdx.x);
  Row<T>::each(width, [&](int part, int column) {
    float s[Row<T>::WIDTH], b[Row<T>::WIDTH];
    Vector<T>::load(scale + modulation + column, s);
    Vector<T>::load(shift + modulation + column, b);
    for (int i = 0; i < Row<T>::WIDTH; i++) {
      row.values[part][i] = row.values[part][i] * factor * (1.0f + s[i]) + b[i];
    }
  });
  return row;
}

template <typename T>
__device__ void rms_norm_modulate(
    T* out, const T* x, const T* scale, const T* shift, Runs runs, int width, float eps) {
  const Row<T> row = modulated(x, scale, shift, runs, width, eps);
  row.store(out + static_cast<long long>(blockIdx.x) * width, width);
}

// x += gate y, in place.
template <typename T>
__device__ void add_gated(T* x, const T* y, const T* gate, Runs runs, int width) {
  const long long at = static_cast<long long>(blockIdx.x) * width;
  gate += modulation_row(runs, blockIdx.x);
  Row<T>::each(width, [&](int, int column) {
    float sum[Row<T>::WIDTH], g[Row<T>::WIDTH], v[Row<T>::WIDTH];
    Vector<T>::load(x + at + column, sum);
    Vector<T>::load(y + at + column, v);
    Vector<T>::load(gate + column, g);
    for (int i = 0; i < Row<T>::WIDTH; i++) sum[i] += g[i] * v[i];
    Vector<T>::store(x + at + column, sum);
  });
}

// The grid that tokens lie on. The pairs of a token's values belong to its axes in turn, but for the first `still` ones, which are
// not rotated.
struct Grid {
  int axes;
  int sizes[3], strides[3];  // positions on each axis, and tokens from one to the next
  int frequencies;           // of each axis
  int still;
};

// One row normed over its whole width with a gain, each head's halves then rotated: a cos - b sin, b cos + a sin.
// A thread holds the same parts of both halves. `table` has cosine and sine at each position of the first axis, of the
// second and so on, [positions, frequencies].
template <typename T>
__device__ void norm_rotate(
    T* out, const T* x, const T* gain, const float2* table, const Grid& grid, int tokens, int heads, int half,
    float eps) {
  constexpr int WIDTH = Vector<T>::WIDTH;
  const int pairs = heads * half;
  const long long at = static_cast<long long>(blockIdx.x) * 2 * pairs;
  const int token = blockIdx.x % tokens;

  const float2* rows[3];  // of this token
#pragma unroll
  for (int axis = 0; axis < 3; axis++) {
    rows[axis] = table + token / grid.strides[axis] % grid.sizes[axis] * grid.frequencies;
    table += grid.sizes[axis] * grid.frequencies;
  }

  float a[HALF_PARTS][WIDTH], b[HALF_PARTS][WIDTH];
  float squares = 0.0f;
#pragma unroll
  for (int part = 0; part < HALF_PARTS; part++) {
    const int pair = (part * blockDim.x + threadIdx.x) * WIDTH;
    if (pair >= pairs) break;
    const int column = pair + pair / half * half;
    Vector<T>::load(x + at + column, a[part]);
    Vector<T>::load(x + at + column + half, b[part]);
    for (int i = 0; i < WIDTH; i++) squares += a[part][i] * a[part][i] + b[part][i] * b[part][i];
  }
  const float factor = rsqrtf(over_block(squares) / (2 * pairs) + eps);

#pragma unroll
  for (int part = 0; part < HALF_PARTS; part++) {
    const int pair = (part * blockDim.x + threadIdx.x) * WIDTH;
    if (pair >= pairs) break;
    const int column = pair + pair / half * half;
    int turn = max(pair - grid.still, 0);  // among the pairs that are rotated
    int axis = turn % grid.axes;
    turn /= grid.axes;
    float gain_a[WIDTH], gain_b[WIDTH];
    Vector<T>::load(gain + column, gain_a);
    Vector<T>::load(gain + column + half, gain_b);
#pragma unroll
    for (int i = 0; i < WIDTH; i++) {
      float2 angle = make_float2(1.0f, 0.0f);
      if (pair + i >= grid.still) {
        angle = (axis == 0 ? rows[0] : axis == 1 ? rows[1] : rows[2])[turn];
        axis++;
        if (axis == grid.axes) {
          axis = 0;
          turn++;
        }
      }
      const float first = a[part][i] * factor * gain_a[i];
      const float second = b[part][i] * factor * gain_b[i];
      a[part][i] = first * angle.x - second * angle.y;
      b[part][i] = second * angle.x + first * angle.y;
    }
    Vector<T>::store(out + at + column, a[part]);
    Vector<T>::store(out + at + column + half, b[part]);
  }
}

#define KERNELS(T)                                                                                        \
  extern "C" __global__ void rms_norm_modulate_##T(                                                       \
      T* out, const T* x, const T* scale, const T* shift, Runs runs, int width, float eps) {              \
    rms_norm_modulate<T>(out, x, scale, shift, runs, width, eps);                                         \
  }                                                                                                       \
  extern "C" __global__ void add_gated_##T(T* x, const T* y, const T* gate, Runs runs, int width) {       \
    add_gated<T>(x, y, gate, runs, width);                                                                \
  }                                                                                                       \
  extern "C" __global__ void norm_rotate_##T(                                                             \
      T* out, const T* x, const T* gain, const float2* table, Grid grid, int tokens, int heads, int half, \
      float eps) {                                                                                        \
    norm_rotate<T>(out, x, gain, table, grid, tokens, heads, half, eps);                                  \
  }

KERNELS(bf16)
KERNELS(float)

#ifdef HAS_FLOAT8

// Where a kernel writes rows in 8-bit floats (e4m3), [rows, width].
struct Float8 {
  unsigned char* values;
  float* scales;  // of each row
  bf16* dense;    // the same rows as they are, or null
};

// Rounds this block's row to bfloat16 and writes it. The largest amount in a row becomes the largest that the format has.
__device__ void store(Float8 to, Row<bf16>& row, int width) {
  constexpr int WIDTH = Row<bf16>::WIDTH;
  const long long at = static_cast<long long>(blockIdx.x) * width;
  float largest = 0.0f;
  Row<bf16>::each(width, [&](int part, int) {
    Vector<bf16>::round(row.values[part]);
    for (int i = 0; i < WIDTH; i++) largest = fmaxf(largest, fabsf(row.values[part][i]));
  });
  const float scale = fmaxf(over_block<Largest>(largest), 1e-12f) / 448.0f;
  if (threadIdx.x == 0) to.scales[blockIdx.x] = scale;
  Row<bf16>::each(width, [&](int part, int column) {
    float q[WIDTH];
    for (int i = 0; i < WIDTH; i++) q[i] = row.values[part][i] / scale;
    *reinterpret_cast<uint2*>(to.values + at + column) =
        make_uint2(pack_e4m3(q[0], q[1], q[2], q[3]), pack_e4m3(q[4], q[5], q[6], q[7]));
  });
  if (to.dense) row.store(to.dense + at, width);
}

extern "C" __global__ void rms_norm_modulate_float8(
    Float8 out, const bf16* x, const bf16* scale, const bf16* shift, Runs runs, int width, float eps) {
  Row<bf16> row = modulated(x, scale, shift, runs, width, eps);
  store(out, row, width);
}

// GELU in its tanh form.
extern "C" __global__ void gelu_float8(Float8 out, const bf16* x, int width) {
  Row<bf16> row;
  row.load(x + static_cast<long long>(blockIdx.x) * width, width);
  Row<bf16>::each(width, [&](int part, int) {
    for (float& value : row.values[part]) {
      const float inner = 0.7978845608028654f * (value + 0.044715f * (value * value * value));
      value = 0.5f * value * (1.0f + tanhf(inner));
    }
  });
  store(out, row, width);
}

// x times the gates of its heads, [rows, width / head_width]; without gates, x as it is.
extern "C" __global__ void gate_float8(Float8 out, const bf16* x, const bf16* gates, int width, int head_width) {
  Row<bf16> row;
  row.load(x + static_cast<long long>(blockIdx.x) * width, width);
  if (gates) {
    gates += static_cast<long long>(blockIdx.x) * (width / head_width);
    Row<bf16>::each(width, [&](int part, int column) {
      const float gate = __uint_as_float(static_cast<unsigned>(gates[column / head_width].bits) << 16);
      for (float& value : row.values[part]) value *= gate;
    });
  }
  store(out, row, width);
}

#endif
