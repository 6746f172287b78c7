//! What stands in image files, behind its checksums.

use crate::moves;
use tcmi_image::format::{self, FRONT_BYTES, Kind, Section, decode_front, encode_front};
use tcmi_image::state::{
    Credentials, Descriptor, Open, OpenFile, Origin, Pipe, Surroundings, check_process, check_runs,
};
use tcmi_image::wire::{Field, decode, encode};

pub fn fronts() -> Vec<Vec<u8>> {
    let mut offset = FRONT_BYTES as u64;
    let sections = Kind::ALL.map(|kind| {
        offset += 9;
        Section { kind, offset: offset - 9, len: 9, hash: [7; 32] }
    });
    vec![[encode_front(&sections), vec![0; 9 * sections.len()]].concat()]
}

/// With a checksum that is right.
pub fn front(input: &[u8]) -> Result<String, String> {
    let mut input = input.to_vec();
    if let Some(front) = input.first_chunk_mut::<FRONT_BYTES>() {
        format::seal(front);
    }
    let head = &input[..input.len().min(FRONT_BYTES)];
    match decode_front(head, input.len() as u64) {
        Ok(sections) if encode_front(&sections) == head => Ok("taken".into()),
        Ok(sections) => Err(format!("two encodings of {sections:?}")),
        Err(flaw) => Ok(flaw.to_string()),
    }
}

fn surroundings() -> Surroundings {
    let file = OpenFile {
        path: "/tmp/out".into(),
        flags: libc::O_WRONLY,
        position: 4,
        size: 9,
        modified: (1, 2),
    };
    let opens = vec![
        Open::File { file },
        Open::Named { path: "/".into(), flags: libc::O_DIRECTORY, position: 0 },
        Open::Device { path: "/dev/null".into(), flags: 0 },
        Open::Standard { fd: 1 },
        Open::Pipe { pipe: 0, flags: libc::O_WRONLY },
        Open::Event { count: 1, semaphore: true, flags: 0 },
        Open::Timer { clock: 1, flags: 0, ticks: 1, value: 5, interval: 6 },
        Open::Signals { mask: 512, flags: 0 },
        Open::Epoll { flags: 0, watches: vec![(4, 1, 77)] },
    ];
    let descriptor = |(fd, _)| Descriptor { fd, open: fd as u32, close_on_exec: fd == 5 };
    Surroundings {
        credentials: Credentials {
            uids: [1000; 3],
            gids: [1000; 3],
            groups: vec![4, 27],
            capabilities: [0, 0, 0, 1],
            no_new_privileges: true,
            dumpable: true,
        },
        cwd: "/".into(),
        umask: 0o22,
        death_signal: 0,
        is_subreaper: false,
        descriptors: (0..).zip(&opens).map(descriptor).collect(),
        opens,
        pipes: vec![Pipe { capacity: 65536, bytes: b"abc".to_vec() }],
    }
}

/// The first byte is the section's kind.
pub fn sections() -> Vec<Vec<u8>> {
    let origin = Origin {
        host: "home".into(),
        kernel: "6.18".into(),
        taken: 1,
        xfeatures: 7,
        cpu: vec!["avx2".into()],
    };
    let runs: Vec<(u64, u64)> = vec![(0x50_0000, 0x50_2000)];
    let of = |kind: Kind, bytes: Vec<u8>| [&[kind as u8], &bytes[..]].concat();
    vec![
        of(Kind::Origin, encode(&origin)),
        of(Kind::Process, encode(&moves::image())),
        of(Kind::Surroundings, encode(&surroundings())),
        of(Kind::Runs, encode(&runs)),
    ]
}

pub fn section(input: &[u8]) -> Result<String, String> {
    let Some((kind, bytes)) = input.split_first() else { return Ok("empty".into()) };
    match kind {
        1 => decoded(bytes, |_: &Origin| Ok("an origin".into())),
        2 => decoded(bytes, |p| {
            Ok(match check_process(p) {
                Ok(()) => moves::arrange(&p.mm)?,
                Err(flaw) => flaw.to_string(),
            })
        }),
        3 => decoded(bytes, |s: &Surroundings| {
            Ok(s.check().map_or_else(|flaw| flaw.to_string(), |()| "surroundings".into()))
        }),
        _ => decoded(bytes, |runs: &Vec<(u64, u64)>| {
            let checked = check_runs(runs, &moves::image().mm.vmas, 0x2000);
            Ok(checked.map_or_else(|flaw| flaw.to_string(), |()| "runs".into()))
        }),
    }
}

fn decoded<T: Field>(
    bytes: &[u8],
    look: impl FnOnce(&T) -> Result<String, String>,
) -> Result<String, String> {
    match decode::<T>(bytes) {
        Err(flaw) => Ok(flaw.to_string()),
        Ok(value) if encode(&value) != bytes => Err("two encodings of one value".into()),
        Ok(value) => look(&value),
    }
}
