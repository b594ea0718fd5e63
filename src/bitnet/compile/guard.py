"""The part of a library that every CPU of its machine type can run: what it is, and whether this CPU runs the rest."""

from __future__ import annotations

from pathlib import Path

from bitnet.compile.toolchain import compile_c
from bitnet.formats.compiled import SECTION
from bitnet.tensorir.targets import Target

# Our names of features -> the compilers' (x86), or the bit of AT_HWCAP (Linux, arch/arm64/include/uapi/asm/hwcap.h).
X86 = {"avx512_vnni": "avx512vnni"}  # the others are the same
ARM = {"neon": 1 << 1, "neon_dotprod": 1 << 20}
SOURCE = """\
__asm__(".section {section},\\"a\\"\\n.incbin \\"{manifest}\\"\\n.previous");
{includes}
/* The first feature that this CPU lacks, or 0: nothing else of the library may run where there is one. */
const char* bitnet_missing_feature(void) {{
{checks}  return 0;
}}
"""


def guard_source(target: Target, manifest: Path) -> str:
    if target.machine == "aarch64":
        checks = [(f"getauxval(16) & {ARM[name]}ul", name) for name in target.features]
        includes = "#include <sys/auxv.h>"
    else:
        needed = () if target.gpu else target.features
        checks = [(f'__builtin_cpu_supports("{X86.get(name, name)}")', name) for name in needed]
        includes = ""
    lines = "".join(f'  if (!({test})) return "{name}";\n' for test, name in checks)
    return SOURCE.format(section=SECTION, manifest=manifest, includes=includes, checks=lines)


def guard_object(target: Target, manifest: bytes, folder: Path) -> Path:
    """The object file, made in `folder`."""
    (folder / "manifest.json").write_bytes(manifest)
    (folder / "guard.c").write_text(guard_source(target, folder / "manifest.json"))
    compile_c(target.machine, folder / "guard.c", folder / "guard.o")
    return folder / "guard.o"
