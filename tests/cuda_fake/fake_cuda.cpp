// A CUDA device for PyTorch's autograd engine to see where there is none; preloaded by test_cuda_fake.py.
//
// FakeTensorMode knows the shapes and devices of tensors without computing. Its backward pass still asks which
// accelerator this machine has, and for that device's streams: a build of PyTorch without CUDA answers none.
#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/impl/FakeGuardImpl.h>

#define SEEN __attribute__((visibility("default")))

namespace {
struct Hooks final : at::CUDAHooksInterface {
  bool hasPrimaryContext(c10::DeviceIndex) const override { return false; }
};
}  // namespace

namespace at::accelerator {
SEEN std::optional<c10::DeviceType> getAccelerator(bool) { return c10::DeviceType::CUDA; }
}  // namespace at::accelerator

namespace at::detail {
SEEN const CUDAHooksInterface& getCUDAHooks() {
  static const Hooks hooks;
  return hooks;
}
}  // namespace at::detail

namespace c10::impl {
C10_REGISTER_GUARD_IMPL(CUDA, FakeGuardImpl<DeviceType::CUDA>);
}  // namespace c10::impl
