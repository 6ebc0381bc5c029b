#!/bin/sh
# usage: gpu_bundle.sh [BUILD] [OUTPUT]: collects what tools/gpu_check.sh runs on a machine with a GPU and nothing
# installed: the programs of BUILD (build/cuda), stripped, and the libraries they need but the CUDA driver's, in OUTPUT
# (build/gpu) and, to carry in one piece, OUTPUT.tar.gz. A build of preset `cuda` computes its cpu backend with this
# machine's SIMD alone; the GPU host must know it too.
set -eu
build=${1:-build/cuda} output=${2:-build/gpu}
most_mib=60  # as much as a slow line brings in a minute
programs="gemma4 cuda_tests cuda_linear_bench cuda_benchmarks"
for program in $programs; do
  [ -x "$build/$program" ] && continue
  echo "gpu_bundle: $build/$program is missing; build it with: ninja -C $build $programs" >&2
  exit 2
done
rm -rf "$output"
mkdir -p "$output/bin" "$output/lib" "$output/libc"
for program in $programs; do
  strip -o "$output/bin/$program" "$build/$program"
  ldd "$build/$program" | awk '$2 == "=>" && $3 ~ /^\// { print $3 } $1 ~ /^\// { print $1 }'
done | sort -u | while read -r library; do
  # The C library only helps where the host's own is older, and then all of it is needed: a folder of its own.
  case $(basename "$library") in
    libc.so* | libm.so* | libdl.so* | libpthread.so* | librt.so* | libresolv.so* | ld-linux*)
      cp -L "$library" "$output/libc/"
      ;;
    libcuda.so*) ;;
    *) cp -L "$library" "$output/lib/" && strip --strip-unneeded "$output/lib/$(basename "$library")" ;;
  esac
done
# A vocabulary of Gemma's size, so that `gemma4 run` can be timed on a synthetic checkpoint.
if command -v xz >/dev/null; then
  xz -dc tests/golden/tokenizer/gemma3_tokenizer.json.xz | gzip -9 >"$output/tokenizer.json.gz"
fi
tar -czf "$output.tar.gz" -C "$(dirname "$output")" "$(basename "$output")"
du -m "$output.tar.gz" | awk -v most=$most_mib '{ print "gpu_bundle: " $1 " MiB in " $2; exit $1 > most }' || {
  echo "gpu_bundle: that is more than $most_mib MiB"; exit 1; }
