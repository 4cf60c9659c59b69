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

  // 1 / sqrt(mean of squares + eps).
  __device__ float inverse_rms(int width, float eps) const {
    float squares = 0.0f;
    each(width, [&](int part, int) {
      for (int i = 0; i < WIDTH; i++) squares += values[part][i] * values[part][i];
    });
    return rsqrtf(block_sum(squares) / width + eps);
  }
};

// out = rms(x) (1 + scale) + shift; x and out [rows, width].
template <typename T>
__device__ void rms_norm_modulate(
    T* out, const T* x, const T* scale, const T* shift, Runs runs, int width, float eps) {
  const long long at = static_cast<long long>(blockIdx.x) * width;
  Row<T> row;
  Row<T>::each(width, [&](int part, int column) { Vector<T>::load(x + at + column, row.values[part]); });
  const float factor = row.inverse_rms(width, eps);
  const long long modulation = modulation_row(runs, blockIdx.x);
  Row<T>::each(width, [&](int part, int column) {
    float s[Row<T>::WIDTH], b[Row<T>::WIDTH], y[Row<T>::WIDTH];
    Vector<T>::load(scale + modulation + column, s);
    Vector<T>::load(shift + modulation + column, b);
    for (int i = 0; i < Row<T>::WIDTH; i++) y[i] = row.values[part][i] * factor * (1.0f + s[i]) + b[i];
    Vector<T>::store(out + at + column, y);
  });
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

// One row normed over its whole width with a gain, each head's halves then rotated: a cos - b sin, b cos + a sin.
// A thread holds the same parts of both halves. cos and sin [table_batch, heads, tokens, half] in float32, where
// table_batch is 1 or the batch.
template <typename T>
__device__ void norm_rotate(
    T* out, const T* x, const T* gain, const float* cos, const float* sin, int table_batch, int tokens, int heads,
    int half, float eps) {
  constexpr int WIDTH = Vector<T>::WIDTH;
  const int pairs = heads * half;
  const long long at = static_cast<long long>(blockIdx.x) * 2 * pairs;
  const int batch = blockIdx.x / tokens % table_batch, token = blockIdx.x % tokens;

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
  const float factor = rsqrtf(block_sum(squares) / (2 * pairs) + eps);

#pragma unroll
  for (int part = 0; part < HALF_PARTS; part++) {
    const int pair = (part * blockDim.x + threadIdx.x) * WIDTH;
    if (pair >= pairs) break;
    const int head = pair / half, column = pair + head * half;
    const long long angle =
        ((static_cast<long long>(batch) * heads + head) * tokens + token) * half + pair % half;
    float gain_a[WIDTH], gain_b[WIDTH];
    Vector<T>::load(gain + column, gain_a);
    Vector<T>::load(gain + column + half, gain_b);
    for (int i = 0; i < WIDTH; i += 4) {
      float c[4], s[4];
      Vector<float>::load(cos + angle + i, c);
      Vector<float>::load(sin + angle + i, s);
      for (int j = 0; j < 4; j++) {
        const float first = a[part][i + j] * factor * gain_a[i + j];
        const float second = b[part][i + j] * factor * gain_b[i + j];
        a[part][i + j] = first * c[j] - second * s[j];
        b[part][i + j] = second * c[j] + first * s[j];
      }
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
      T* out, const T* x, const T* gain, const float* cos, const float* sin, int table_batch, int tokens, \
      int heads, int half, float eps) {                                                                   \
    norm_rotate<T>(out, x, gain, cos, sin, table_batch, tokens, heads, half, eps);                        \
  }

KERNELS(bf16)
KERNELS(float)
