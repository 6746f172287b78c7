//! Bulk rate over loopback: raw TCP, then a bulk stream, in one run. `bulk [MiB]`

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use tcmi_kkc::{Endpoint, Identity, Stream, StreamKind};

fn main() {
    let mib: usize = std::env::args().nth(1).map_or(2048, |a| a.parse().expect("MiB"));
    let source: Vec<u8> =
        (0..64 << 20).map(|i: u32| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    for round in 1..=3 {
        let tcp = raw(&source, mib);
        let sealed = bulk(&source, mib, false);
        let gathered = bulk(&source, mib, true);
        println!(
            "{round}: raw TCP {tcp:.2} GB/s, bulk stream {sealed:.2} GB/s, without a copy {gathered:.2} GB/s, ratio {:.2}",
            gathered / tcp
        );
    }
    let (seal, open) = cipher();
    println!("one core: seal {seal:.2} GB/s, open {open:.2} GB/s");
}

fn rate(mib: usize, since: Instant) -> f64 {
    (mib << 20) as f64 / since.elapsed().as_secs_f64() / 1e9
}

fn raw(source: &[u8], mib: usize) -> f64 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("listen");
    let mut out = TcpStream::connect(listener.local_addr().expect("address")).expect("connect");
    let (mut inp, _) = listener.accept().expect("accept");
    let start = Instant::now();
    thread::scope(|s| {
        s.spawn(move || {
            let mut left = mib << 20;
            while left > 0 {
                for piece in source.chunks(512 << 10).take(left >> 19) {
                    out.write_all(piece).expect("send");
                    left -= piece.len();
                }
            }
        });
        let (mut buf, mut left) = (vec![0; 512 << 10], mib << 20);
        while left > 0 {
            left -= inp.read(&mut buf).expect("receive");
        }
    });
    rate(mib, start)
}

fn pair() -> (Endpoint, Endpoint, Stream, Stream) {
    let wait = Duration::from_secs(10);
    let (events, _home_events) = crossbeam_channel::unbounded();
    let home =
        Endpoint::new(Identity::ephemeral().expect("key"), "home", vec![], events).expect("home");
    let (events, _desk_events) = crossbeam_channel::unbounded();
    let desk =
        Endpoint::new(Identity::ephemeral().expect("key"), "desk", vec![], events).expect("desk");
    home.trust(desk.key());
    let listener = home.listen("tcp:127.0.0.1:0").expect("listen");
    let id = desk.connect(&format!("tcp:{}", listener.sockname), home.key()).expect("connect");
    let link = loop {
        if let Some(link) = home.links().pop() {
            break link;
        }
        thread::yield_now();
    };
    let ours = link.take_stream(StreamKind::Bulk, wait).expect("stream");
    let theirs = desk.link(id).expect("link").claim_stream(ours.id, wait).expect("claim");
    (home, desk, ours, theirs)
}

fn bulk(source: &[u8], mib: usize, gather: bool) -> f64 {
    let (_home, _desk, ours, theirs) = pair();
    let start = Instant::now();
    thread::scope(|s| {
        s.spawn(move || {
            let (mut writer, _reader) = ours.into_bulk();
            let mut left = mib << 20;
            while left > 0 {
                if gather {
                    // As after a read out of a process straight into the records.
                    let n: usize = writer.spaces(left).expect("room").iter().map(|r| r.len()).sum();
                    writer.commit(n).expect("seal");
                    left -= n;
                } else {
                    let n = source.len().min(left);
                    writer.write(&source[..n]).expect("send");
                    left -= n;
                }
            }
            writer.finish().expect("finish");
        });
        let (_writer, mut reader) = theirs.into_bulk();
        let mut left = mib << 20;
        while left > 0 {
            let n = reader.fill().expect("receive").len();
            reader.consume(n);
            left -= n;
        }
    });
    rate(mib, start)
}

fn cipher() -> (f64, f64) {
    use tcmi_call::record::{Aead, DirectionKeys, PLAIN_MAX_BYTES};
    let keys = DirectionKeys { key: [1; 32], iv: [2; 12], pad: 0, seq: 0 };
    let mut aead = tcmi_kkc::aead::RingAead::new(StreamKind::Bulk, &keys);
    let mut data = vec![0; PLAIN_MAX_BYTES];
    let start = Instant::now();
    let mut tag = [0; 16];
    for _ in 0..65_536 {
        tag = aead.seal(&[0; 12], &[0; 5], &mut data);
    }
    let seal = rate(1024, start);
    let start = Instant::now();
    let mut opened = 0;
    for _ in 0..65_536 {
        opened += u32::from(aead.open(&[0; 12], &[0; 5], &mut data, &tag));
    }
    assert!(opened <= 1, "one ciphertext is opened once in place");
    (seal, rate(1024, start))
}
