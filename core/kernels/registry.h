// Which instruction sets this CPU can run, and which one is running.
#pragma once
#include <string>
#include <vector>

#include "kernels/cpu.h"
#include "kernels/kernels.h"

namespace bitnet {

const Kernels& kernels();  // the running ones; $BITNET_ISA chooses, otherwise the best that this CPU has

void set_isa(const std::string& name);   // std::invalid_argument for one that is unknown or that this CPU lacks
std::vector<std::string> usable_isas();  // best first

// The same question for any CPU, of any machine type: nothing but targets.def decides.
std::vector<std::string> isas_for(const Features& cpu);

}  // namespace bitnet
