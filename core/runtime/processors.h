// Which CPUs this process may run on, and how many threads that is worth.
#pragma once
#include <string>
#include <vector>

namespace bitnet {

std::vector<int> allowed_cpus();

// The physical cores that these CPUs belong to, or fewer where a control group grants less time: a core's second
// thread finds the units that multiply and the memory's channels busy. root: the folder that holds /sys and /proc.
int default_threads(const std::vector<int>& cpus = allowed_cpus(), const std::string& root = "");

}  // namespace bitnet
