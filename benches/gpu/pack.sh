#!/usr/bin/env bash
# Packs what run.py needs on a machine without Rust and without a network: programs for CUDA and wgpu, diffusers, Debian's
# Vulkan loader. Everything goes to benches/gpu/pack, which git ignores.
#
#   pack.sh                  kernels-test, lib-test (the library's own tests) and gpu-bench
#   pack.sh wgpu-test        others: NAME-test, NAME-bench
#   pack.sh --dry-run        says what it would do
#
# The programs are built in Cargo.toml's profile `packed`, or in PROFILE: what a developer has built already in `dev` is
# larger and has slower host code, but the same kernels. The checkout's tracked files and the pack together must stay
# within LIMIT_MIB (64): pack some programs at a time where all are too large.
set -euo pipefail
cd "$(dirname "$0")/../.."

pack=benches/gpu/pack
limit=$((${LIMIT_MIB:-64} << 20))
run=()
if [ "${1:-}" = --dry-run ]; then
  run=(echo)
  shift
fi
programs=("$@")
[ ${#programs[@]} -gt 0 ] || programs=(kernels-test lib-test gpu-bench)

# The file that cargo built for a target, from its messages.
executable() {
  python3 -c '
import json, sys
kind, name = sys.argv[1:]
for line in sys.stdin:
    message = json.loads(line)
    target = message.get("target", {})
    if target.get("name") == name and kind in target.get("kind", []) and message.get("executable"):
        print(message["executable"])
' "$1" "$2"
}

tracked=$(git ls-files -z | xargs -0 stat -c %s | awk '{ sum += $1 } END { print sum }')
mkdir -p "$pack"
"${run[@]}" find "$pack" -name '*.xz' -delete
for program in "${programs[@]}"; do
  kind=${program##*-} target=${program%-*}
  # Without the embedded model: benches read it from the checkout, the library's tests on a device need none.
  features=(--no-default-features --features cpu,cuda,wgpu) choice=("--$kind" "$target")
  case $program in
    lib-test) kind=lib target=aquatint choice=(--lib) ;;
    *-test) features=(--features cuda,wgpu) ;;
    *-bench) ;;
    *) echo "$program: expected lib-test, NAME-test or NAME-bench" >&2 && exit 1 ;;
  esac
  command=(cargo test --locked --profile "${PROFILE:-packed}" "${features[@]}" "${choice[@]}" --no-run)
  if [ ${#run[@]} -gt 0 ]; then
    echo "${command[*]} --message-format=json; strip; xz --x86 --lzma2=preset=9e to $pack/$program.xz"
    continue
  fi
  built=$("${command[@]}" --message-format=json | executable "$kind" "$target")
  [ -n "$built" ] || { echo "cargo built no $program" >&2 && exit 1; }
  strip -o "$pack/$program" "$built"
  xz --force --x86 --lzma2=preset=9e "$pack/$program"
done

# diffusers, and what it needs beyond what comes with PyTorch and transformers.
diffusers=$(grep '^diffusers==' benches/peers/requirements.txt)
"${run[@]}" python3 -m pip download --quiet --no-deps --only-binary=:all: --dest "$pack" "$diffusers" importlib_metadata==10.2.0
if command -v apt-get >/dev/null; then
  (cd "$pack" && "${run[@]}" apt-get download libvulkan1)
fi
commit="$(git rev-parse HEAD)$(git diff --quiet HEAD || echo ' with changes')"
"${run[@]}" tee "$pack/commit.txt" <<<"$commit"

packed=$(find "$pack" -type f -printf '%s\n' | awk '{ sum += $1 } END { print sum + 0 }')
echo "$((packed >> 10)) KiB packed, $((tracked >> 10)) KiB tracked, $(((packed + tracked) * 100 / limit)) % of the limit"
[ ${#run[@]} -gt 0 ] || [ $((packed + tracked)) -le "$limit" ] || { echo "too large: pack fewer programs" >&2 && exit 1; }
