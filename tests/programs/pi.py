"""Digits of pi, a line at a time, appended to a file and shown: python3 pi.py FILE LINES."""
import signal
import sys

DIGITS_A_LINE = 50


def digits():
    q, r, t, k, n, l = 1, 0, 1, 1, 3, 3
    while True:
        if 4 * q + r - t < n * t:
            yield n
            q, r, n = 10 * q, 10 * (r - n * t), (10 * (3 * q + r)) // t - 10 * n
        else:
            q, r, t, k, n, l = (q * k, (2 * q + r) * l, t * l, k + 1,
                                (q * (7 * k + 2) + r * l) // (t * l), l + 2)


def main():
    path, lines = sys.argv[1], int(sys.argv[2])
    stream = digits()
    signal.signal(signal.SIGUSR1, lambda *_: print("pi.py: SIGUSR1", file=sys.stderr, flush=True))
    with open(path, "a") as file:
        for number in range(1, lines + 1):
            line = "".join(str(next(stream)) for _ in range(DIGITS_A_LINE))
            file.write(line + "\n")
            file.flush()
            print(f"{number:4} {line}", flush=True)
    return 42


sys.exit(main())
