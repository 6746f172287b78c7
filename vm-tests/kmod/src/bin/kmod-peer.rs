//! What two kernels say to each other, here one with itself, and what strangers get to hear.

use std::fs::File;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::process::ExitCode;
use std::thread;
use std::time::Duration;
use tcmi_kmod_tests::{
    Case, Outcome, Victim, ensure, pause_for_ever, run, system, udp_socket, wait_until,
};
use tcmi_sys::kmod::{DEVICE, Peer, PeerState, abi};

const HERE: u16 = 20_001;
const THERE: u16 = 20_002;
/// Nobody waits so long for an answer that comes.
const LONG: Duration = Duration::from_secs(10);
/// Two questions.
const SHORT: Duration = Duration::from_millis(300);

const DATAGRAM_BYTES: usize = 48;
const KIND: usize = 6;
const QUESTION: u8 = 1;
const ANSWER: u8 = 2;

fn at(port: u16) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, port).into()
}

/// One end of a pair that `secret` makes; the other has it with the ports exchanged.
fn end(local: SocketAddr, remote: SocketAddr, secret: u8) -> Result<Peer, String> {
    let [mut sent, mut received] = [[secret; 32]; 2];
    sent[0] = u8::from(local < remote);
    received[0] = u8::from(remote < local);
    Peer::set(local, remote, sent, received).map_err(|e| e.to_string())
}

fn says(peer: &Peer, timeout: Duration, expected: Option<PeerState>) -> Outcome {
    let said = peer.ask(timeout).map_err(|e| e.to_string())?;
    ensure(said == expected, || format!("{said:?} in place of {expected:?}"))
}

fn both_answer() -> Outcome {
    let (here, there) = (end(at(HERE), at(THERE), 1)?, end(at(THERE), at(HERE), 1)?);
    for _ in 0..3 {
        says(&here, LONG, Some(PeerState::Served))?;
        says(&there, LONG, Some(PeerState::Served))?;
    }
    drop(there);
    says(&here, SHORT, None)
}

fn over_ipv6() -> Outcome {
    let at = |port| SocketAddr::from((Ipv6Addr::LOCALHOST, port));
    let here = end(at(HERE), at(THERE), 2);
    if !std::path::Path::new("/proc/net/if_inet6").exists() {
        return ensure(here.is_err(), || "IPv6 without IPv6".to_owned());
    }
    let (here, _there) = (here?, end(at(THERE), at(HERE), 2)?);
    says(&here, LONG, Some(PeerState::Served))
}

fn other_keys() -> Outcome {
    let (here, _there) = (end(at(HERE), at(THERE), 3)?, end(at(THERE), at(HERE), 4)?);
    says(&here, SHORT, None)
}

/// As many as are kept, and then some, die with their process.
fn killed() -> Outcome {
    const FORGOTTEN: usize = 3;
    let port = |number: u16| 21_000 + 2 * number;
    let kept = abi::TCMI_PEERS_ABANDONED_MAX as usize;
    let all = (kept + FORGOTTEN) as u16;
    let mut victim = Victim::start(|| {
        let _peers = (0..all).map(|n| end(at(port(n) + 1), at(port(n)), 5)).collect::<Vec<_>>();
        pause_for_ever();
    })?;
    let peers =
        (0..all).map(|n| end(at(port(n)), at(port(n) + 1), 5)).collect::<Result<Vec<_>, _>>()?;
    for peer in &peers {
        says(peer, LONG, Some(PeerState::Served))?;
    }
    victim.kill(libc::SIGKILL)?;
    victim.wait()?;
    let mut answers = [0, 0];
    for peer in &peers {
        match peer.ask(Duration::from_secs(1)).map_err(|e| e.to_string())? {
            Some(PeerState::Abandoned) => answers[0] += 1,
            None => answers[1] += 1,
            Some(PeerState::Served) => return Err("a dead process serves".to_owned()),
        }
    }
    ensure(answers == [kept, FORGOTTEN], || format!("{answers:?} are kept and forgotten"))
}

/// What `peer`, to which `socket` is the other end, asks in vain.
fn questions(peer: &Peer, socket: &UdpSocket, count: usize) -> Result<Vec<Vec<u8>>, String> {
    let mut heard = Vec::new();
    thread::scope(|scope| {
        let asking = scope.spawn(|| says(peer, Duration::from_secs(2), None));
        wait_until("questions", || {
            let mut room = [0; 100];
            if let Ok(length) = socket.recv(&mut room) {
                heard.push(room[..length].to_vec());
            }
            heard.len() >= count
        })?;
        asking.join().expect("no panic")
    })?;
    for question in &heard {
        ensure(question.len() == DATAGRAM_BYTES && question[KIND] == QUESTION, || {
            format!("a question is {question:?}")
        })?;
    }
    Ok(heard)
}

/// Sends what gets no answer and then what does, which is the first to be heard of.
fn only_last_is_answered(
    socket: &UdpSocket,
    bad: &[Vec<u8>],
    good: &[u8],
) -> Result<Vec<u8>, String> {
    for datagram in bad.iter().map(Vec::as_slice).chain([good]) {
        socket.send(datagram).map_err(|e| e.to_string())?;
    }
    let mut answer = [0; 100];
    wait_until("the answer", || socket.recv(&mut answer).is_ok())?;
    ensure(answer[KIND] == ANSWER && answer[8..16] == good[8..16], || {
        format!("{good:?} is answered {answer:?}")
    })?;
    ensure(socket.recv(&mut answer).is_err(), || "a second answer".to_owned())?;
    Ok(answer[..DATAGRAM_BYTES].to_vec())
}

fn strangers_hear_nothing() -> Outcome {
    let here = end(at(HERE), at(THERE), 6)?;
    let socket = udp_socket(THERE, HERE)?;
    let questions = questions(&here, &socket, 5)?;
    drop((here, socket));
    let _there = end(at(THERE), at(HERE), 6)?;
    let socket = udp_socket(HERE, THERE)?;

    let mut bad = vec![vec![], vec![0; DATAGRAM_BYTES], vec![0xff; 1400]];
    bad.push(questions[0][..DATAGRAM_BYTES - 1].to_vec());
    bad.push([&questions[0][..], &[0]].concat());
    for byte in 0..DATAGRAM_BYTES {
        let mut spoilt = questions[0].clone();
        spoilt[byte] ^= 1;
        bad.push(spoilt);
    }
    let answer = only_last_is_answered(&socket, &bad, &questions[1])?;
    let replayed = [questions[1].clone(), answer];
    only_last_is_answered(&socket, &replayed, &questions[2])?;
    let overtaken = [questions[0].clone(), questions[2].clone()];
    only_last_is_answered(&socket, &overtaken, &questions[3]).map(drop)
}

fn strangers_answers_are_none() -> Outcome {
    let here = end(at(HERE), at(THERE), 7)?;
    let socket = udp_socket(THERE, HERE)?;
    thread::scope(|scope| {
        let asking = scope.spawn(|| says(&here, Duration::from_secs(1), None));
        let mut room = [0; DATAGRAM_BYTES];
        wait_until("a question", || socket.recv(&mut room).is_ok())?;
        let mut answer = room;
        answer[KIND] = ANSWER;
        answer[KIND + 1] = abi::TCMI_PEER_SERVED as u8;
        for said in [&room, &answer, &[0; DATAGRAM_BYTES]] {
            socket.send(said).map_err(|e| e.to_string())?;
        }
        asking.join().expect("no panic")
    })
}

fn refused() -> Outcome {
    let code =
        |to: SocketAddr| Peer::set(at(HERE), to, [0; 32], [1; 32]).map(drop).map_err(|e| e.code);
    let v6 = SocketAddr::from((Ipv6Addr::LOCALHOST, THERE));
    ensure(code(v6) == Err(libc::EAFNOSUPPORT), || "two families".to_owned())?;
    let mut elsewhere = Victim::start(|| {
        // SAFETY: plain call in a child of one thread.
        let alone = unsafe { libc::unshare(libc::CLONE_NEWNET) } == 0;
        let refused = code(at(THERE)) == Err(libc::EOPNOTSUPP);
        // SAFETY: ends the child without running the test's destructors.
        unsafe { libc::_exit(i32::from(!(alone && refused))) };
    })?;
    let status = elsewhere.wait()?;
    ensure(status == 0, || format!("in another network namespace: status {status:#x}"))?;

    let session = File::options().read(true).write(true).open(DEVICE);
    let session = session.map_err(|e| e.to_string())?;
    let mut room = [0u8; 256];
    let mut command = |number| {
        // SAFETY: `room` is longer than any argument.
        system(
            "ioctl",
            unsafe { libc::ioctl(session.as_raw_fd(), number, room.as_mut_ptr()) }.into(),
        )
    };
    for number in [abi::TCMI_PEER_ASK, abi::TCMI_PEER_FORGET, abi::TCMI_PEER_SET] {
        ensure(command(number).is_err(), || format!("{number:#x} of nothing"))?;
    }
    Ok(())
}

const CASES: &[Case] = &[
    ("both answer", both_answer),
    ("over IPv6", over_ipv6),
    ("other keys", other_keys),
    ("killed", killed),
    ("strangers hear nothing", strangers_hear_nothing),
    ("strangers' answers are none", strangers_answers_are_none),
    ("refused", refused),
];

fn main() -> ExitCode {
    run(CASES)
}
