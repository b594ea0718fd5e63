#include "runtime/processors.h"

#include <algorithm>
#include <cmath>
#include <fstream>
#include <set>
#include <sstream>
#include <thread>

#if defined(__linux__)
#include <sched.h>
#endif

namespace bitnet {
namespace {

std::string first_line(const std::string& path) {
  std::ifstream file(path);
  std::string line;
  std::getline(file, line);
  return line;
}

// As many as there are CPUs where the system does not tell which of them share a core.
int count_cores(const std::vector<int>& cpus, const std::string& root) {
  std::set<std::string> cores;
  for (const int cpu : cpus) {
    const std::string topology = root + "/sys/devices/system/cpu/cpu" + std::to_string(cpu) + "/topology/";
    std::string siblings = first_line(topology + "core_cpus_list");
    if (siblings.empty()) siblings = first_line(topology + "thread_siblings_list");
    if (siblings.empty()) return static_cast<int>(cpus.size());
    cores.insert(siblings);
  }
  return static_cast<int>(cores.size());
}

// CPUs' worth of time in a line of a control group, "QUOTA PERIOD"; 0 for no limit.
double quota(const std::string& line) {
  std::istringstream words(line);
  double amount = 0, period = 0;
  return words >> amount >> period && amount > 0 && period > 0 ? amount / period : 0;
}

// The least that the group, or any above it, grants below one of these folders; 0 for no limit.
double least_quota(const std::vector<std::string>& mounts, std::string group) {
  if (group.find("..") != std::string::npos) group.clear();  // outside of what a container sees
  double least = 0;
  for (;; group.resize(group.rfind('/'))) {
    for (const std::string& mount : mounts) {
      const std::string folder = mount + group + "/";
      double granted = quota(first_line(folder + "cpu.max"));  // version 2
      if (granted == 0)
        granted = quota(first_line(folder + "cpu.cfs_quota_us") + " " + first_line(folder + "cpu.cfs_period_us"));
      if (granted > 0) least = least > 0 ? std::min(least, granted) : granted;
    }
    if (group.empty() || group.rfind('/') == std::string::npos) return least;
  }
}

double cgroup_quota(const std::string& root) {
  const std::string base = root + "/sys/fs/cgroup";
  std::vector<std::string> one = {base + "/cpu"}, two = {base, base + "/unified"};
  std::string group_one, group_two;
  std::ifstream self(root + "/proc/self/cgroup");
  for (std::string line; std::getline(self, line);) {  // "ID:CONTROLLERS:PATH", version 2 without controllers
    const size_t names = line.find(':') + 1, path = line.find(':', names) + 1;
    if (!names || !path) continue;
    const std::string controllers = line.substr(names, path - 1 - names);
    if (controllers.empty()) group_two = line.substr(path);
    if (("," + controllers + ",").find(",cpu,") != std::string::npos) {
      group_one = line.substr(path);
      one.push_back(base + "/" + controllers);
    }
  }
  const double first = least_quota(one, group_one), second = least_quota(two, group_two);
  return first > 0 && second > 0 ? std::min(first, second) : std::max(first, second);
}

}  // namespace

std::vector<int> allowed_cpus() {
  std::vector<int> cpus;
#if defined(__linux__)
  for (int size = 1024; size <= 1 << 18; size *= 2) {  // the kernel refuses a set smaller than its own
    cpu_set_t* set = CPU_ALLOC(size);
    const size_t bytes = CPU_ALLOC_SIZE(size);
    const bool ok = sched_getaffinity(0, bytes, set) == 0;
    for (int i = 0; ok && i < size; ++i)
      if (CPU_ISSET_S(i, bytes, set)) cpus.push_back(i);
    CPU_FREE(set);
    if (ok) return cpus;
  }
#endif
  for (int i = 0; i < std::max(1, static_cast<int>(std::thread::hardware_concurrency())); ++i) cpus.push_back(i);
  return cpus;
}

int default_threads(const std::vector<int>& cpus, const std::string& root) {
  const int cores = std::max(1, count_cores(cpus, root));
  const double granted = cgroup_quota(root);
  return granted > 0 && granted < cores ? static_cast<int>(std::ceil(granted)) : cores;
}

}  // namespace bitnet
