// Around the video decoder's convolutions, and from its last one to bytes.

// How a picture becomes the input of a convolution without padding of its own. Sizes are those before padding.
struct Padding {
  int frames, rows, columns;
  int before, after;  // copies of the first and of the last frame
  int border;         // rows and columns on each side
  int reflect;        // whether the border mirrors the picture; else it is zero
};

// Where the padded position `at` lies in a line of `size`, `border` in front of it; outside of it -1 unless reflected.
__device__ int line_source(int at, int border, int size, int reflect) {
  const int source = at - border;
  if (source >= 0 && source < size) return source;
  if (!reflect) return -1;
  return source < 0 ? -source : 2 * (size - 1) - source;
}

// x, or with NORM silu(x / sqrt(mean over channels of x^2 + eps)), padded. Channels lie together: x [batch, frames, rows, columns,
// channels], and out likewise with its larger sizes. One block a padded row; `lanes` threads a pixel, PARTS times
// sixteen bytes each.
template <typename T, int PARTS, bool NORM>
__device__ void pad(T* out, const T* x, Padding padding, int channels, int lanes, float eps) {
  constexpr int WIDTH = Vector<T>::WIDTH;
  const int padded_rows = padding.rows + 2 * padding.border, padded_columns = padding.columns + 2 * padding.border;
  const int padded_frames = padding.before + padding.frames + padding.after;
  const int padded_row = blockIdx.x % padded_rows;
  const int padded_frame = blockIdx.x / padded_rows % padded_frames;
  const int batch = blockIdx.x / padded_rows / padded_frames;

  const int frame = min(max(padded_frame - padding.before, 0), padding.frames - 1);
  const int row = line_source(padded_row, padding.border, padding.rows, padding.reflect);
  const T* line = x + ((static_cast<long long>(batch) * padding.frames + frame) * padding.rows + row) * padding.columns * channels;
  T* to = out + static_cast<long long>(blockIdx.x) * padded_columns * channels;

  const int lane = threadIdx.x % lanes, step = blockDim.x / lanes;
  // Every thread takes the same number of turns, since those of one warp sum together.
  for (int first = 0; first < padded_columns; first += step) {
    const int padded_column = first + threadIdx.x / lanes;
    const int column =
        padded_column < padded_columns ? line_source(padded_column, padding.border, padding.columns, padding.reflect) : -1;
    const bool inside = row >= 0 && column >= 0;

    float values[PARTS][WIDTH];
    float squares = 0.0f;
#pragma unroll
    for (int part = 0; part < PARTS; part++) {
      for (int i = 0; i < WIDTH; i++) values[part][i] = 0.0f;
      if (inside) {
        const int channel = (part * lanes + lane) * WIDTH;
        Vector<T>::load(line + static_cast<long long>(column) * channels + channel, values[part]);
      }
      for (int i = 0; i < WIDTH; i++) squares += values[part][i] * values[part][i];
    }
    const float factor = NORM ? rsqrtf(over_lanes(squares, lanes) / channels + eps) : 0.0f;
    if (padded_column >= padded_columns) continue;
#pragma unroll
    for (int part = 0; part < PARTS; part++) {
      for (int i = 0; NORM && i < WIDTH; i++) {
        const float normed = values[part][i] * factor;
        values[part][i] = normed / (1.0f + expf(-normed));
      }
      const int channel = (part * lanes + lane) * WIDTH;
      Vector<T>::store(to + static_cast<long long>(padded_column) * channels + channel, values[part]);
    }
  }
}

// Pictures in [-1, 1] as bytes: x [3, pixels] to out [pixels, 3]. A thread takes sixteen bytes of each colour.
template <typename T>
__device__ void rgb8(unsigned* out, const T* x, long long pixels) {
  constexpr int WIDTH = Vector<T>::WIDTH;
  const long long thread = static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x;
  const long long pixel = thread * WIDTH;
  if (pixel >= pixels) return;
  unsigned char bytes[3 * WIDTH];
  for (int colour = 0; colour < 3; colour++) {
    float values[WIDTH];
    Vector<T>::load(x + colour * pixels + pixel, values);
    for (int i = 0; i < WIDTH; i++) {
      const float level = fminf(fmaxf(values[i] * 0.5f + 0.5f, 0.0f), 1.0f);
      bytes[3 * i + colour] = static_cast<unsigned char>(level * 255.0f);
    }
  }
  for (int word = 0; word < 3 * WIDTH / 4; word++) {
    out[thread * (3 * WIDTH / 4) + word] = bytes[4 * word] | bytes[4 * word + 1] << 8 |
                                           bytes[4 * word + 2] << 16 |
                                           static_cast<unsigned>(bytes[4 * word + 3]) << 24;
  }
}

#define PAD(T, PARTS)                                                                                  \
  extern "C" __global__ void pixel_norm_silu_pad_##T##_##PARTS(                                        \
      T* out, const T* x, Padding padding, int channels, int lanes, float eps) {                       \
    pad<T, PARTS, true>(out, x, padding, channels, lanes, eps);                                        \
  }                                                                                                    \
  extern "C" __global__ void pad_##T##_##PARTS(                                                        \
      T* out, const T* x, Padding padding, int channels, int lanes, float eps) {                       \
    pad<T, PARTS, false>(out, x, padding, channels, lanes, eps);                                       \
  }

#define KERNELS(T)                                                                                     \
  PAD(T, 1)                                                                                            \
  PAD(T, 2)                                                                                            \
  PAD(T, 4)                                                                                            \
  PAD(T, 8)                                                                                            \
  extern "C" __global__ void rgb8_##T(unsigned* out, const T* x, long long pixels) {                   \
    rgb8<T>(out, x, pixels);                                                                           \
  }

KERNELS(bf16)
KERNELS(float)
