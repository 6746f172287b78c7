//! A source that is refused often is logged once. Alone in its program: it counts log lines.

mod common;

use common::{Node, until};
use std::io::{self, Write};
use std::net::TcpStream;
use std::sync::{Arc, Mutex};

#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn twenty_refusals_are_one_line() {
    let lines = Lines::default();
    let writer = lines.clone();
    tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).init();
    let home = Node::new("home");
    let listener = home.endpoint.listen("tcp:127.0.0.1:0").unwrap();
    for _ in 0..20 {
        TcpStream::connect(listener.sockname).unwrap().write_all(b"SSH-2.0-x\r\n").unwrap();
    }
    until("all refused", || home.endpoint.refused() == 20);
    let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
    assert_eq!(text.matches("refused a connection").count(), 1, "{text}");
    assert!(text.contains("127.0.0.1"), "{text}");
}
