//! Images of processes: restarting one, and telling what is in one. No daemon is needed.

use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use serde_json::json;
use tcmi_core::command::NOT_IN_IMAGES;
use tcmi_core::error::Errno;
use tcmi_image::format::{Kind, VERSION};
use tcmi_image::read::Image;
use tcmi_image::restart;
use tcmi_image::state::{Open, Surroundings};

use crate::failure::{Failure, in_words, is_daemon_gone};
use crate::node::Node;

/// Has the daemon write an image of `pid`; its absolute name. Err: there is no new file. The
/// process runs on in either case.
pub fn checkpoint(
    node: &Node,
    pid: tcmi_core::command::Pid,
    file: &Path,
) -> Result<PathBuf, Failure> {
    let file = std::path::absolute(file)
        .map_err(|error| Failure::local(&file.display().to_string(), &error))?;
    let done = node.command("ccn/mig/checkpoint", &format!("{pid} {}", file.display()));
    done.map_err(|error| not_saved(node, pid, error))?;
    Ok(file)
}

/// The errno in words, or all that stands in the way, as `explain` says it.
fn not_saved(node: &Node, pid: tcmi_core::command::Pid, error: io::Error) -> Failure {
    if is_daemon_gone(&error) {
        return Failure::NoDaemon { dir: node.root().to_owned(), source: error };
    }
    let errno = error.raw_os_error();
    let reasons = (errno == Some(Errno::NotSupported.raw()))
        .then(|| node.explain(pid, None, false).ok())
        .flatten()
        .map(|answer| {
            let stops = |line: &str| line.strip_prefix(NOT_IN_IMAGES).map(str::to_owned);
            answer.lines().filter_map(stops).collect::<Vec<_>>().join("; ")
        });
    let reason = match reasons {
        Some(reasons) if !reasons.is_empty() => reasons,
        _ => in_words(&error),
    };
    Failure::Refused { text: format!("process {pid} is not saved, and runs on: {reason}"), errno }
}

/// Ok: the process has ended, and this is its status, as a shell tells it. Err: there is none.
pub fn restart(path: &Path, truncate: bool) -> Result<ExitCode, Failure> {
    let refused = |error| refusal("not restarted", path, &error);
    let image = Image::open(path).map_err(refused)?;
    let pid = restart::restart(&image, truncate).map_err(refused)?;
    drop(image);
    until_end(Pid::from_raw(pid))
        .map_err(|error| Failure::local("wait for the process", &error.into()))
}

fn refusal(what: &str, path: &Path, error: &tcmi_image::Error) -> Failure {
    Failure::Refused { text: format!("{}: {what}: {error}", path.display()), errno: error.errno() }
}

/// What would end us ends it; what a terminal sends it has got, too.
fn until_end(pid: Pid) -> nix::Result<ExitCode> {
    let forwarded = [Signal::SIGTERM, Signal::SIGHUP];
    let heard = [Signal::SIGCHLD, Signal::SIGINT, Signal::SIGQUIT];
    let signals = SigSet::from_iter(forwarded.into_iter().chain(heard));
    signals.thread_block()?;
    loop {
        match waitpid(pid, Some(WaitPidFlag::WNOHANG))? {
            WaitStatus::Exited(_, status) => return Ok(ExitCode::from(status as u8)),
            WaitStatus::Signaled(_, signal, _) => return Ok(ExitCode::from(128 + signal as u8)),
            _ => {}
        }
        let signal = signals.wait()?;
        if forwarded.contains(&signal) {
            kill(pid, signal)?;
        }
    }
}

/// What is in an image, all of which is read.
pub fn show(path: &Path, as_json: bool) -> Result<String, Failure> {
    let refused = |error| refusal("not shown", path, &error);
    let image = Image::open(path).map_err(refused)?;
    image.verify().map_err(refused)?;
    Ok(if as_json { in_json(&image) } else { as_text(&image) })
}

fn command_name(image: &Image) -> String {
    String::from_utf8_lossy(&image.process.comm).into_owned()
}

fn in_json(image: &Image) -> String {
    let (process, s) = (&image.process, &image.surroundings);
    let sections: Vec<_> = image
        .sections
        .iter()
        .map(|s| json!({ "name": s.kind.to_string(), "offset": s.offset, "bytes": s.len }))
        .collect();
    let descriptors: Vec<_> = s
        .descriptors
        .iter()
        .map(|d| json!({ "fd": d.fd, "open": open_in_words(s, d.open) }))
        .collect();
    json!({
        "version": VERSION,
        "host": image.origin.host,
        "kernel": image.origin.kernel,
        "taken": image.origin.taken,
        "pid": process.pid,
        "name": command_name(image),
        "exe": process.exe,
        "uids": s.credentials.uids,
        "threads": process.threads.iter().map(|t| t.tid).collect::<Vec<_>>(),
        "cwd": s.cwd,
        "memory": image.section(Kind::Pages).len,
        "files": process.files.iter().map(|f| &f.path).collect::<Vec<_>>(),
        "descriptors": descriptors,
        "sections": sections,
    })
    .to_string()
}

fn as_text(image: &Image) -> String {
    let (origin, process, s) = (&image.origin, &image.process, &image.surroundings);
    let [uid, euid, _] = s.credentials.uids;
    let threads: Vec<String> = process.threads.iter().map(|t| t.tid.to_string()).collect();
    let mut lines = vec![
        format!(
            "image of process {} ({}), format version {VERSION}",
            process.pid,
            command_name(image)
        ),
        format!(
            "taken on {} (Linux {}), {} s after 1970-01-01 UTC",
            origin.host, origin.kernel, origin.taken
        ),
        format!("executable: {}", process.exe),
        format!("user: {uid}, effectively {euid}"),
        format!("threads: {}", threads.join(" ")),
        format!("directory: {}", s.cwd),
        format!(
            "memory: {} KiB in {} mappings",
            image.section(Kind::Pages).len / 1024,
            process.mm.vmas.len()
        ),
    ];
    lines.extend(process.files.iter().map(|f| format!("mapped file: {}", f.path)));
    let descriptor = |d: &tcmi_image::state::Descriptor| {
        format!("descriptor {}: {}", d.fd, open_in_words(s, d.open))
    };
    lines.extend(s.descriptors.iter().map(descriptor));
    lines.extend(
        image
            .sections
            .iter()
            .map(|s| format!("section {}: {} bytes at {}, whole", s.kind, s.len, s.offset)),
    );
    lines.join("\n")
}

fn open_in_words(s: &Surroundings, open: u32) -> String {
    match &s.opens[open as usize] {
        Open::File { file } if file.is_written() => {
            format!("writes {} of {} bytes, at {}", file.path, file.size, file.position)
        }
        Open::File { file } => {
            format!("reads {} of {} bytes, at {}", file.path, file.size, file.position)
        }
        Open::Named { path, .. } => path.clone(),
        Open::Device { path, .. } => format!("device {path}"),
        Open::Standard { fd } => format!("standard stream {fd} of who restarts it"),
        Open::Pipe { pipe, .. } => {
            format!(
                "pipe {pipe} of its own, with {} bytes in it",
                s.pipes[*pipe as usize].bytes.len()
            )
        }
        Open::Event { count, .. } => format!("eventfd of {count}"),
        Open::Timer { .. } => "timerfd".to_owned(),
        Open::Signals { mask, .. } => format!("signalfd of {mask:#x}"),
        Open::Epoll { watches, .. } => format!("epoll of {} descriptors", watches.len()),
    }
}
