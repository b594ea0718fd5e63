#include "runtime/numa.h"

#include <algorithm>
#include <fstream>
#include <sstream>

#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace bitnet {
namespace {

constexpr int kMostIds = 1 << 16;

// "0-2,8" as {0, 1, 2, 8}; what cannot be read is left out.
std::vector<int> id_list(const std::string& path) {
  std::vector<int> ids;
  std::ifstream file(path);
  for (std::string part; std::getline(file, part, ',');) {
    std::istringstream words(part);
    int first = 0, last = 0;
    char dash = 0;
    if (!(words >> first)) continue;
    if (!(words >> dash >> last && dash == '-')) last = first;
    for (int id = std::max(0, first); id <= std::min(last, kMostIds); ++id) ids.push_back(id);
  }
  return ids;
}

}  // namespace

std::vector<int> memory_nodes(const std::vector<int>& cpus, const std::string& root) {
  const std::string folder = root + "/sys/devices/system/node/";
  std::vector<int> nodes;
  for (const int node : id_list(folder + "has_memory"))
    for (const int cpu : id_list(folder + "node" + std::to_string(node) + "/cpulist"))
      if (std::find(cpus.begin(), cpus.end(), cpu) != cpus.end()) {
        nodes.push_back(node);
        break;
      }
  std::sort(nodes.begin(), nodes.end());
  return nodes;
}

#if defined(__linux__) && defined(SYS_mbind) && defined(SYS_get_mempolicy)

bool interleave(void* data, size_t bytes, const std::vector<int>& nodes) {
  constexpr long kInterleave = 3;  // MPOL_INTERLEAVE of <linux/mempolicy.h>
  constexpr int kBits = 8 * sizeof(unsigned long);
  if (nodes.empty() || nodes.front() < 0) return false;
  std::vector<unsigned long> mask(static_cast<size_t>(*std::max_element(nodes.begin(), nodes.end()) / kBits + 1));
  for (const int node : nodes) mask[static_cast<size_t>(node / kBits)] |= 1ul << node % kBits;
  // The kernel takes one bit less than it is told of.
  return syscall(SYS_mbind, data, bytes, kInterleave, mask.data(), mask.size() * kBits + 1, 0) == 0;
}

void spread(void* data, size_t bytes) {
  static const std::vector<int> nodes = memory_nodes();
  int policy = 0;  // MPOL_DEFAULT
  if (nodes.size() < 2 || (syscall(SYS_get_mempolicy, &policy, nullptr, 0, nullptr, 0) == 0 && policy != 0)) return;
  interleave(data, bytes, nodes);  // a wish; failure is fine
}

#else

bool interleave(void*, size_t, const std::vector<int>&) { return false; }
void spread(void*, size_t) {}

#endif

}  // namespace bitnet
