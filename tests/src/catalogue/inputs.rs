//! What the programs of the catalogue read: made once, the same on every machine.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::Path;

use anyhow::Result;

use crate::scratch::Scratch;

pub const PI_SCRIPT: &str = include_str!("../../programs/pi.py");
/// Every file of the directory that a program reads.
const FILES: &[(&str, &str)] = &[
    ("pi.py", PI_SCRIPT),
    ("pool.py", include_str!("../../programs/pool.py")),
    ("children.py", include_str!("../../programs/children.py")),
    ("sums.go", include_str!("../../programs/sums.go")),
    ("Sorts.java", include_str!("../../programs/Sorts.java")),
];

const LINES: usize = 1_500_000;
const TREE_DIRECTORIES: usize = 40;
const TREE_FILES: usize = 50;
const TRANSACTIONS: usize = 1000;
/// Of the project that is built.
const SOURCES: usize = 24;

pub struct Inputs(Scratch);

struct Words(u64);

impl Words {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        self.0 >> 33
    }
}

impl Inputs {
    pub fn make() -> Result<Self> {
        let inputs = Self(Scratch::new("inputs")?);
        let mut words = Words(1);
        let mut lines = BufWriter::new(File::create(inputs.0.join("lines"))?);
        for number in 0..LINES {
            writeln!(lines, "{:08x} line {number} of {:x}", words.next(), words.next())?;
        }
        lines.flush()?;
        for directory in 0..TREE_DIRECTORIES {
            let path = inputs.0.join(format!("tree/{directory:02}"));
            fs::create_dir_all(&path)?;
            for file in 0..TREE_FILES {
                let text: String = (0..200).map(|_| format!("{:x} ", words.next())).collect();
                fs::write(path.join(format!("{file:02}.txt")), text)?;
            }
        }
        for (name, text) in FILES {
            fs::write(inputs.0.join(name), text)?;
        }
        fs::write(inputs.0.join("wal.sql"), transactions())?;
        let sources = inputs.0.join("project");
        fs::create_dir(&sources)?;
        project(&sources)?;
        Ok(inputs)
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }
}

/// Many small ones, and what they leave.
fn transactions() -> String {
    let mut sql = String::from(
        "PRAGMA journal_mode = WAL; PRAGMA wal_autocheckpoint = 40;
         CREATE TABLE t(i INTEGER PRIMARY KEY, x INTEGER, s TEXT); CREATE INDEX tx ON t(x);
         WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 3000)
         INSERT INTO t SELECT i, (i * 7919) % 10007, 'row ' || i FROM n;\n",
    );
    for round in 0..TRANSACTIONS {
        sql += &format!(
            "UPDATE t SET x = (x * 31 + i + {round}) % 10007, s = s || x WHERE i % 97 = {};
             SELECT {round}, sum(x), count(DISTINCT x), sum(length(s)) FROM t;\n",
            round % 97
        );
    }
    sql
}

/// A small C project with a Makefile, in an empty directory.
pub fn project(at: &Path) -> Result<()> {
    let all = |each: &dyn Fn(usize) -> String| (0..SOURCES).map(each).collect::<String>();
    for n in 0..SOURCES {
        let text = format!(
            "#include <stdio.h>\n#include <string.h>\n\
             int f{n}(int x) {{ char b[32]; snprintf(b, sizeof b, \"%d\", x * {n}); \
             return strlen(b); }}\n"
        );
        fs::write(at.join(format!("f{n}.c")), text)?;
    }
    let main = format!(
        "#include <stdio.h>\n{}int main(void) {{ printf(\"%d\\n\", 0{}); }}\n",
        all(&|n| format!("int f{n}(int);\n")),
        all(&|n| format!(" + f{n}(99)")),
    );
    fs::write(at.join("main.c"), main)?;
    let objects = all(&|n| format!(" f{n}.o"));
    let make = format!(
        "prog: main.o{objects}\n\tcc -o prog main.o{objects}\n%.o: %.c\n\tcc -O1 -c -o $@ $<\n"
    );
    Ok(fs::write(at.join("Makefile"), make)?)
}
