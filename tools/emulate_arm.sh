#!/bin/sh
# usage: emulate_arm.sh PROGRAM [ARGUMENT ...]: runs a program of preset `arm` under qemu. QEMU_CPU names the processor
# (`qemu-aarch64 -cpu help` lists them; without it, one with all that qemu knows).
exec qemu-aarch64 -L "$(dirname "$0")/../build/arm-sysroot" "$@"
