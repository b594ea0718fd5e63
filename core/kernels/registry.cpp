#include "kernels/registry.h"

#include <atomic>
#include <cstdlib>
#include <stdexcept>

#if defined(__x86_64__)
#define BITNET_MACHINE_X86_64 1
#define BITNET_MACHINE_AARCH64 0
#elif defined(__aarch64__)
#define BITNET_MACHINE_X86_64 0
#define BITNET_MACHINE_AARCH64 1
#else
#define BITNET_MACHINE_X86_64 0
#define BITNET_MACHINE_AARCH64 0
#endif

namespace bitnet {
namespace {

struct Target {
  const char* name;
  const Kernels* kernels;
  bool usable;
};

}  // namespace

// The tables that were compiled for this machine, and the list of them.
#define BITNET_IF_X86_64(...) BITNET_IF(BITNET_MACHINE_X86_64, __VA_ARGS__)
#define BITNET_IF_AARCH64(...) BITNET_IF(BITNET_MACHINE_AARCH64, __VA_ARGS__)
#define BITNET_IF_ANY(...) __VA_ARGS__
#define BITNET_IF(on, ...) BITNET_IF_EXPANDED(on, __VA_ARGS__)
#define BITNET_IF_EXPANDED(on, ...) BITNET_IF_##on(__VA_ARGS__)
#define BITNET_IF_1(...) __VA_ARGS__
#define BITNET_IF_0(...)

#define BITNET_TARGET(name, machine, flags, condition) \
  BITNET_IF_##machine(namespace name { extern const Kernels kKernels; })
#include "kernels/targets.def"
#undef BITNET_TARGET

namespace {

const std::vector<Target>& targets() {
  const Features& cpu = this_cpu();
  static const std::vector<Target> list = {
#define BITNET_TARGET(name, machine, flags, condition) BITNET_IF_##machine({#name, &name::kKernels, condition}, )
#include "kernels/targets.def"
#undef BITNET_TARGET
  };
  return list;
}

std::string usable_names() {
  std::string names;
  for (const auto& name : usable_isas()) names += (names.empty() ? "" : ", ") + name;
  return names;
}

const Kernels* find(const std::string& name, const std::string& who) {
  for (const Target& target : targets()) {
    if (name != target.name) continue;
    if (target.usable) return target.kernels;
    throw std::invalid_argument(who + "\"" + name + "\": this CPU lacks it. It can run: " + usable_names() + ".");
  }
  throw std::invalid_argument(who + "\"" + name +
                              "\" is no instruction set of this build. This CPU can run: " + usable_names() + ".");
}

const Kernels* choose() {
  const char* name = std::getenv("BITNET_ISA");
  if (name && *name) return find(name, "BITNET_ISA=");
  for (const Target& target : targets())
    if (target.usable) return target.kernels;
  throw std::invalid_argument("no usable instruction set");  // scalar always is
}

std::atomic<const Kernels*> running{nullptr};

}  // namespace

const Kernels& kernels() {
  const Kernels* k = running.load(std::memory_order_relaxed);
  if (!k) {
    k = choose();
    running.store(k, std::memory_order_relaxed);
  }
  return *k;
}

void set_isa(const std::string& name) { running.store(find(name, ""), std::memory_order_relaxed); }

std::vector<std::string> usable_isas() {
  std::vector<std::string> names;
  for (const Target& target : targets())
    if (target.usable) names.emplace_back(target.name);
  return names;
}

std::vector<std::string> isas_for(const Features& cpu) {
  std::vector<std::string> names;
#define BITNET_TARGET(name, machine, flags, condition) \
  if (condition) names.emplace_back(#name);
#include "kernels/targets.def"
#undef BITNET_TARGET
  return names;
}

}  // namespace bitnet
