// x = f(x, shared..., own[i]...) for i = 0, 1, ..., times - 1, where f is a function compiled by AOTInductor.
//
// One call for all layers of a model: a caller in Python is without its lock meanwhile, and takes it once.

#include <cstddef>
#include <vector>

using Tensor = void *;                                                    // AtenTensorHandle
using Copy = int (*)(Tensor, Tensor *);                                   // aoti_torch_new_tensor_handle
using Delete = int (*)(Tensor);                                           // aoti_torch_delete_tensor_object
using Run = int (*)(void *, Tensor *, size_t, Tensor *, size_t, void *, void *);  // AOTInductorModelContainerRun

// `*x` is taken, and the result is put there, or null where a call fails (then not 0 is returned). The others stay.
extern "C" int run_in_turn(Run run, void *function, Copy copy, Delete del, Tensor *x, const Tensor *shared,
                           size_t num_shared, const Tensor *own, size_t num_own, size_t times) {
  std::vector<Tensor> given(1 + num_shared + num_own);
  for (size_t i = 0; i < times; ++i) {
    given[0] = *x;
    *x = nullptr;
    for (size_t j = 0; j < num_shared + num_own; ++j) {
      if (copy(j < num_shared ? shared[j] : own[i * num_own + j - num_shared], &given[1 + j]) != 0) {
        for (size_t k = 0; k <= j; ++k) del(given[k]);
        return 1;
      }
    }
    // A run takes every tensor that it is given.
    if (run(function, given.data(), given.size(), x, 1, nullptr, nullptr) != 0) return 1;
  }
  return 0;
}
