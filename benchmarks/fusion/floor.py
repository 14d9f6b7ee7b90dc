"""What no fusion can do without: every input read once, one output written, through a fixed buffer; neither numpy nor torch.

    python -I -S benchmarks/fusion/floor.py OUT OUTPUT_BYTES INPUT... [--fsync]

With --fsync it waits until the output is on the disk.
"""

import os
import sys

BUFFER_BYTES = 1 << 20


def main() -> None:
    arguments = [argument for argument in sys.argv[1:] if argument != "--fsync"]
    out, size, inputs = arguments[0], int(arguments[1]), arguments[2:]
    buffer = memoryview(bytearray(BUFFER_BYTES))
    for path in inputs:
        source = os.open(path, os.O_RDONLY)
        while os.readv(source, [buffer]):
            pass
        os.close(source)
    target = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    left = size
    while left:
        left -= os.write(target, buffer[:left])
    if "--fsync" in sys.argv:
        os.fsync(target)
    os.close(target)


if __name__ == "__main__":
    main()
