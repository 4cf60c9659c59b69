// What libtorch can do and `tch` does not pass on: its caching allocator, which kernels it may choose, its stream.
// Only headers that need no CUDA: the backend itself is loaded at run time. Every function returns 0, or 1 when it threw.

#include <ATen/Context.h>
#include <c10/core/CachingDeviceAllocator.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <cstdint>

namespace {

template <typename Body>
int caught(Body body) noexcept {
  try {
    body();
    return 0;
  } catch (...) {
    return 1;
  }
}

c10::DeviceAllocator* allocator() {
  return c10::getDeviceAllocator(c10::DeviceType::CUDA);
}

}  // namespace

extern "C" {

// Bytes in tensors now, at most since the last reset, and at most held from the driver since then.
int ltx2_memory(int device, int64_t* allocated, int64_t* allocated_peak, int64_t* reserved_peak) {
  return caught([&] {
    const auto stats = allocator()->getDeviceStats(static_cast<c10::DeviceIndex>(device));
    const auto all = static_cast<size_t>(c10::CachingAllocator::StatType::AGGREGATE);
    *allocated = stats.allocated_bytes[all].current;
    *allocated_peak = stats.allocated_bytes[all].peak;
    *reserved_peak = stats.reserved_bytes[all].peak;
  });
}

int ltx2_reset_peak_memory(int device) {
  return caught([&] { allocator()->resetPeakStats(static_cast<c10::DeviceIndex>(device)); });
}

// Gives memory that no tensor uses back to the driver.
int ltx2_empty_cache() {
  return caught([] { allocator()->emptyCache(); });
}

// The id of the calling thread's current stream; 0 is the default stream.
int ltx2_current_stream(int device, int64_t* id) {
  return caught([&] {
    const c10::impl::VirtualGuardImpl guard(c10::DeviceType::CUDA);
    *id = guard.getStream(c10::Device(c10::DeviceType::CUDA, static_cast<c10::DeviceIndex>(device))).id();
  });
}

// Whether float32 matrices and convolutions may be rounded to TF32.
int ltx2_allow_tf32(bool allow) {
  return caught([&] {
    at::globalContext().setAllowTF32CuBLAS(allow);
    at::globalContext().setAllowTF32CuDNN(allow);
  });
}

// Kinds of attention kernels, as numbered by at::SDPBackend, the one to try first in front.
int ltx2_attention_order(const int64_t* order, size_t count) {
  return caught([&] { at::globalContext().setSDPPriorityOrder(std::vector<int64_t>(order, order + count)); });
}

}
