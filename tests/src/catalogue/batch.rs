//! Programs that run from their start to their end.

use std::path::Path;

use crate::Program;

use super::{Entry, Work};

/// A tree is walked this often in one run, so that a run lasts.
const WALKS: usize = 40;

struct Batch(Entry);

impl Batch {
    fn new(name: &'static str, shows: &'static str, argv: &[&str]) -> Self {
        let program = Program {
            name,
            setup: None,
            argv: argv.iter().map(|a| a.to_string()).collect(),
            measures: false,
            begins_others: false,
        };
        let work = Work::Batch(program);
        Self(Entry { name, shows, needs: &[], quick: true, work })
    }

    fn with(mut self, change: impl FnOnce(&mut Program)) -> Self {
        if let Work::Batch(program) = &mut self.0.work {
            change(program);
        }
        self
    }

    fn begins_others(self) -> Self {
        self.with(|p| p.begins_others = true)
    }

    fn setup(self, line: String) -> Self {
        self.with(|p| p.setup = Some(line))
    }

    fn needs(mut self, needs: &'static [(&'static str, &'static str)]) -> Self {
        self.0.needs = needs;
        self
    }

    fn by_hand(mut self) -> Self {
        self.0.quick = false;
        self
    }
}

/// Each a few seconds long.
pub fn entries(inputs: &Path) -> Vec<Entry> {
    let path = |name: &str| inputs.join(name).display().to_string();
    let lines = path("lines");
    let tree = path("tree");
    let many = |argv: &[&str], walks: usize, then: &[&str]| {
        let mut all: Vec<String> = argv.iter().map(|a| a.to_string()).collect();
        all.extend(std::iter::repeat_n(tree.clone(), walks));
        all.extend(then.iter().map(|a| a.to_string()));
        move |p: &mut Program| p.argv = all
    };
    let find = many(&["find"], WALKS * 25, &["-type", "f", "-printf", "%p %s %m\n"]);
    let pattern = r"([0-9a-f])([0-9a-f])\2\1[0-9a-f]\1\2";
    let grep = many(&["grep", "-rE", pattern], WALKS / 2, &[]);
    // Small blocks, so that it takes its time.
    let tar = many(&["tar", "--sort=name", "-b1", "-cf", "tree.tar"], WALKS * 3, &[]);
    let build = format!("cp {}/* .", path("project"));
    let compile = format!(
        "GOCACHE=$PWD/cache CGO_ENABLED=0 go build -o sums {}; rm -rf cache",
        path("sums.go")
    );
    let classes = format!("javac -d . {}", path("Sorts.java"));
    let repository = format!(
        "mkdir r; cd r; git init -q -b main; cp -r {tree}/0? .; git add .; \
         git -c user.name=t -c user.email=t@t commit -q -m all --date=2001-01-01T00:00:00Z"
    );
    let all = [
        Batch::new(
            "python3",
            "it computes digits of pi",
            &["python3", &path("pi.py"), "pi.txt", "180"],
        ),
        Batch::new("python3-pool", "a pool of threads works", &["python3", &path("pool.py"), "60"]),
        Batch::new(
            "python3-subprocess",
            "it forks, runs programs and threads, and writes a sqlite3 database",
            &["python3", &path("children.py"), "60"],
        )
        .begins_others(),
        Batch::new("perl", "it computes", &["perl", "-e", PERL]),
        Batch::new("perl-fork", "it forks and runs programs", &["perl", "-e", PERL_FORK])
            .begins_others(),
        Batch::new("bash", "it runs its builtins", &["bash", "-c", BASH]),
        Batch::new("dash-pipes", "it runs pipelines and subshells", &["dash", "-c", DASH_PIPES])
            .begins_others(),
        Batch::new("make", "`make -j2` runs gcc on a C project", &["make", "-j2"])
            .setup(build)
            .begins_others()
            .needs(&[("make", "make"), ("gcc", "gcc")]),
        Batch::new(
            "git",
            "it clones a repository and checks it, time and again",
            &["sh", "-c", GIT],
        )
        .setup(repository)
        .begins_others()
        .needs(&[("git", "git")]),
        Batch::new("xz", "it compresses", &["xz", "-T1", "-0", "-k", "-c", &lines])
            .needs(&[("xz", "xz-utils")]),
        Batch::new(
            "xz-threads",
            "it compresses in two threads",
            &["xz", "-T2", "-0", "-k", "-c", &lines],
        )
        .needs(&[("xz", "xz-utils")]),
        Batch::new(
            "zstd-threads",
            "it compresses in two threads",
            &["zstd", "-T2", "-9", "-q", "-k", "-c", &lines],
        )
        .needs(&[("zstd", "zstd")]),
        Batch::new("sqlite3", "a query runs", &["sqlite3", ":memory:", SQLITE])
            .needs(&[("sqlite3", "sqlite3")]),
        Batch::new(
            "sqlite3-wal",
            "transactions go through a log, whose index is a file mapped shared",
            &["sqlite3", "wal.db", &format!(".read {}", path("wal.sql"))],
        )
        .needs(&[("sqlite3", "sqlite3")]),
        Batch::new(
            "openssl",
            "`openssl speed` measures (the shape of the output is compared)",
            &["openssl", "speed", "-seconds", "2", "-bytes", "1024", "sha256", "md5"],
        )
        .with(|p| p.measures = true)
        .needs(&[("openssl", "openssl")]),
        Batch::new("find", "it walks a tree", &[]).with(find),
        Batch::new("grep", "it searches a tree", &[]).with(grep),
        Batch::new("tar", "it packs a tree of files", &[]).with(tar).needs(&[("tar", "tar")]),
        Batch::new(
            "sort",
            "it sorts a file larger than its buffer",
            &["sort", "--parallel=1", "-S", "30M", "-k1,1", &lines],
        ),
        Batch::new("go", "goroutines compute in a static program", &["./sums"])
            .setup(compile)
            .needs(&[("go", "golang-go")])
            .by_hand(),
        Batch::new(
            "ffmpeg",
            "it encodes H.264 with vector instructions and threads",
            &[
                "ffmpeg",
                "-nostdin",
                "-loglevel",
                "error",
                "-f",
                "lavfi",
                "-i",
                "testsrc=duration=60:size=640x480:rate=25",
                "-c:v",
                "libx264",
                "-preset",
                "veryfast",
                "-threads",
                "2",
                "-bitexact",
                "-f",
                "h264",
                "out.h264",
            ],
        )
        .needs(&[("ffmpeg", "ffmpeg")])
        .by_hand(),
        Batch::new("java", "its JIT compiler, collector and streams work", &["java", "Sorts"])
            .setup(classes)
            .needs(&[("javac", "default-jdk-headless")])
            .by_hand(),
    ];
    all.into_iter().map(|batch| batch.0).collect()
}

const GIT: &str = r#"
    i=0
    while [ $i -lt 14 ]; do
        i=$((i + 1))
        git clone -q --no-local "file://$PWD/r" copy
        git -C copy fsck --strict --no-progress
        echo "$i $(git -C copy rev-parse HEAD^{tree}) $(git -C copy status --short | wc -l)"
        rm -rf copy
    done
    rm -rf r
"#;

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
