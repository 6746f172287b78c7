//! A running process is frozen, captured and built again under the same pid in new
//! namespaces; the copy goes on where the original stopped.
//!
//! Its own main: making a guest needs a process with one thread.

use std::io::{BufRead, BufReader};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::process::{Command, Stdio};
use tcmi_ckpt::birth::Newborn;
use tcmi_ckpt::blob::Blob;
use tcmi_ckpt::capture::{self, Files};
use tcmi_ckpt::image::{FileRef, ProcessImage};
use tcmi_ckpt::rebuild::Pages;
use tcmi_ckpt::remote::{self, Agent};
use tcmi_ckpt::{Result, freeze};
use tcmi_sys::maps::Mapping;
use tcmi_sys::namespace::Parent;
use tcmi_sys::ptrace::{Waited, try_wait_any};
use tcmi_sys::{memory, namespace};

/// Opens each mapped file under its own path.
#[derive(Default)]
struct Opened {
    refs: Vec<FileRef>,
    open: Vec<std::fs::File>,
}

impl Files for Opened {
    fn index(&mut self, m: &Mapping) -> Result<u32> {
        if let Some(i) = self.refs.iter().position(|f| f.path == m.name) {
            return Ok(i as u32);
        }
        self.open.push(std::fs::File::open(&m.name).expect("mapped file opens"));
        self.refs.push(FileRef {
            path: m.name.clone(),
            dev: 0,
            inode: m.inode,
            size: 0,
            first: 0,
            last: 0,
            hash: [0; 32],
            live: false,
        });
        Ok(self.refs.len() as u32 - 1)
    }
}

struct Copy {
    image: ProcessImage,
    pages: Vec<(u64, Vec<u8>)>,
    files: Opened,
}

fn copy(pid: i32, blob: &Blob) -> Copy {
    let mut frozen = freeze::freeze(pid).expect("freeze");
    let maps = capture::mappings(pid).expect("maps");
    let vdso = maps.iter().find(|m| m.name == "[vdso]").expect("vdso");
    let call = remote::find_syscall(pid, vdso.start, vdso.end).expect("syscall instruction");
    let agent = Agent::inject(&mut frozen, call, blob, 1 << 20, None).expect("inject");
    let mut files = Opened::default();
    let image =
        capture::capture(&mut frozen, &agent, &|tid| tid, &maps, &mut files).expect("capture");
    let reader = Pages::open(pid, &image.mm.vmas).expect("pages");
    let pages = capture::own_pages(pid, &image.mm.vmas)
        .expect("runs")
        .into_iter()
        .map(|r| {
            let mut b = vec![0; (r.end - r.start) as usize];
            reader.read(r.start, &mut b).expect("read");
            (r.start, b)
        })
        .collect();
    remote::call(
        frozen.leader_mut(),
        call,
        "munmap agent",
        libc::SYS_munmap,
        [agent.base, agent.len, 0, 0, 0, 0],
    )
    .expect("munmap agent");
    frozen.thaw().expect("thaw");
    Copy { image, pages, files }
}

/// A child of ours with `pid` in new namespaces; it waits.
fn waiting_child(pid: i32) -> i32 {
    // SAFETY: plain calls.
    let (uid, gid) = unsafe { (libc::getuid(), libc::getgid()) };
    namespace::unshare(
        libc::CLONE_NEWUSER
            | libc::CLONE_NEWPID
            | libc::CLONE_NEWNS
            | libc::CLONE_NEWNET
            | libc::CLONE_NEWIPC,
    )
    .expect("unshare");
    namespace::map_ids(std::process::id() as i32, (0, 0), (uid, gid)).expect("map ids");
    for pid in [None, Some(pid)] {
        // SAFETY: one thread; the child only waits.
        let child = unsafe { namespace::fork_as(pid, Parent::Me) }.expect("fork");
        if child == 0 {
            // SAFETY: plain calls.
            unsafe {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                loop {
                    libc::pause();
                }
            }
        }
        if pid.is_some() {
            return child;
        }
    }
    unreachable!("the second child was returned")
}

fn memfd(len: u64) -> OwnedFd {
    // SAFETY: a fresh descriptor, checked before it is owned.
    unsafe {
        let fd = libc::memfd_create(c"steward".as_ptr(), libc::MFD_CLOEXEC);
        assert!(fd >= 0);
        assert_eq!(libc::ftruncate(fd, len as i64), 0);
        OwnedFd::from_raw_fd(fd)
    }
}

fn main() {
    let blob = Blob::built_in();
    // A program with threads that works in memory: it counts and never calls the kernel.
    let code = "import threading,ctypes,sys\n\
        n=int(sys.argv[1]); a=(ctypes.c_uint64*n)()\n\
        def f(i):\n  while True: a[i]+=1\n\
        ts=[threading.Thread(target=f,args=(i,),daemon=True) for i in range(1,n)]\n\
        [t.start() for t in ts]\n\
        print(ctypes.addressof(a),flush=True)\n\
        f(0)\n";
    let mut child = Command::new("python3")
        .args(["-c", code, "4"])
        .stdout(Stdio::piped())
        .spawn()
        .expect("python3");
    let mut line = String::new();
    BufReader::new(child.stdout.take().expect("stdout")).read_line(&mut line).expect("address");
    let counters: u64 = line.trim().parse().expect("number");
    let pid = child.id() as i32;
    let c = copy(pid, &blob);
    let count = |host: i32| {
        let mut b = [0; 32];
        memory::read(host, counters, &mut b).expect("counters");
        capture::words(&b)
    };
    let at_home = count(pid);
    child.kill().expect("end the original");
    child.wait().expect("reap");

    // Before the fork, so that the child has it.
    let area = memfd(64 * 1024);
    let waiting = waiting_child(pid);
    let mm = &c.image.mm;
    let fds: Vec<i32> = c.files.open.iter().map(|f| f.as_raw_fd()).collect();
    let mut n = Newborn::take(waiting, pid).expect("spawn");
    assert!(n.has_vdso_of(mm).expect("vDSO"));
    n.take_over(mm, &blob, true).expect("empty");
    n.build_space(&[], &mm.vmas, &fds).expect("space");
    n.place_steward(mm.reserved, &blob, area.as_raw_fd()).expect("steward");
    let others: Vec<i32> = c.image.threads.iter().map(|t| t.tid).filter(|&t| t != pid).collect();
    n.create_threads(&others, 0, 0).expect("threads");
    let writer = Pages::open(n.host_pid(), &mm.vmas).expect("pages");
    for (addr, bytes) in &c.pages {
        writer.write(*addr, bytes).expect("write pages");
    }
    assert!(writer.write(0x1000, b"x").is_err(), "pages outside of the image are refused");
    n.restore(&c.image, None).expect("state");
    let host = n.host_pid();
    let before = count(host);
    assert!(before.iter().zip(&at_home).all(|(b, h)| b <= h), "{before:?} {at_home:?}");
    let area_at = mm.reserved.0 + blob.code_bytes() as u64;
    let steward = n.run_steward(&c.image, area_at).expect("run the steward");
    n.run(&c.image, steward).expect("run");
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while !count(host).iter().zip(&before).all(|(now, then)| now > then) {
        assert!(std::time::Instant::now() < deadline, "{:?} {before:?}", count(host));
        let status = tcmi_sys::proc::status(host).expect("the copy lives");
        assert_ne!(status.state, 'Z', "the copy died");
        // Each of its threads stops once.
        while let Some((_, Waited::Stopped(thread, _))) = try_wait_any().expect("news") {
            thread.cont(0).map(drop).expect("it goes on");
        }
        std::thread::yield_now();
    }
    // SAFETY: our own child.
    unsafe { libc::kill(host, libc::SIGKILL) };
    println!("test rebirth_of_python_with_threads ... ok");
    println!("test result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out");
}
