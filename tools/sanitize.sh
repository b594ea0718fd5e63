#!/usr/bin/env bash
# make sanitize: the tests of the core, of the readers and of the fuzzing in a build of their own, with AddressSanitizer
# and UndefinedBehaviorSanitizer of gcc. Arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."

home=.venv/sanitize
preload=()
for library in libasan.so libubsan.so libstdc++.so.6; do  # in front of Python, which was built without them
  found=$(g++ -print-file-name="$library" 2>/dev/null) || found=
  [[ -e $found ]] || { echo "make sanitize is skipped: g++ has no $library here."; exit 0; }
  preload+=("$found")
done

if [[ ! -e $home/built || -n $(find CMakeLists.txt pyproject.toml core src -newer $home/built -type f -print -quit) ]]; then
  [[ -e $home/bin/python ]] || .venv/bin/python -m venv --without-pip $home
  site() { "$1" -c 'import sysconfig; print(sysconfig.get_path("purelib"))'; }
  site .venv/bin/python > "$(site $home/bin/python)/tests.pth"  # what the tests import besides
  .venv/bin/pip --python $home/bin/python install -q --no-deps -C build-dir=build/sanitize \
    -C cmake.define.BITNET_SANITIZE=address,undefined .
  touch $home/built
fi

tests=("$@")
if ((!$#)); then
  tests=(tests/kernels tests/formats tests/fuzz tests/backends/test_packing.py tests/models/test_put_stored.py
    tests/models/test_stored_types.py tests/engine/test_determinism.py
    # Programs of their own, and what only repeats others at more sizes.
    --ignore=tests/kernels/test_parity.py --ignore=tests/kernels/test_thread_pool.py
    -k "not every_panel_width and not survive_packing and not tiles_are_put_in_order")
fi
# Python's own allocations outlive it, and pip's wheels leak.
LD_PRELOAD="${preload[*]}" ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 \
  $home/bin/python -m pytest -q -n logical --maxprocesses 8 --dist loadfile --no-loadscope-reorder -p no:cacheprovider "${tests[@]}"
