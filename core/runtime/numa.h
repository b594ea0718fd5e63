// Where memory lies on machines whose processors have memory of their own.
#pragma once
#include <cstddef>
#include <string>
#include <vector>

#include "runtime/processors.h"

namespace bitnet {

// The nodes with memory next to one of these CPUs, ascending. root: the folder that holds /sys.
std::vector<int> memory_nodes(const std::vector<int>& cpus = allowed_cpus(), const std::string& root = "");

// Lets the pages of [data, data + bytes), none of them touched yet, come from these nodes in turn: threads on all of
// them then read with the bandwidth of all. False where the system refuses or knows no such thing.
bool interleave(void* data, size_t bytes, const std::vector<int>& nodes);

// interleave() over this machine's nodes where there are several and the user (numactl) has not chosen otherwise.
void spread(void* data, size_t bytes);

}  // namespace bitnet
