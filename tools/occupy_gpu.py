#!/usr/bin/env python3
"""usage: occupy_gpu.py --leave-gb N COMMAND...: runs a command while all but N GB (10^9 bytes) of GPU 0's memory is taken.

So a large card shows what a small one does, or one that a desktop shares. Needs the driver's libcuda.so.1 alone. The exit
code is the command's; 2 where the GPU has less than N GB free, or none is there.
"""

import argparse
import ctypes
import subprocess
import sys

PIECE = 1 << 28  # allocated at a time; the last pieces are smaller


class Driver:
    def __init__(self):
        try:
            self.cuda = ctypes.CDLL("libcuda.so.1")
        except OSError as error:
            print(f"occupy_gpu: no GPU driver: {error}", file=sys.stderr)
            raise SystemExit(2) from error
        self.call("cuInit", 0)
        device, context = ctypes.c_int(), ctypes.c_void_p()
        self.call("cuDeviceGet", ctypes.byref(device), 0)
        self.call("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
        self.call("cuCtxSetCurrent", context)

    def call(self, name, *arguments):
        code = getattr(self.cuda, name)(*arguments)
        if code != 0:
            print(f"occupy_gpu: {name} failed with {code}", file=sys.stderr)
            raise SystemExit(2)

    def free(self):
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        self.call("cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(total))
        return free.value

    def take(self, size):
        memory = ctypes.c_uint64()
        return getattr(self.cuda, "cuMemAlloc_v2")(ctypes.byref(memory), ctypes.c_size_t(size)) == 0


def main():
    parser = argparse.ArgumentParser(usage=__doc__.splitlines()[0][7:])
    parser.add_argument("--leave-gb", type=float, required=True)
    parser.add_argument("command", nargs=argparse.REMAINDER)
    options = parser.parse_args()
    if not options.command:
        parser.error("no command")
    leave = int(options.leave_gb * 1e9)
    driver = Driver()
    if driver.free() < leave:
        print(f"occupy_gpu: {driver.free() / 1e9:.1f} GB are free", file=sys.stderr)
        return 2
    piece = PIECE
    while piece >= 1 << 21:
        while driver.free() >= leave + piece and driver.take(piece):
            pass
        piece //= 2
    print(f"occupy_gpu: {driver.free() / 1e9:.2f} GB are left free", file=sys.stderr)
    return subprocess.call(options.command)


if __name__ == "__main__":
    sys.exit(main())
