#include "kernels/registry.h"

#include <atomic>
#include <cstdlib>
#include <stdexcept>

namespace bitnet {
namespace {

struct Target {
  const char* name;
  const Kernels* kernels;
  bool usable;
};

}  // namespace

// The build says which of targets.def it compiled, as X(name) for each.
#define X(name)                  \
  namespace name {               \
  extern const Kernels kKernels; \
  }
BITNET_COMPILED
#undef X

namespace {

const Kernels* compiled(const std::string& target) {
#define X(name) \
  if (target == #name) return &name::kKernels;
  BITNET_COMPILED
#undef X
  return nullptr;
}

const std::vector<Target>& targets() {
  static const std::vector<Target> list = [] {
    const Features& cpu = this_cpu();
    std::vector<Target> all;
#define BITNET_TARGET(name, machine, flags, condition) \
  if (const Kernels* kernels = compiled(#name)) all.push_back({#name, kernels, condition});
#include "kernels/targets.def"
#undef BITNET_TARGET
    return all;
  }();
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
