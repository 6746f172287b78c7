//! HTTP, on either end.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;

use crate::account::children;
use crate::catalogue::Moves;
use crate::started::Started;
use crate::wait::wait_until;

const SOON: Duration = Duration::from_secs(30);

/// A port that nobody listens on.
pub fn free_port() -> Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}

/// A connection, once somebody listens.
pub fn connect(port: u16) -> Result<TcpStream> {
    wait_until("a server that listens", SOON, || {
        Ok(TcpStream::connect((Ipv4Addr::LOCALHOST, port)).ok())
    })
}

fn get(port: u16, path: &str) -> Result<String> {
    let mut stream = connect(port)?;
    write!(stream, "GET {path} HTTP/1.0\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (_, body) = answer.split_once("\r\n\r\n").context("an answer without a head")?;
    Ok(body.to_owned())
}

const NODE: &str = r#"
    let served = 0, ticks = 0;
    setInterval(() => { ticks++; }, 5);
    require('http').createServer((request, response) => {
        if (request.url === '/served') return response.end(String(served));
        if (request.url === '/ticks') return response.end(String(ticks));
        served++;
        response.end('hello');
    }).listen(Number(process.argv[1]), '127.0.0.1');
    process.on('SIGTERM', () => process.exit(5));
"#;

pub fn node(at: &Path, moves: &mut dyn Moves) -> Result<String> {
    let port = free_port()?;
    let mut command = Command::new("node");
    command.args(["-e", NODE, &port.to_string()]).stdin(Stdio::null());
    let server = Started::by(command.stderr(File::create(at.join("errors"))?))?;
    connect(port)?;
    let number = |path: &str| -> Result<u64> { Ok(get(port, path)?.parse()?) };
    let more = |path: &str, by: u64| -> Result<()> {
        let before = number(path)?;
        wait_until(&format!("{by} more {path}"), SOON, || {
            Ok((number(path)? >= before + by).then_some(()))
        })
    };
    let load = Command::new("wrk")
        .args(["-t1", "-c8", "-d5s", &format!("http://127.0.0.1:{port}/")])
        .stdout(Stdio::piped())
        .spawn()?;
    more("/served", 200)?;
    moves.out(server.pid())?;
    more("/served", 200)?;
    more("/ticks", 20)?;
    moves.home(server.pid())?;
    more("/served", 200)?;
    let said = String::from_utf8(load.wait_with_output()?.stdout)?;
    ensure!(!said.contains("Socket errors") && !said.contains("Non-2xx"), "{said}");
    let told = said.lines().find_map(|line| line.trim().split_once(" requests in "));
    let told: u64 = told.context("wrk told no requests")?.0.parse()?;
    ensure!(number("/served")? >= told, "fewer served than answered: {said}");
    server.signal(Signal::SIGTERM)?;
    Ok(format!("{}; {}", server.end(SOON)?, fs::read_to_string(at.join("errors"))?))
}

/// Its two workers share zones and a mutex.
pub fn nginx(at: &Path, moves: &mut dyn Moves) -> Result<String> {
    let port = free_port()?;
    let configuration = format!(
        "daemon off; user root; worker_processes 2; pid pid; error_log errors;\n\
         events {{ worker_connections 64; }}\n\
         http {{ access_log access; limit_req_zone $uri zone=z:1m rate=100000r/s;\n\
         client_body_temp_path t; proxy_temp_path t; fastcgi_temp_path t; uwsgi_temp_path t;\n\
         scgi_temp_path t; server {{ listen 127.0.0.1:{port}; root .; \
         limit_req zone=z burst=100000 nodelay; }} }}\n"
    );
    fs::write(at.join("nginx.conf"), configuration)?;
    let page: String = (0..2000).map(|n| format!("line {n}\n")).collect();
    fs::write(at.join("page"), &page)?;
    let mut command = Command::new("nginx");
    command.arg("-p").arg(at).args(["-c", "nginx.conf", "-e", "errors"]);
    let server = Started::by(&mut command)?;
    wait_until("nginx and its workers", SOON, || {
        connect(port)?;
        Ok((children(server.pid())?.len() == 2).then_some(()))
    })?;
    let load = Command::new("wrk")
        .args(["-t1", "-c4", "-d4s", &format!("http://127.0.0.1:{port}/page")])
        .stdout(Stdio::piped())
        .spawn()?;
    for _ in 0..2 {
        moves.tree_out(server.pid())?;
        ensure!(get(port, "/page")? == page, "it serves something else");
        // Those that share memory come together.
        moves.home(server.pid())?;
        ensure!(get(port, "/page")? == page, "it serves something else");
    }
    let said = String::from_utf8(load.wait_with_output()?.stdout)?;
    ensure!(said.contains(" requests in "), "{said}");
    ensure!(!said.contains("Socket errors") && !said.contains("Non-2xx"), "{said}");
    server.signal(Signal::SIGQUIT)?;
    Ok(format!("{}; {}", server.end(SOON)?, fs::read_to_string(at.join("errors"))?))
}

/// Bytes of the download, and of each piece of it.
const DOWNLOAD_BYTES: usize = 24 << 20;
const PIECE_BYTES: usize = 1 << 16;

fn piece(number: usize) -> Vec<u8> {
    let mut x = number as u32 | 1;
    let next = |_| {
        x ^= x << 13;
        x ^= x >> 17;
        x ^= x << 5;
        x as u8
    };
    (0..PIECE_BYTES).map(next).collect()
}

/// Serves one request.
fn serve(listener: &TcpListener) -> Result<()> {
    let (mut stream, _) = listener.accept()?;
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    while lines.next().is_some_and(|line| line.is_ok_and(|l| !l.is_empty())) {}
    write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {DOWNLOAD_BYTES}\r\n\r\n")?;
    for number in 0..DOWNLOAD_BYTES / PIECE_BYTES {
        stream.write_all(&piece(number))?;
    }
    Ok(())
}

/// Waits until it has written so many bytes more.
fn grows(client: &mut Started, file: &Path, by: u64) -> Result<()> {
    let len = || fs::metadata(file).map_or(0, |m| m.len());
    let before = len();
    wait_until("more of the file", SOON, || {
        ensure!(client.has_ended()?.is_none(), "it ended too soon");
        Ok((len() >= before + by).then_some(()))
    })
}

pub fn curl(at: &Path, moves: &mut dyn Moves) -> Result<String> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let url = format!("http://{}/file", listener.local_addr()?);
    let server = thread::spawn(move || serve(&listener));
    let mut command = Command::new("curl");
    command.args(["-sS", "--limit-rate", "8M", "-o", "file", &url]).current_dir(at);
    let mut client = Started::by(command.stderr(File::create(at.join("errors"))?))?;
    let file = at.join("file");
    grows(&mut client, &file, 4 << 20)?;
    moves.out(client.pid())?;
    grows(&mut client, &file, 4 << 20)?;
    moves.home(client.pid())?;
    let status = client.end(SOON)?;
    server.join().expect("a server does not panic")?;
    let whole: Vec<u8> = (0..DOWNLOAD_BYTES / PIECE_BYTES).flat_map(piece).collect();
    ensure!(fs::read(&file)? == whole, "another file");
    Ok(format!("{status}; {}", fs::read_to_string(at.join("errors"))?))
}
