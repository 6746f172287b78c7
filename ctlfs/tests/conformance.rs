//! What every implementation of the tree has to do.
//!
//! Runs against the FUSE server over a pretended daemon, or against whatever is
//! mounted at `TCMI_CTLFS_MOUNT` (as root; it writes nothing that is on the grammar).

mod rig;

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::libc;
use tcmi_ctlfs::Place;
use tcmi_ctlfs::tree::{Grammar, Kind, TREE};

struct Subject {
    root: PathBuf,
    _rig: Option<rig::Rig>,
}

fn subject() -> Subject {
    if let Some(mount) = std::env::var_os("TCMI_CTLFS_MOUNT") {
        return Subject { root: mount.into(), _rig: None };
    }
    let rig = rig::Rig::new();
    Subject { root: rig.root().to_owned(), _rig: Some(rig) }
}

impl Subject {
    /// Everything that is there, with its entry in the table.
    fn walk(&self) -> Vec<(PathBuf, Place)> {
        let mut found = vec![(self.root.clone(), Place::root())];
        let mut next = 0;
        while next < found.len() {
            let (path, place) = found[next].clone();
            next += 1;
            if place.entry.kind != Kind::Dir {
                continue;
            }
            for item in fs::read_dir(&path).unwrap() {
                let name = item.unwrap().file_name().into_string().unwrap();
                let child = place.child(&name);
                let child = child.unwrap_or_else(|| panic!("{name} in {place} is not declared"));
                found.push((path.join(name), child));
            }
        }
        found
    }

    fn files(&self) -> impl Iterator<Item = (PathBuf, Place)> {
        self.walk().into_iter().filter(|(_, place)| place.entry.kind == Kind::File)
    }

    fn commands(&self) -> impl Iterator<Item = (PathBuf, Grammar)> {
        self.files().filter_map(|(path, place)| Some((path, place.entry.write?)))
    }
}

fn errno<T>(result: std::io::Result<T>) -> Option<i32> {
    result.err().map(|error| error.raw_os_error().unwrap())
}

fn writer(path: &Path) -> File {
    OpenOptions::new().write(true).open(path).unwrap()
}

#[test]
fn what_is_declared_is_there_with_its_kind_and_mode() {
    let subject = subject();
    let found = subject.walk();
    for (path, place) in &found {
        let meta = fs::symlink_metadata(path).unwrap();
        let kind = meta.file_type();
        let as_declared = match place.entry.kind {
            Kind::Dir => kind.is_dir(),
            Kind::File => kind.is_file() && !kind.is_fifo(),
            Kind::Link => kind.is_symlink(),
        };
        assert!(as_declared, "{place} is {kind:?}");
        assert_eq!(meta.permissions().mode() & 0o7777, u32::from(place.entry.mode), "{place}");
    }
    let always = TREE.iter().filter(|entry| !entry.path.contains('{'));
    for entry in always {
        assert!(
            found.iter().any(|(_, place)| place.entry.path == entry.path),
            "{} is missing",
            entry.path
        );
    }
}

#[test]
fn a_process_and_its_files_have_one_owner() {
    for (path, place) in subject().walk() {
        let in_process = place.entry.path.contains("{PID}/");
        let meta = fs::symlink_metadata(&path).unwrap();
        let expected =
            if in_process { fs::metadata(path.parent().unwrap()).unwrap().uid() } else { 0 };
        if in_process || !place.entry.path.contains("{PID}") {
            assert_eq!(meta.uid(), expected, "{place}");
        }
    }
}

#[test]
fn links_lead_into_the_tree() {
    let subject = subject();
    let root = subject.root.canonicalize().unwrap();
    for (path, place) in subject.walk() {
        if place.entry.kind == Kind::Link {
            let end = path.canonicalize().unwrap();
            assert!(end.starts_with(&root) && end.is_dir(), "{place} leads to {}", end.display());
        }
    }
}

#[test]
fn what_the_mode_lacks_root_lacks_too() {
    for (path, place) in subject().files() {
        let readable = File::open(&path);
        let writable = OpenOptions::new().write(true).open(&path);
        if place.entry.is_readable() {
            assert_eq!(errno(readable), None, "{place}");
        } else {
            assert_eq!(errno(readable), Some(libc::EACCES), "{place}");
        }
        if place.entry.write.is_some() {
            assert_eq!(errno(writable), None, "{place}");
        } else {
            assert_eq!(errno(writable), Some(libc::EACCES), "{place}");
        }
    }
}

/// Off every grammar of the table.
fn rubbish() -> Vec<Vec<u8>> {
    let mut all: Vec<Vec<u8>> = [
        "\n",
        " ",
        "\n1",
        " 1",
        "1 ",
        "1\n\n",
        "0",
        "-1",
        "+1",
        "01",
        "1.5",
        "0x10",
        "18446744073709551616",
        "99999999999999999999999999",
        "2147483648",
        "1 desk x",
        "0 desk",
        "-5 desk",
        "1\tdesk",
        "1  desk",
        "18446744073709551616 desk",
        "desk 1",
        "tcp:",
        "tcp::1",
        "tcp:127.0.0.1",
        "tcp:127.0.0.1:65536",
        "tcp:127.0.0.1:x",
        "udp:127.0.0.1:1",
        "tcp:127.0.0.1:1 a b",
        "tcp:127.0.0.1:0 key",
        "--key",
        "-",
        "-\n",
        "k\u{e9}y",
        "PID NODE",
    ]
    .iter()
    .map(|text| text.as_bytes().to_vec())
    .collect();
    all.push(b"1\0".to_vec());
    all.push(b"\0".to_vec());
    all.push(vec![0xff; 16]);
    all.push((0..=255).collect());
    all.push(vec![b'1'; 4097]);
    all.push(vec![b' '; 4096]);
    all.push(vec![b'x'; 1 << 20]);
    all.push(vec![0; 1 << 20]);
    all
}

/// Rubbish for the other grammars that happens to be a word of this one.
fn is_a_word_of(bytes: &[u8], grammar: Grammar) -> bool {
    let Ok(text) = std::str::from_utf8(bytes) else { return false };
    match grammar {
        // Any printable word has the shape of a key.
        Grammar::KeyLines => {
            let line = text.strip_suffix('\n').unwrap_or(text);
            let key = line.strip_prefix('-').unwrap_or(line);
            key.len() <= 128
                && key.starts_with(|c: char| c.is_ascii_alphanumeric())
                && key.bytes().all(|b| b.is_ascii_graphic())
        }
        Grammar::Address
        | Grammar::AddressKey
        | Grammar::PidNode
        | Grammar::PidNodeTree
        | Grammar::Pid
        | Grammar::PidPath
        | Grammar::PidMaybeNode
        | Grammar::One => false,
    }
}

#[test]
fn what_is_off_the_grammar_is_einval() {
    for (path, grammar) in subject().commands() {
        for bytes in rubbish() {
            if is_a_word_of(&bytes, grammar) {
                continue;
            }
            let shown = String::from_utf8_lossy(&bytes[..bytes.len().min(40)]).into_owned();
            let result = writer(&path).write(&bytes);
            assert_eq!(errno(result), Some(libc::EINVAL), "{} took {shown:?}", path.display());
        }
    }
}

#[test]
fn a_shell_s_ways_to_open_a_file_do_not_matter() {
    for (path, _) in subject().commands() {
        for flags in [libc::O_TRUNC, libc::O_APPEND, libc::O_CREAT | libc::O_TRUNC] {
            let mut file = OpenOptions::new();
            let mut file = file.write(true).custom_flags(flags).open(&path).unwrap();
            assert_eq!(errno(file.write(b"?\n")), Some(libc::EINVAL), "{}", path.display());
        }
    }
}

#[test]
fn the_second_part_of_a_command_is_einval() {
    for (path, _) in subject().commands() {
        let mut file = writer(&path);
        let first = file.write(b"?");
        assert_eq!(errno(first), Some(libc::EINVAL), "{}", path.display());
        if file.seek(SeekFrom::Start(1)).is_ok() {
            assert_eq!(errno(file.write(b"1")), Some(libc::EINVAL), "{}", path.display());
        }
    }
}

#[test]
fn a_value_is_whole_lines_and_the_same_however_it_is_read() {
    for (path, place) in subject().files() {
        if !place.entry.is_readable() || place.entry.write == Some(Grammar::PidMaybeNode) {
            continue;
        }
        let mut file = File::open(&path).unwrap();
        let mut whole = String::new();
        file.read_to_string(&mut whole).unwrap();
        assert!(whole.is_empty() || whole.ends_with('\n'), "{place} is {whole:?}");
        file.seek(SeekFrom::Start(0)).unwrap();
        let mut parts = Vec::new();
        let mut part = [0; 7];
        loop {
            match file.read(&mut part).unwrap() {
                0 => break,
                n => parts.extend_from_slice(&part[..n]),
            }
        }
        assert_eq!(String::from_utf8(parts).unwrap(), whole, "{place}");
        // As busybox's cat does.
        if let Some(sent) = sent_into_a_pipe(&File::open(&path).unwrap()) {
            assert_eq!(String::from_utf8(sent).unwrap(), whole, "{place} by sendfile");
        }
    }
}

/// None: sendfile is refused, and whoever tries it reads instead.
fn sent_into_a_pipe(file: &File) -> Option<Vec<u8>> {
    let (mut out, into) = std::io::pipe().unwrap();
    let mut sent = Vec::new();
    loop {
        match nix::sys::sendfile::sendfile(&into, file, None, 1 << 16) {
            Ok(0) => return Some(sent),
            Ok(n) => {
                let at = sent.len();
                sent.resize(at + n, 0);
                out.read_exact(&mut sent[at..]).unwrap();
            }
            Err(nix::errno::Errno::EINVAL) if sent.is_empty() => return None,
            Err(errno) => panic!("sendfile: {errno}"),
        }
    }
}

#[test]
fn nothing_is_made_renamed_or_removed() {
    let subject = subject();
    let refused = [Some(libc::EPERM), Some(libc::EACCES)];
    for (path, place) in subject.walk() {
        if place.entry.kind == Kind::Dir {
            let new = path.join("new");
            assert!(refused.contains(&errno(File::create(&new))), "{place}");
            assert!(refused.contains(&errno(fs::create_dir(&new))), "{place}");
        }
        if place.entry.path.is_empty() {
            continue;
        }
        let mode = fs::Permissions::from_mode(0o777);
        if place.entry.kind == Kind::File {
            assert!(refused.contains(&errno(fs::remove_file(&path))), "{place}");
            assert!(refused.contains(&errno(fs::set_permissions(&path, mode))), "{place}");
        }
    }
}

#[test]
fn what_is_not_there_is_enoent() {
    let root = subject();
    for path in [
        "policy",
        "ccn/mig/move",
        "pen/restart",
        "ccn/nodes/{N}",
        "ccn/nodes/18446744073709551616",
        "ccn/nodes/00",
        "ccn/nodes/nobody",
        "ccn/mig/migproc/0",
        "ccn/mig/migproc/2147483647/state",
        "ccn/mig/migproc/-1",
    ] {
        let meta = fs::symlink_metadata(root.root.join(path));
        assert_eq!(errno(meta), Some(libc::ENOENT), "{path}");
    }
}
