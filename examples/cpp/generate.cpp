// Runs a compiled model with TVM's runtime and no Python: token ids in, the likeliest continuation out.
//   ./generate model.so 32 1 15043 29892
#include <dlfcn.h>
#include <tvm/ffi/extra/module.h>
#include <tvm/ffi/tvm_ffi.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <numeric>
#include <vector>
using namespace tvm::ffi;

struct Aligned {
  void AllocData(DLTensor* t) { t->data = aligned_alloc(64, (GetDataSize(*t) + 63) / 64 * 64); }
  void FreeData(DLTensor* t) { free(t->data); }
};
Tensor ints(const std::vector<int32_t>& v, bool row = false) {
  const int64_t n = static_cast<int64_t>(v.size());
  Tensor t = Tensor::FromNDAlloc(Aligned{}, row ? Shape{1, n} : Shape{n}, {kDLInt, 32, 1}, {kDLCPU, 0});
  std::copy(v.begin(), v.end(), static_cast<int32_t*>(t.data_ptr()));
  return t;
}

int main(int argc, char** argv) {
  if (argc < 4) return fprintf(stderr, "usage: generate MODEL.so COUNT ID...\n"), 2;
  void* library = dlopen(argv[1], RTLD_LAZY);
  if (!library) return fprintf(stderr, "%s\n", dlerror()), 1;
  const auto missing = reinterpret_cast<const char* (*)()>(dlsym(library, "bitnet_missing_feature"));
  if (!missing || missing()) return fprintf(stderr, "this CPU lacks %s\n", missing ? missing() : "a model"), 1;
  Module vm = Module::LoadFromFile(argv[1])->GetFunction("vm_load_executable").value()().cast<Module>();
  vm->GetFunction("vm_initialization").value()(static_cast<int>(kDLCPU), 0, 2);  // 2: its pooled allocator

  std::vector<int32_t> ids, blocks;
  for (int i = 3; i < argc; ++i) ids.push_back(atoi(argv[i]));
  const int count = atoi(argv[2]);
  blocks.resize((ids.size() + count + 15) / 16);  // of 16 positions each
  std::iota(blocks.begin(), blocks.end(), 0);
  const Any cache = vm->GetFunction("new_cache").value()(Shape{static_cast<int64_t>(blocks.size())});
  for (int position = 0, i = 0; i < count; ++i) {
    const int n = static_cast<int>(ids.size());
    std::vector<int32_t> at(n);
    std::iota(at.begin(), at.end(), position);
    const auto step = vm->GetFunction(n == 1 ? "decode" : "step").value();
    const Tensor logits =
        step(ints(ids), ints(at), ints(std::vector<int32_t>(n, 0)), ints({n - 1}), ints({1}), ints(blocks, true), cache)
            .cast<Tensor>();
    const float* p = static_cast<const float*>(logits.data_ptr());
    position += n;
    ids = {static_cast<int32_t>(std::max_element(p, p + logits.size(1)) - p)};
    printf("%d ", ids[0]), fflush(stdout);
  }
  printf("\n");
}
