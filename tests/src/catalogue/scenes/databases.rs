//! What was acknowledged is there.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;

use super::servers::{connect, free_port};
use crate::catalogue::Moves;
use crate::started::Started;
use crate::wait::wait_until;

const SOON: Duration = Duration::from_secs(60);
/// Written at home, away, and at home again.
const WRITES: u64 = 300;

/// So every write is in a file before it is acknowledged.
const KEEP_ALL: [&str; 2] = ["--appendonly", "yes"];

/// Its files are in `at`; it may not listen yet.
pub fn start_redis(at: &Path, port: u16, options: &[&str]) -> Result<Started> {
    let mut command = Command::new("redis-server");
    command.args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", ""]);
    command.args(options).args(["--logfile", "log", "--dir"]).arg(at);
    Started::by(command.stdin(Stdio::null()).stdout(Stdio::null()))
}

struct Client {
    stream: TcpStream,
    answers: BufReader<TcpStream>,
    written: u64,
}

impl Client {
    fn new(port: u16) -> Result<Self> {
        let stream = connect(port)?;
        stream.set_nodelay(true)?;
        Ok(Self { answers: BufReader::new(stream.try_clone()?), stream, written: 0 })
    }

    fn ask(&mut self, command: &str) -> Result<String> {
        self.stream.write_all(format!("{command}\r\n").as_bytes())?;
        let mut answer = String::new();
        self.answers.read_line(&mut answer)?;
        Ok(answer.trim().to_owned())
    }

    fn write(&mut self) -> Result<()> {
        for _ in 0..WRITES {
            self.written += 1;
            let answer = self.ask(&format!("RPUSH written {0}", self.written))?;
            ensure!(answer == format!(":{}", self.written), "acknowledged {answer}");
        }
        Ok(())
    }
}

pub fn redis(at: &Path, moves: &mut dyn Moves) -> Result<String> {
    let port = free_port()?;
    let server = start_redis(at, port, &KEEP_ALL)?;
    let mut client = Client::new(port)?;
    let load = Command::new("redis-benchmark")
        .args(["-p", &port.to_string(), "-c", "4", "-n", "20000", "-t", "set,get", "--csv"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    client.write()?;
    moves.out(server.pid())?;
    client.write()?;
    moves.home(server.pid())?;
    client.write()?;
    let load = load.wait_with_output()?;
    let complaints = String::from_utf8(load.stderr)?;
    ensure!(load.status.success() && complaints.is_empty(), "{}: {complaints}", load.status);
    client.stream.write_all(b"SHUTDOWN NOSAVE\r\n")?;
    let status = server.end(SOON)?;
    // Another reads what the first has kept.
    let second = start_redis(at, port, &KEEP_ALL)?;
    let kept = wait_until("the file is read", SOON, || {
        let answer = Client::new(port)?.ask("LLEN written")?;
        Ok((!answer.starts_with("-LOADING")).then_some(answer))
    })?;
    ensure!(kept == format!(":{}", client.written), "{} written, kept {kept}", client.written);
    let last = Client::new(port)?.ask("LPOS written 900")?;
    second.signal(Signal::SIGTERM)?;
    second.end(SOON)?;
    Ok(format!("{status}, {kept}, {last}"))
}

const BASE: &str = "base.db";

fn query(at: &Path, text: &str) -> Result<String> {
    let done = Command::new("sqlite3").args([BASE, text]).current_dir(at).output()?;
    ensure!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    Ok(String::from_utf8(done.stdout)?)
}

pub fn sqlite_killed(at: &Path, moves: &mut dyn Moves) -> Result<String> {
    query(at, "CREATE TABLE t (n INTEGER PRIMARY KEY, text TEXT)")?;
    let mut command = Command::new("sqlite3");
    command.args(["-batch", BASE]).current_dir(at).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut shell = Started::by(command.stderr(File::create(at.join("errors"))?))?;
    let mut statements = shell.0.stdin.take().context("stdin")?;
    let mut said = BufReader::new(shell.0.stdout.take().context("stdout")?).lines();
    let mut committed = 0;
    let mut commit = |times: u64| -> Result<u64> {
        for _ in 0..times {
            let n = committed + 1;
            writeln!(statements, "INSERT INTO t VALUES ({n}, hex(randomblob(600))); SELECT {n};")?;
            let told = said.next().context("it ended")??;
            ensure!(told == n.to_string(), "told {told} for {n}");
            committed = n;
        }
        Ok(committed)
    };
    commit(WRITES / 4)?;
    moves.out(shell.pid())?;
    let committed = commit(WRITES / 4)?;
    // In the midst of one more.
    let many = "INSERT INTO t SELECT NULL, hex(randomblob(600)) FROM \
                (WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x+1 FROM c LIMIT 50000) SELECT x FROM c);";
    writeln!(statements, "PRAGMA cache_size = 10; {many}")?;
    let base = at.join(BASE);
    let before = fs::metadata(&base)?.len();
    wait_until("a transaction that is half written", SOON, || {
        Ok((fs::metadata(&base)?.len() > before + (1 << 20)).then_some(()))
    })?;
    shell.signal(Signal::SIGKILL)?;
    let status = shell.end(SOON)?;
    ensure!(at.join(format!("{BASE}-journal")).exists(), "it was killed too late");
    let check = query(at, "PRAGMA integrity_check; SELECT count(*), max(n) FROM t")?;
    ensure!(check.contains(&format!("{committed}|{committed}")), "{committed} committed: {check}");
    Ok(format!("{status}; {check}"))
}

/// A shell of a database, which reads statements from a FIFO and tells of each commit in a file.
struct Writer {
    name: &'static str,
    statements: File,
    told: PathBuf,
    committed: u64,
}

impl Writer {
    /// Waits until its shell, which another process begins, reads.
    fn open(at: &Path, name: &'static str) -> Result<Self> {
        let statements = File::options().write(true).open(at.join(name))?;
        Ok(Self { name, statements, told: at.join(format!("{name}.out")), committed: 0 })
    }

    fn begin(&mut self, times: u64) -> Result<()> {
        for _ in 0..times {
            self.committed += 1;
            let (name, n) = (self.name, self.committed);
            writeln!(self.statements, "INSERT INTO t VALUES ('{name}', {n}); SELECT {n};")?;
        }
        Ok(())
    }

    fn wait(&self) -> Result<()> {
        let last = self.committed.to_string();
        wait_until("a commit", SOON, || {
            // The file may not be there yet.
            let told = fs::read_to_string(&self.told).unwrap_or_default();
            Ok((told.lines().last() == Some(&last)).then_some(()))
        })
    }
}

/// Two that write to one database, with one index of its log, as a tree.
pub fn sqlite_two(at: &Path, moves: &mut dyn Moves) -> Result<String> {
    query(at, "PRAGMA journal_mode = WAL; CREATE TABLE t (who TEXT, n INTEGER)")?;
    let names = ["a", "b"];
    names.iter().try_for_each(|name| mkfifo(&at.join(name), Mode::S_IRWXU))?;
    let shell =
        "for w in a b; do sqlite3 -batch -cmd '.timeout 60000' base.db <$w >$w.out & done; wait";
    let mut command = Command::new("bash");
    command.args(["-c", shell]).current_dir(at).stdin(Stdio::null());
    let shell = Started::by(command.stderr(File::create(at.join("errors"))?))?;
    let mut both = Vec::new();
    for name in names {
        both.push(Writer::open(at, name)?);
    }
    let mut commit = || -> Result<()> {
        both.iter_mut().try_for_each(|writer| writer.begin(WRITES / 4))?;
        both.iter().try_for_each(Writer::wait)
    };
    commit()?;
    moves.tree_out(shell.pid())?;
    commit()?;
    moves.home(shell.pid())?;
    commit()?;
    drop(both);
    let status = shell.end(SOON)?;
    let errors = fs::read_to_string(at.join("errors"))?;
    ensure!(errors.is_empty(), "{errors}");
    let kept =
        "PRAGMA integrity_check; SELECT who, count(*), max(n) FROM t GROUP BY who ORDER BY who";
    Ok(format!("{status}; {}", query(at, kept)?))
}

fn postgres_program(name: &str) -> Result<PathBuf> {
    let versions = fs::read_dir("/usr/lib/postgresql")?;
    let found = versions.flatten().map(|v| v.path().join("bin").join(name)).find(|p| p.exists());
    found.with_context(|| format!("no {name}"))
}

/// For each client, so many seconds.
const LOAD_SECONDS: u32 = 40;

/// While the server is away.
const CONNECTIONS: u32 = 2;
const TRANSACTIONS: &str = "300";

/// How many transactions a pgbench tells of, none of which failed.
fn committed(load: Child) -> Result<u64> {
    let load = load.wait_with_output()?;
    let said = String::from_utf8(load.stdout)?;
    ensure!(load.status.success() && said.contains("failed transactions: 0 "), "{said}");
    let count =
        said.lines().find_map(|l| l.strip_prefix("number of transactions actually processed: "));
    // "300", or "300/300" where it was told how many.
    let count = count.and_then(|l| l.trim().split('/').next()).context("how many transactions")?;
    Ok(count.parse()?)
}

/// A server. It does not run as root, and not on what others may read.
struct Postgres {
    runner: Started,
    pid: u32,
    /// Of its socket, too.
    directory: PathBuf,
}

impl Postgres {
    fn start(at: &Path, options: &[&str]) -> Result<Self> {
        let directory = at.join("pg");
        let made =
            Command::new("install").args(["-d", "-o", "postgres"]).arg(&directory).status()?;
        ensure!(made.success(), "install: {made}");
        let data = directory.join("data");
        let mut init = as_postgres("initdb")?;
        init.args(["--no-sync", "--auth=trust", "-D"]).arg(&data);
        ensure!(init.status()?.success(), "initdb");
        let mut command = as_postgres("postgres")?;
        command.arg("-D").arg(&data).args(["-c", "listen_addresses=", "-c"]);
        command.arg(format!("unix_socket_directories={}", directory.display()));
        command.args(options.iter().flat_map(|&option| ["-c", option]));
        let runner = Started::by(command.stderr(File::create(at.join("log"))?))?;
        let pid = wait_until("a server that is ready", SOON, || {
            let file = fs::read_to_string(data.join("postmaster.pid")).unwrap_or_default();
            let ready = file.lines().any(|line| line.trim() == "ready");
            Ok(file.lines().next().filter(|_| ready).map(str::parse))
        })??;
        Ok(Self { runner, pid, directory })
    }

    fn client(&self, program: &str, args: &[&str]) -> Result<Command> {
        let mut command = as_postgres(program)?;
        command.arg("-h").arg(&self.directory).args(args).arg("postgres").stdout(Stdio::piped());
        Ok(command)
    }

    fn end(self) -> Result<String> {
        self.runner.signal(Signal::SIGTERM)?;
        Ok(self.runner.end(SOON)?.to_string())
    }
}

fn as_postgres(program: &str) -> Result<Command> {
    let mut command = Command::new("runuser");
    let program = postgres_program(program)?;
    command.args(["-u", "postgres", "--"]).arg(program).current_dir("/");
    command.stdin(Stdio::null()).stdout(Stdio::null());
    Ok(command)
}

/// With other memory than it comes with.
pub fn postgres(at: &Path, moves: &mut dyn Moves) -> Result<String> {
    postgres_with(&["autovacuum=off", "dynamic_shared_memory_type=sysv"], at, moves)
}

pub fn postgres_by_default(at: &Path, moves: &mut dyn Moves) -> Result<String> {
    postgres_with(&[], at, moves)
}

fn postgres_with(options: &[&str], at: &Path, moves: &mut dyn Moves) -> Result<String> {
    let server = Postgres::start(at, options)?;
    let made = server.client("pgbench", &["-i", "-q"])?.stderr(Stdio::null()).status()?;
    ensure!(made.success(), "pgbench -i: {made}");
    let seconds = LOAD_SECONDS.to_string();
    let told = at.join("progress");
    let load = server
        .client("pgbench", &["-n", "-c", "2", "-P", "1", "-T", &seconds])?
        .stderr(File::create(&told)?)
        .spawn()?;
    let works = || -> Result<()> {
        let lines = || -> Result<usize> {
            let text = fs::read_to_string(&told)?;
            Ok(text.lines().filter(|l| l.contains(" tps") && !l.contains(" 0.0 tps")).count())
        };
        let before = lines()?;
        wait_until("transactions", SOON, || Ok((lines()? >= before + 2).then_some(())))
    };
    works()?;
    moves.tree_out(server.pid)?;
    works()?;
    // A process of the server is begun for each connection.
    let mut acknowledged = 0;
    for _ in 0..CONNECTIONS {
        let mut later = server.client("pgbench", &["-n", "-t", TRANSACTIONS])?;
        let later = later.stderr(Stdio::null()).spawn()?;
        moves.tree_out_again(server.pid)?;
        works()?;
        acknowledged += committed(later)?;
    }
    moves.tree_out_again(server.pid)?;
    moves.home(server.pid)?;
    works()?;
    acknowledged += committed(load)?;
    let ask = "SELECT count(*), sum(delta) = (SELECT sum(abalance) FROM pgbench_accounts),
               sum(delta) = (SELECT sum(bbalance) FROM pgbench_branches) FROM pgbench_history";
    let kept = server.client("psql", &["-At", "-c", ask, "-d"])?.output()?;
    let kept = String::from_utf8(kept.stdout)?;
    ensure!(kept.trim() == format!("{acknowledged}|t|t"), "{acknowledged} committed: {kept}");
    server.end()
}
