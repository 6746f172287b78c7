//! Images of processes: each victim goes on from one when it is gone, and what no image holds, or
//! what is no image any more, is refused and named.

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use libtest_mimic::{Arguments, Trial};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::signal::Signal;
use tcmi_tests::node::built;
use tcmi_tests::{Node, Root, Scratch, Started, Victim, VictimKind, program, wait_until};

const SOON: Duration = Duration::from_secs(60);
const NOBODY: u32 = 65534;

/// With no descriptor of whoever runs the tests, which an image could not hold.
fn alone(mut command: Command) -> Command {
    command.stderr(Stdio::null());
    // SAFETY: a plain call between fork and exec.
    unsafe {
        command.pre_exec(|| {
            const FIRST: u32 = 3;
            match libc::syscall(libc::SYS_close_range, FIRST, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) {
                0 => Ok(()),
                _ => Err(std::io::Error::last_os_error()),
            }
        })
    };
    command
}

fn spawn(kind: &VictimKind) -> Result<Victim> {
    Victim::spawn_by(kind, alone(Command::new(kind.path())))
}

fn tcmi(home: &Node) -> Result<Command> {
    let mut command = Command::new(built("tcmi")?);
    command.arg("--ctlfs").arg(home.path(""));
    Ok(command)
}

fn checkpoint(home: &Node, pid: u32, image: &Path) -> Result<Output> {
    Ok(tcmi(home)?.arg("checkpoint").arg(pid.to_string()).arg(image).output()?)
}

fn saved(home: &Node, pid: u32, image: &Path) -> Result<()> {
    let done = checkpoint(home, pid, image)?;
    let said = String::from_utf8_lossy(&done.stderr).into_owned();
    ensure!(done.status.success(), "checkpoint: {said}\n{}", home.log());
    Ok(())
}

fn restart(image: &Path) -> Result<Command> {
    let mut command = Command::new(built("tcmi")?);
    command.arg("restart").arg(image);
    Ok(command)
}

/// What a restart says that has to fail.
fn refused(image: &Path) -> Result<String> {
    let done = restart(image)?.stdin(Stdio::null()).output()?;
    let said = String::from_utf8_lossy(&done.stderr).into_owned();
    ensure!(done.status.code() == Some(1), "restarted: {}; it says {said}", done.status);
    Ok(said)
}

fn expect(what: &str, text: &str) -> Result<()> {
    ensure!(text.contains(what), "{what:?} is not in {text:?}");
    Ok(())
}

/// Kills it; its id is free when this returns.
fn kill(mut victim: Victim) -> Result<()> {
    victim.signal(Signal::SIGKILL)?;
    victim.wait(SOON).map(drop)
}

/// Restarts its process, which it is as it was, and has gone on in between.
fn goes_on(kind: &VictimKind) -> Result<()> {
    let home = Node::start("home", Root::Normal)?;
    let scratch = Scratch::new("image")?;
    let image = scratch.join("image");
    let mut victim = spawn(kind)?;
    let pid = victim.pid();
    victim.check().context("before")?;
    saved(&home, pid, &image)?;
    victim.check().context("behind the checkpoint")?;
    saved(&home, pid, &image).context("a second time")?;
    victim.check().context("behind the second one")?;
    kill(victim)?;
    let mut victim = restarted(kind, &image, pid)?;
    victim.check().context("restarted")?;
    victim.check().context("restarted, again")?;
    // Nothing of ours is in it: it can be saved as before.
    saved(&home, pid, &image).context("of the restarted one")?;
    victim.check().context("behind its checkpoint")?;
    victim.end(7)?;
    home.stop()
}

/// Is there, with nothing of ours in it, behind the beginning of its restart.
fn restarted(kind: &VictimKind, image: &Path, pid: u32) -> Result<Victim> {
    let mut victim = Victim::restart_by(kind, restart(image)?, pid)?;
    wait_until("the restarted process", SOON, || {
        if let Some(status) = victim.has_ended()? {
            anyhow::bail!("tcmi restart: {status}");
        }
        Ok(runs_alone(pid).then_some(()))
    })?;
    Ok(victim)
}

/// Is what it is to be, and none of its threads is held.
fn runs_alone(pid: u32) -> bool {
    let statuses = || -> std::io::Result<Vec<String>> {
        let threads = fs::read_dir(format!("/proc/{pid}/task"))?;
        threads.map(|thread| fs::read_to_string(thread?.path().join("status"))).collect()
    };
    let is_free = |status: &String| status.contains("\nTracerPid:\t0\n");
    let is_named = |status: &String| status.lines().next().is_some_and(|l| !l.ends_with("\ttcmi"));
    statuses().is_ok_and(|all| all.iter().all(|status| is_named(status) && is_free(status)))
}

fn is_refused(kind: &VictimKind, why: &str) -> Result<()> {
    let home = Node::start("home", Root::Normal)?;
    let scratch = Scratch::new("image")?;
    let image = scratch.join("image");
    let mut victim = spawn(kind)?;
    let done = checkpoint(&home, victim.pid(), &image)?;
    let said = String::from_utf8_lossy(&done.stderr).into_owned();
    ensure!(done.status.code() == Some(1), "checkpoint: {}", done.status);
    expect(why, &said)?;
    ensure!(fs::read_dir(scratch.path())?.next().is_none(), "something was written");
    victim.check().context("behind the refusal")?;
    victim.end(7)?;
    home.stop()
}

/// Victims that have what no image holds, and what is said of it.
fn obstacle(kind: &VictimKind) -> Option<&'static str> {
    let argument = kind.args.first().map(String::as_str).unwrap_or_default();
    match (kind.program, argument) {
        ("calls" | "files" | "latemap", _) | ("mapped", "deleted" | "memfd") => {
            Some("a file that its name does not lead to any more")
        }
        ("ring", _) => Some("a child, process "),
        ("selves", _) => Some("a file of the kernel, /proc/"),
        ("blocked", "accept") | ("channels", _) => Some("a socket"),
        ("handles", _) => Some("a terminal, "),
        ("segment", _) if kind.args.len() > 1 => Some("System V memory"),
        ("mapped", "late") => None,
        ("mapped", _) => Some("a file mapped shared to be written"),
        _ => None,
    }
}

fn kept(scratch: &Scratch, more: &[&str]) -> Result<VictimKind> {
    let directory = scratch.join("kept");
    fs::create_dir(&directory)?;
    let directory = directory.to_str().context("a path of ASCII")?;
    Ok(VictimKind::with_args("kept", &[&[directory], more].concat()))
}

fn descriptors_and_settings_are_kept() -> Result<()> {
    let scratch = Scratch::new("kept")?;
    goes_on(&kept(&scratch, &[])?)
}

fn what_no_image_holds_is_named() -> Result<()> {
    for (what, why) in [
        ("socket", "a socket (descriptor "),
        ("child", "trees are not saved yet"),
        ("lock", "a lock on "),
        ("deleted", "a file that its name does not lead to any more"),
        ("mapped", "a file mapped shared to be written"),
    ] {
        let scratch = Scratch::new("kept")?;
        is_refused(&kept(&scratch, &[what])?, why).with_context(|| what.to_owned())?;
    }
    Ok(())
}

/// A program that is stopped in the middle, with its output in a file of `scratch`.
struct Computing {
    program: Started,
    output: std::path::PathBuf,
}

impl Computing {
    fn start(argv: &[&str], output: std::path::PathBuf) -> Result<Self> {
        let mut command = Command::new(argv[0]);
        command.args(&argv[1..]).stdin(Stdio::null()).stdout(fs::File::create(&output)?);
        Ok(Self { program: Started::by(&mut alone(command))?, output })
    }
    fn lines(&self) -> Result<usize> {
        let text = fs::read(&self.output)?;
        Ok(text.iter().filter(|byte| **byte == b'\n').count())
    }
    fn wait_lines(&self, lines: usize) -> Result<()> {
        wait_until("more lines of output", SOON, || Ok((self.lines()? >= lines).then_some(())))
    }
}

fn computes_on(argv: &[&str], status: i32) -> Result<()> {
    let home = Node::start("home", Root::Normal)?;
    let scratch = Scratch::new("image")?;
    let image = scratch.join("image");
    let undisturbed = Computing::start(argv, scratch.join("undisturbed"))?;
    let disturbed = Computing::start(argv, scratch.join("disturbed"))?;
    disturbed.wait_lines(3)?;
    saved(&home, disturbed.program.pid(), &image)?;
    // It writes several at a time, and beside the checkpoint.
    disturbed.wait_lines(disturbed.lines()? + 1)?;
    expect("is in use here", &said_of_a_double(&image)?)?;
    let Computing { program, output } = disturbed;
    // Kills and reaps it.
    drop(program);
    expect("has grown by", &refused(&image)?)?;
    let ended = restart(&image)?.arg("--truncate").stdin(Stdio::null()).status()?;
    ensure!(ended.code() == Some(status), "the restarted one: {ended}");
    let Computing { program, output: undisturbed } = undisturbed;
    let ended = program.end(SOON)?;
    ensure!(ended.code() == Some(status), "the undisturbed one: {ended}");
    let read = |file: &std::path::PathBuf| fs::read_to_string(file);
    let (expected, seen) = (read(&undisturbed)?, read(&output)?);
    ensure!(expected == seen, "undisturbed:\n{expected}\nrestarted:\n{seen}");
    home.stop()
}

/// Of an image whose process is there yet.
fn said_of_a_double(image: &Path) -> Result<String> {
    let done = restart(image)?.arg("--truncate").stdin(Stdio::null()).output()?;
    ensure!(done.status.code() == Some(1), "restarted: {}", done.status);
    Ok(String::from_utf8_lossy(&done.stderr).into_owned())
}

fn a_computing_program_writes_the_same() -> Result<()> {
    let sums = VictimKind::plain("sums").path();
    computes_on(&[sums.to_str().context("a path of ASCII")?, "120"], 7)
}

fn python_with_threads_writes_the_same() -> Result<()> {
    const CODE: &str = "import threading, queue, hashlib\n\
        todo, done = queue.Queue(), queue.Queue()\n\
        def work():\n\
        \x20 while True:\n\
        \x20   n = todo.get()\n\
        \x20   h = str(n)\n\
        \x20   for i in range(20000): h = hashlib.sha256(h.encode()).hexdigest()\n\
        \x20   done.put((n, h))\n\
        for i in range(3): threading.Thread(target=work, daemon=True).start()\n\
        for round in range(20):\n\
        \x20 for n in range(6): todo.put(round * 6 + n)\n\
        \x20 for n, h in sorted(done.get() for n in range(6)): print(n, h, flush=True)\n";
    let python = program::python()?;
    computes_on(&[&python, "-c", CODE], 0)
}

/// A small image of a process that is gone.
fn image_of_one_gone(home: &Node, image: &Path) -> Result<u32> {
    let victim = spawn(&VictimKind::plain("memory"))?;
    let pid = victim.pid();
    saved(home, pid, image)?;
    kill(victim)?;
    Ok(pid)
}

fn damage_is_named_and_nothing_runs() -> Result<()> {
    let home = Node::start("home", Root::Normal)?;
    let scratch = Scratch::new("image")?;
    let image = scratch.join("image");
    let pid = image_of_one_gone(&home, &image)?;
    let whole = fs::read(&image)?;
    let with = |at: usize, byte: u8| -> Result<String> {
        let bad = scratch.join("bad");
        fs::write(&bad, &whole)?;
        fs::File::options().write(true).open(&bad)?.write_all_at(&[byte], at as u64)?;
        refused(&bad)
    };
    let flipped = |at: usize| with(at, whole[at] ^ 1);
    expect("no image of a process", &flipped(0)?)?;
    expect("version 99", &with(8, 99)?)?;
    expect("another kind of machine", &with(12, 183)?)?;
    expect("header is damaged", &flipped(40)?)?;
    let word = |at: usize| -> Result<usize> {
        Ok(u64::from_le_bytes(*whole[at..].first_chunk().context("a table")?) as usize)
    };
    let names = ["origin", "process", "surroundings", "runs", "pages", "files"];
    for (i, name) in names.iter().enumerate() {
        let entry = 64 + i * 64;
        let (offset, len) = (word(entry + 8)?, word(entry + 16)?);
        for at in [offset, offset + len / 2, offset + len - 1] {
            expect(&format!("section \"{name}\" is damaged"), &flipped(at)?)?;
        }
    }
    let cut = scratch.join("cut");
    for len in [0, 7, 8, 63, 447, 448, whole.len() / 2, whole.len() - 1] {
        fs::write(&cut, &whole[..len])?;
        let why = if len < 8 { "no image of a process" } else { "it is cut off" };
        expect(why, &refused(&cut)?)?;
    }
    fs::write(&cut, [&whole[..], b"x"].concat())?;
    expect("1 bytes more than it says", &refused(&cut)?)?;
    ensure!(!Path::new(&format!("/proc/{pid}")).exists(), "something runs");
    home.stop()
}

/// What is said of a whole one.
fn shown(image: &Path, options: &[&str]) -> Result<String> {
    let done =
        Command::new(built("tcmi")?).args(["image", "show"]).arg(image).args(options).output()?;
    ensure!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    Ok(String::from_utf8(done.stdout)?)
}

fn an_image_tells_what_is_in_it() -> Result<()> {
    let home = Node::start("home", Root::Normal)?;
    let scratch = Scratch::new("image")?;
    let image = scratch.join("image");
    let pid = image_of_one_gone(&home, &image)?;
    let text = shown(&image, &[])?;
    for what in [
        format!("process {pid} (memory)"),
        "descriptor 0: standard stream 0".to_owned(),
        "descriptor 2: device /dev/null".to_owned(),
        "section pages".to_owned(),
    ] {
        expect(&what, &text)?;
    }
    let json = shown(&image, &["--json"])?;
    expect(&format!("\"pid\":{pid}"), &json)?;
    home.stop()
}

fn a_full_disk_leaves_no_file_and_the_process() -> Result<()> {
    let home = Node::start("home", Root::Normal)?;
    let scratch = Scratch::new("full")?;
    mount(Some("tmpfs"), scratch.path(), Some("tmpfs"), MsFlags::empty(), Some("size=1m"))?;
    let mut victim = spawn(&VictimKind::plain("memory"))?;
    let done = checkpoint(&home, victim.pid(), &scratch.join("image"));
    let left = fs::read_dir(scratch.path())?.count();
    umount2(scratch.path(), MntFlags::empty())?;
    let said = String::from_utf8_lossy(&done?.stderr).into_owned();
    ensure!(left == 0, "{left} files are left");
    expect("No space left on device", &said)?;
    victim.check()?;
    victim.end(7)?;
    home.stop()
}

fn users_save_what_is_theirs_where_they_may() -> Result<()> {
    let home = Node::start("home", Root::Normal)?;
    let scratch = Scratch::new("users")?;
    let programs = Scratch::new("programs")?;
    let open = |path: &Path| -> Result<()> {
        use std::os::unix::fs::PermissionsExt;
        Ok(fs::set_permissions(path, fs::Permissions::from_mode(0o777))?)
    };
    open(programs.path())?;
    let kind = VictimKind::plain("memory");
    let program = programs.join("memory");
    ensure!(Command::new("cp").arg(kind.path()).arg(&program).status()?.success(), "cp");
    let mut command = alone(Command::new(&program));
    command.uid(NOBODY).gid(NOBODY);
    let mut theirs = Victim::spawn_by(&kind, command)?;
    let mut ours = spawn(&kind)?;
    let control = home.path("ccn/mig/checkpoint");
    // By a shell, as the command line is in a directory of ours.
    let ask = |pid: u32, image: &Path| -> Result<String> {
        let line = format!("echo '{pid} {}' > {}", image.display(), control.display());
        let done = Command::new("bash").args(["-c", &line]).uid(NOBODY).gid(NOBODY).output()?;
        Ok(String::from_utf8_lossy(&done.stderr).into_owned())
    };
    let image = scratch.join("image");
    expect("Permission denied", &ask(theirs.pid(), &image)?)?;
    open(scratch.path())?;
    let said = ask(theirs.pid(), &image)?;
    ensure!(said.is_empty(), "{said}\n{}", home.log());
    let made = fs::metadata(&image)?;
    ensure!((made.uid(), made.mode() & 0o777) == (NOBODY, 0o600), "{made:?}");
    expect("not permitted", &ask(ours.pid(), &scratch.join("other"))?)?;
    theirs.check()?;
    ours.check()?;
    ours.end(7)?;
    let pid = theirs.pid();
    kill(theirs)?;
    let mut theirs = restarted(&kind, &image, pid)?;
    theirs.check()?;
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    expect(&format!("Uid:\t{NOBODY}\t{NOBODY}\t{NOBODY}"), &status)?;
    expect("CapEff:\t0000000000000000", &status)?;
    theirs.end(7)?;
    home.stop()
}

fn a_killed_daemon_costs_the_image_alone() -> Result<()> {
    const KILLS: usize = 5;
    let mut home = Node::start("home", Root::Normal)?;
    let scratch = Scratch::new("image")?;
    let image = scratch.join("image");
    let kind = VictimKind::with_args("memory", &["64"]);
    let mut victim = spawn(&kind)?;
    let pid = victim.pid();
    let part = scratch.join(format!("image.{pid}.part"));
    for _ in 0..KILLS {
        let (control, line) =
            (home.path("ccn/mig/checkpoint"), format!("{pid} {}", image.display()));
        // It fails with its daemon.
        let asked = thread::spawn(move || fs::write(control, line));
        wait_until("an image that is begun", SOON, || Ok(part.exists().then_some(())))?;
        home.restart(Vec::new())?;
        asked.join().expect("a write does not panic").ok();
        victim.check()?;
        // The daemon may have been quicker than its end.
        if image.exists() {
            shown(&image, &[])?;
            fs::remove_file(&image)?;
        }
    }
    saved(&home, pid, &image)?;
    ensure!(!part.exists(), "a part is left");
    kill(victim)?;
    let mut victim = restarted(&kind, &image, pid)?;
    victim.check()?;
    victim.end(7)?;
    home.stop()
}

type Test = fn() -> Result<()>;

fn main() {
    let tests: [(&str, Test); 9] = [
        ("a_computing_program_writes_the_same", a_computing_program_writes_the_same),
        ("python_with_threads_writes_the_same", python_with_threads_writes_the_same),
        ("descriptors_and_settings_are_kept", descriptors_and_settings_are_kept),
        ("what_no_image_holds_is_named", what_no_image_holds_is_named),
        ("damage_is_named_and_nothing_runs", damage_is_named_and_nothing_runs),
        ("an_image_tells_what_is_in_it", an_image_tells_what_is_in_it),
        ("a_full_disk_leaves_no_file_and_the_process", a_full_disk_leaves_no_file_and_the_process),
        ("a_killed_daemon_costs_the_image_alone", a_killed_daemon_costs_the_image_alone),
        ("users_save_what_is_theirs_where_they_may", users_save_what_is_theirs_where_they_may),
    ];
    let told = |result: Result<()>| Ok(result.map_err(|e| format!("{e:#}"))?);
    let mut trials: Vec<Trial> =
        tests.map(|(name, test)| Trial::test(name, move || told(test()))).into();
    // Three look for their parent, which is another one; of the last, what it does to the file
    // system between two of its steps is there when it is restarted.
    const OTHERS: [&str; 4] = ["clone3", "identity", "sleepers", "world"];
    let begins_again = |kind: &VictimKind| !OTHERS.contains(&kind.program);
    for kind in VictimKind::all().into_iter().filter(begins_again) {
        let (obstacle, lacking) = (obstacle(&kind), kind.lacking());
        let way = if obstacle.is_some() { "is_refused" } else { "goes_on" };
        let name = format!("{way}::{}", kind.name());
        let run = move || match obstacle {
            Some(why) => told(is_refused(&kind, why)),
            None => told(goes_on(&kind)),
        };
        trials.push(
            Trial::test(name, run)
                .with_ignored_flag(lacking.is_some())
                .with_kind(lacking.unwrap_or_default()),
        );
    }
    libtest_mimic::run(&Arguments::from_args(), trials).exit();
}
