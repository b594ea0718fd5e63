#include "kernels/cpu.h"

#include <stdexcept>

#if defined(__x86_64__)
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#elif defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#endif

namespace bitnet {
namespace {

#if defined(__x86_64__)
// Linux gives tile registers to processes that ask for them, once for all threads.
bool ask_for_tiles() {
#if defined(__linux__)
  constexpr long kRequest = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA: arch_prctl(2)
  return syscall(SYS_arch_prctl, kRequest, kTileData) == 0;
#else
  return false;
#endif
}

Features ask() {
  Features f;
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (!__get_cpuid(1, &a, &b, &c, &d)) return f;
  f.ssse3 = c >> 9 & 1;
  f.sse4_1 = c >> 19 & 1;
  if (!(c >> 27 & 1)) return f;  // without OSXSAVE the OS saves no wider registers
  unsigned state = 0, high = 0;
  __asm__("xgetbv" : "=a"(state), "=d"(high) : "c"(0));
  const bool ymm = (state & 0x6) == 0x6, zmm = (state & 0xe6) == 0xe6, tiles = (state & 0x60000) == 0x60000;
  f.f16c = ymm && (c >> 29 & 1);
  f.fma = ymm && (c >> 12 & 1);
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return f;
  f.avx2 = ymm && (b >> 5 & 1);
  f.avx512f = zmm && (b >> 16 & 1);
  f.avx512dq = zmm && (b >> 17 & 1);
  f.avx512bw = zmm && (b >> 30 & 1);
  f.avx512vl = zmm && (b >> 31 & 1);
  f.avx512_vbmi = zmm && (c >> 1 & 1);
  f.avx512_vnni = zmm && (c >> 11 & 1);
  f.amx_tile = tiles && (d >> 24 & 1) && ask_for_tiles();
  f.amx_int8 = f.amx_tile && (d >> 25 & 1);
  if (a < 1 || !__get_cpuid_count(7, 1, &a, &b, &c, &d)) return f;  // the first answer counts the subleaves
  f.avx_vnni = ymm && (a >> 4 & 1);
  f.avx512_bf16 = zmm && (a >> 5 & 1);
  return f;
}
#elif defined(__aarch64__)
Features ask() {
  Features f;
  f.neon = true;  // part of armv8.0
#if defined(__linux__)
  f.neon_dotprod = getauxval(AT_HWCAP) >> 20 & 1;  // HWCAP_ASIMDDP
  f.neon_i8mm = getauxval(AT_HWCAP2) >> 13 & 1;    // HWCAP2_I8MM
#elif defined(__ARM_FEATURE_DOTPROD)  // macOS: every Apple silicon has it
  f.neon_dotprod = true;
#endif
  return f;
}
#else
Features ask() { return {}; }
#endif

}  // namespace

std::vector<std::pair<std::string, bool>> Features::list() const {
  return {
#define BITNET_ENTRY(name) {#name, name},
      BITNET_FEATURES(BITNET_ENTRY)
#undef BITNET_ENTRY
  };
}

void Features::set(const std::string& feature, bool present) {
#define BITNET_SET(name) \
  if (feature == #name) return void(name = present);
  BITNET_FEATURES(BITNET_SET)
#undef BITNET_SET
  throw std::invalid_argument("\"" + feature + "\" is no CPU feature that an instruction set asks for.");
}

const Features& this_cpu() {
  static const Features features = ask();
  return features;
}

}  // namespace bitnet
