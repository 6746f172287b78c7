//! Tables for people, JSON for programs.

use std::path::Path;

use comfy_table::{ContentArrangement, Table, presets};
use serde_json::json;
use tcmi_core::command::Pid;

use crate::failure::Failure;
use crate::node::{Peer, Process, Role};

/// Shown for a node that is not connected.
pub const NODE_GONE: &str = "a node that is gone";

pub fn nodes(peers: &[Peer], json: bool) -> String {
    if json {
        return json!(peers).to_string();
    }
    if peers.is_empty() {
        return "no node is connected".to_owned();
    }
    let mut table = table(&["N", "NAME", "IS OUR", "STATE", "ADDRESS", "LOAD"]);
    for peer in peers {
        let relation = match peer.role {
            Role::Ccn => "execution node",
            Role::Pen => "home",
        };
        table.add_row([
            &peer.number.to_string(),
            &peer.name,
            relation,
            &peer.state,
            &peer.address,
            &peer.load,
        ]);
    }
    table.to_string()
}

pub fn processes(processes: &[Process], json: bool) -> String {
    if json {
        return json!(processes).to_string();
    }
    if processes.is_empty() {
        return "no process is away, and no guest is here".to_owned();
    }
    let mut table = table(&["PID", "UID", "WHERE", "STATE", "REMOTE PID", "LAST ERROR"]);
    for process in processes {
        let node = process.node.as_deref().unwrap_or(NODE_GONE);
        let place = match process.role {
            Role::Ccn => format!("on {node}"),
            Role::Pen => format!("here, from {node}"),
        };
        table.add_row([
            &process.pid.to_string(),
            &process.uid.to_string(),
            &place,
            &process.state,
            &process.remote_pid.to_string(),
            &process.last_error,
        ]);
    }
    table.to_string()
}

fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Dynamic);
    table.set_header(header);
    table
}

/// `node` is None for home.
pub fn moved(pid: Pid, node: Option<&str>, json: bool) -> String {
    match (json, node) {
        (true, node) => json!({ "pid": pid.raw(), "node": node }).to_string(),
        (false, Some(node)) => format!("process {pid} runs on {node}"),
        (false, None) => format!("process {pid} runs at home"),
    }
}

pub fn saved(pid: Pid, file: &Path, json: bool) -> String {
    match json {
        true => json!({ "pid": pid.raw(), "image": file }).to_string(),
        false => format!("process {pid} is saved in {}, and runs on", file.display()),
    }
}

pub fn explanation(pid: Pid, answer: &str, json: bool) -> String {
    if json {
        json!({ "pid": pid.raw(), "answer": answer.lines().collect::<Vec<_>>() }).to_string()
    } else {
        answer.trim_end().to_owned()
    }
}

pub fn key(name: &str, key: &str, json: bool) -> String {
    if json { json!({ "name": name, "key": key }).to_string() } else { key.to_owned() }
}

pub fn failure(failure: &Failure) -> String {
    json!({ "error": failure.to_string(), "errno": failure.errno() }).to_string()
}
