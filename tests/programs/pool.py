"""Rounds of work for a fresh pool of threads each, with results in the order of the tasks."""
import sys
import threading
from concurrent.futures import ThreadPoolExecutor


def task(n):
    local = threading.local()
    local.x = n + 1
    for i in range(3000):
        local.x = (local.x * 1103515245 + i) % 2147483648
    return local.x


for number in range(int(sys.argv[1])):
    with ThreadPoolExecutor(6) as pool:
        results = list(pool.map(task, range(number, number + 40)))
    print(number, sum(results), len(set(results)), flush=True)
sys.exit(4)
