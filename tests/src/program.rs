//! Real programs that nobody prepared, what they work on, and what they put out.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::scratch::Scratch;
use crate::wait::wait_until;

pub const PI_SCRIPT: &str = include_str!("../programs/pi.py");
const POOL_SCRIPT: &str = include_str!("../programs/pool.py");
const CHILDREN_SCRIPT: &str = include_str!("../programs/children.py");

/// A program and its arguments. It runs in a directory of its own; what is in
/// there at its end is its output.
#[derive(Clone, Debug)]
pub struct Program {
    pub name: &'static str,
    pub argv: Vec<String>,
    /// The output holds measured numbers: only its shape is compared.
    pub measures: bool,
    /// Others do its work: how far it is, its output tells.
    pub begins_others: bool,
}

/// What the programs read: made once, the same on every machine.
pub struct Inputs(Scratch);

const LINES: usize = 1_500_000;
const TREE_DIRECTORIES: usize = 40;
const TREE_FILES: usize = 50;
/// A tree is walked this often in one run, so that a run lasts.
const WALKS: usize = 40;

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
        fs::write(inputs.0.join("pi.py"), PI_SCRIPT)?;
        fs::write(inputs.0.join("pool.py"), POOL_SCRIPT)?;
        fs::write(inputs.0.join("children.py"), CHILDREN_SCRIPT)?;
        Ok(inputs)
    }

    fn path(&self, name: &str) -> String {
        self.0.join(name).display().to_string()
    }

    /// The programs of the first path, each a few seconds long.
    pub fn programs(&self) -> Vec<Program> {
        let program = |name, argv: &[&str]| Program {
            name,
            argv: argv.iter().map(|a| a.to_string()).collect(),
            measures: false,
            begins_others: false,
        };
        let parent = |name, argv: &[&str]| Program { begins_others: true, ..program(name, argv) };
        let lines = self.path("lines");
        let tree = self.path("tree");
        let many = |argv: &[&str], walks: usize| {
            let mut argv: Vec<String> = argv.iter().map(|a| a.to_string()).collect();
            argv.extend(std::iter::repeat_n(tree.clone(), walks));
            argv
        };
        let find = many(&["find"], WALKS * 10);
        let grep = many(&["grep", "-rE", r"([0-9a-f])([0-9a-f])\2\1[0-9a-f]\1\2"], WALKS / 2);
        let tar = many(&["tar", "--sort=name", "-cf", "tree.tar"], WALKS);
        let printing = ["-type", "f", "-printf", "%p %s %m\n"].map(str::to_owned);
        let found = |name, argv| Program { name, argv, ..program("", &[]) };
        vec![
            program("python3", &["python3", &self.path("pi.py"), "pi.txt", "180"]),
            program("python3-pool", &["python3", &self.path("pool.py"), "60"]),
            program("perl", &["perl", "-e", PERL]),
            program("xz", &["xz", "-T1", "-0", "-k", "-c", &lines]),
            program("xz-threads", &["xz", "-T2", "-0", "-k", "-c", &lines]),
            program("bash", &["bash", "-c", BASH]),
            parent("dash-pipes", &["dash", "-c", DASH_PIPES]),
            parent("perl-fork", &["perl", "-e", PERL_FORK]),
            parent("python3-subprocess", &["python3", &self.path("children.py"), "60"]),
            program("sqlite3", &["sqlite3", ":memory:", SQLITE]),
            Program {
                measures: true,
                ..program(
                    "openssl",
                    &["openssl", "speed", "-seconds", "2", "-bytes", "1024", "sha256", "md5"],
                )
            },
            found("find", find.into_iter().chain(printing).collect()),
            found("grep", grep),
            found("tar", tar),
            program("sort", &["sort", "--parallel=1", "-S", "30M", "-k1,1", &lines]),
        ]
    }
}

const PERL: &str = r#"
    $| = 1;
    my ($x, %seen) = (17);
    for my $i (1 .. 12_000_000) {
        $x = ($x * 1103515245 + 12345) % 2147483648;
        $seen{$x % 9973}++;
        print "$i $x ", scalar(keys %seen), "\n" if $i % 120_000 == 0;
    }
    exit 3;
"#;

const BASH: &str = r#"
    x=7
    for ((i = 0; i < 400000; i++)); do
        ((x = (x * 31 + i) % 1000003))
        if ((i % 4000 == 0)); then printf '%d %d\n' "$i" "$x"; fi
    done
    exit 5
"#;

const DASH_PIPES: &str = r#"
    n=0
    while [ $n -lt 40 ]; do
        n=$((n + 1)) i=0 x=$n
        while [ $i -lt 8000 ]; do i=$((i + 1)) x=$(((x * 31 + i) % 1000003)); done
        echo "$n $x" | sed 's/ /-/' | tr 0-4 a-e
        [ -e "part.$((n % 4))" ] || (echo "$n" >"part.$((n % 4))") &
        wait
    done
    cat part.* >all
    exit 4
"#;

const PERL_FORK: &str = r#"
    $| = 1;
    my $x = 17;
    for my $i (1 .. 40) {
        $x = ($x * 1103515245 + 12345) % 2147483648 for 1 .. 60_000;
        my $child = fork();
        die "fork: $!" unless defined $child;
        exit(($x + $i) % 100) if $child == 0;
        waitpid($child, 0) == $child or die "waitpid: $!";
        print "$i ", $? >> 8, " ", `expr $x % 1009`;
    }
    exit 6;
"#;

const SQLITE: &str = "
    WITH RECURSIVE n(i, x) AS (
        SELECT 1, 17 UNION ALL SELECT i + 1, (x * 1103515245 + 12345) % 2147483648 FROM n WHERE i < 6000000)
    SELECT count(*), sum(x), count(DISTINCT x % 9973) FROM n;";

/// Everything a run put out, by file name.
pub type Output = BTreeMap<String, Vec<u8>>;

/// A started program. Killed and reaped when dropped.
pub struct Run {
    child: Child,
    directory: Scratch,
    measures: bool,
}

impl Program {
    pub fn start(&self) -> Result<Run> {
        let directory = Scratch::new(self.name)?;
        let child = Command::new(&self.argv[0])
            .args(&self.argv[1..])
            .current_dir(directory.path())
            .env("LC_ALL", "C")
            .env("TMPDIR", directory.path())
            .stdin(Stdio::null())
            .stdout(File::create(directory.join("stdout"))?)
            .stderr(File::create(directory.join("stderr"))?)
            .spawn()
            .with_context(|| self.argv[0].clone())?;
        Ok(Run { child, directory, measures: self.measures })
    }

    /// The real program behind a name that may be a script (a version chooser).
    pub fn resolve(mut self) -> Result<Self> {
        if self.argv[0] == "python3" {
            let asked = Command::new("python3")
                .args(["-c", "import sys; print(sys.executable)"])
                .output()?;
            self.argv[0] = String::from_utf8(asked.stdout)?.trim().to_owned();
        }
        Ok(self)
    }
}

impl Run {
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn has_ended(&mut self) -> io::Result<Option<ExitStatus>> {
        self.child.try_wait()
    }

    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Whole lines of its output.
    pub fn lines(&self) -> io::Result<usize> {
        let out = fs::read(self.directory.join("stdout"))?;
        Ok(out.iter().filter(|byte| **byte == b'\n').count())
    }

    /// Its status and output, once it ended.
    pub fn finish(mut self, timeout: Duration) -> Result<(ExitStatus, Output)> {
        let status = wait_until("end of the program", timeout, || Ok(self.child.try_wait()?))?;
        let mut output = Output::new();
        for entry in fs::read_dir(self.directory.path())? {
            let entry = entry?;
            let bytes = fs::read(entry.path())?;
            let bytes = if self.measures { shape(&bytes) } else { bytes };
            output.insert(entry.file_name().to_string_lossy().into_owned(), bytes);
        }
        Ok((status, output))
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            for done in [self.child.kill(), self.child.wait().map(drop)] {
                if let Err(e) = done {
                    eprintln!("{}: {e}", self.child.id());
                }
            }
        }
    }
}

/// Measured text with each number made `#` and blanks joined.
fn shape(text: &[u8]) -> Vec<u8> {
    let mut shape: Vec<u8> = Vec::new();
    for &byte in text {
        let class = match byte {
            b'0'..=b'9' | b'.' => b'#',
            b' ' | b'\t' => b' ',
            other => other,
        };
        if !(matches!(class, b'#' | b' ') && shape.last() == Some(&class)) {
            shape.push(class);
        }
    }
    shape
}

/// Where the first difference of two outputs is, for a message.
pub fn difference(expected: &Output, seen: &Output) -> Option<String> {
    if expected.keys().ne(seen.keys()) {
        return Some(format!("files {:?} and {:?}", expected.keys(), seen.keys()));
    }
    expected.iter().zip(seen.values()).find(|((_, e), s)| e != s).map(|((name, e), s)| {
        let at = e.iter().zip(s).take_while(|(a, b)| a == b).count();
        let from = at.saturating_sub(40);
        let around = |bytes: &[u8]| {
            String::from_utf8_lossy(&bytes[from.min(bytes.len())..(at + 40).min(bytes.len())])
                .into_owned()
        };
        format!(
            "{name} differs at byte {at} ({} and {} bytes): {:?} and {:?}",
            e.len(),
            s.len(),
            around(e),
            around(s)
        )
    })
}

/// Whether `program` is in a directory of PATH.
pub fn is_installed(program: &str) -> bool {
    std::env::var_os("PATH").is_some_and(|path| {
        std::env::split_paths(&path).any(|directory: PathBuf| directory.join(program).is_file())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn measured_text_keeps_its_shape_and_nothing_else() {
        assert_eq!(shape(b"sha256  123.45k\n"), shape(b"sha1 9k\n"));
        assert_ne!(shape(b"sha256 123k"), shape(b"md5 123k"));
        assert_ne!(shape(b"one 1\n"), shape(b"one 1\ntwo 2\n"));
    }

    #[test]
    fn a_difference_says_where() {
        let output = |text: &str| Output::from([("stdout".to_owned(), text.as_bytes().to_vec())]);
        assert_eq!(difference(&output("same"), &output("same")), None);
        let told = difference(&output("abcdef"), &output("abcxef")).expect("they differ");
        assert!(told.contains("stdout differs at byte 3"), "{told}");
        let told = difference(&output("abc"), &output("abcd")).expect("one is longer");
        assert!(told.contains("3 and 4 bytes"), "{told}");
        assert!(difference(&output(""), &Output::new()).is_some());
    }
}
