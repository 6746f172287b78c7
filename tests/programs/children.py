"""Programs, forks and threads between pieces of work; what they gave is kept in a database."""

import os
import sqlite3
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor


def work(n):
    x = n
    for i in range(20000):
        x = (x * 31 + i) % 1000003
    return x


def forked(n):
    child = os.fork()
    if child == 0:
        os._exit(work(n) % 200)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


rounds = int(sys.argv[1])
base = sqlite3.connect("results.db")
base.execute("create table results (n integer primary key, kind text, value integer)")
with ThreadPoolExecutor(2) as pool:
    for n in range(rounds):
        kind = ("program", "fork", "pool")[n % 3]
        if kind == "program":
            said = subprocess.run(["expr", str(work(n)), "%", "1009"], capture_output=True, text=True)
            value = int(said.stdout)
        elif kind == "fork":
            value = forked(n)
        else:
            value = sum(pool.map(work, range(n, n + 4)))
        with base:
            base.execute("insert into results values (?, ?, ?)", (n, kind, value))
        print(n, kind, value, flush=True)
missing = subprocess.run("no-such-program-here", shell=True, stderr=subprocess.DEVNULL)
print("missing", missing.returncode)
total = base.execute("select count(*), sum(value) from results").fetchone()
base.close()
os.remove("results.db")
print(*total)
sys.exit(9)
