//! What we say to the kernel module and what its header says are the same.

use std::mem::{offset_of, size_of};
use std::process::Command;
use tcmi_sys::kmod::abi::*;

/// (C expression, our value)
type Check = (String, u64);

macro_rules! layout {
    ($rust:ident, $c:literal, $($field:ident = $name:literal),*) => {{
        let mut all: Vec<Check> = vec![(format!("sizeof(struct {})", $c), size_of::<$rust>() as u64)];
        $(all.push((
            format!("offsetof(struct {}, {})", $c, $name),
            offset_of!($rust, $field) as u64,
        ));)*
        all
    }};
}

macro_rules! constants {
    ($($name:ident)*) => { vec![$((stringify!($name).to_owned(), $name as u64)),*] };
}

fn checks() -> Vec<Check> {
    let mut all = constants!(TCMI_ABI TCMI_FREEZE_TREE TCMI_EVENT_STOP TCMI_EVENT_CONTINUE
        TCMI_EVENT_KILL TCMI_EVENT_EXIT TCMI_CTL_READ TCMI_CTL_WRITE TCMI_CTL_READLINK
        TCMI_CTL_NONBLOCK TCMI_VERSION TCMI_FREEZE TCMI_CAPTURE TCMI_THAW TCMI_WATCH TCMI_UNWATCH
        TCMI_CTL_SERVE TCMI_CTL_ADD TCMI_CTL_REMOVE TCMI_SEND TCMI_PEER_SERVED
        TCMI_PEER_ABANDONED TCMI_PEERS_ABANDONED_MAX TCMI_PEER_SET TCMI_PEER_ASK TCMI_PEER_FORGET
        TCMI_CHARGE);
    all.extend(layout!(
        Version,
        "tcmi_version",
        abi = "abi",
        ctl_entries = "ctl_entries",
        ctl_hash = "ctl_hash"
    ));
    all.extend(layout!(
        FreezeArgs,
        "tcmi_freeze_args",
        pid = "pid",
        flags = "flags",
        timeout_ms = "timeout_ms",
        processes = "processes",
        threads = "threads",
        reserved = "reserved"
    ));
    all.extend(layout!(
        CaptureArgs,
        "tcmi_capture_args",
        buffer = "buffer",
        length = "length",
        reserved = "reserved"
    ));
    all.extend(layout!(
        SendArgs,
        "tcmi_send_args",
        pid = "pid",
        socket = "socket",
        address = "address",
        length = "length",
        sent = "sent"
    ));
    all.extend(layout!(WatchArgs, "tcmi_watch_args", pid = "pid", reserved = "reserved"));
    all.extend(layout!(
        ChargeArgs,
        "tcmi_charge_args",
        pid = "pid",
        reserved = "reserved",
        utime = "utime",
        stime = "stime",
        min_flt = "min_flt",
        maj_flt = "maj_flt",
        maxrss = "maxrss"
    ));
    all.extend(layout!(ServeArgs, "tcmi_ctl_serve_args", reserved = "reserved"));
    all.extend(layout!(
        AddArgs,
        "tcmi_ctl_add_args",
        entry = "entry",
        uid = "uid",
        gid = "gid",
        reserved = "reserved",
        key = "key",
        name = "name"
    ));
    all.extend(layout!(
        RemoveArgs,
        "tcmi_ctl_remove_args",
        entry = "entry",
        reserved = "reserved",
        key = "key"
    ));
    all.extend(layout!(
        PeerSetArgs,
        "tcmi_peer_set_args",
        sent_key = "sent_key",
        received_key = "received_key",
        local = "local",
        remote = "remote"
    ));
    all.extend(layout!(
        PeerAskArgs,
        "tcmi_peer_ask_args",
        timeout_ms = "timeout_ms",
        state = "state"
    ));
    all.extend(layout!(
        RawEvent,
        "tcmi_event",
        kind = "type",
        length = "length",
        pid = "pid",
        what = "what",
        stop_signal = "stop_signal",
        status = "status"
    ));
    all.extend(layout!(
        RawRequest,
        "tcmi_request",
        kind = "type",
        length = "length",
        id = "id",
        key = "key",
        entry = "entry",
        op = "op",
        flags = "flags",
        uid = "uid",
        gid = "gid",
        tid = "tid",
        target = "target",
        data_length = "data_length"
    ));
    all.extend(layout!(
        RawProcess,
        "tcmi_captured_process",
        kind = "type",
        length = "length",
        pid = "pid",
        stopped_by = "stopped_by",
        pending = "pending",
        pending_count = "pending_count",
        reserved = "reserved",
        actions = "actions"
    ));
    all.extend(layout!(
        RawThread,
        "tcmi_captured_thread",
        kind = "type",
        length = "length",
        pid = "pid",
        tid = "tid",
        regs = "regs",
        blocked = "blocked",
        pending = "pending",
        altstack_sp = "altstack_sp",
        altstack_size = "altstack_size",
        altstack_flags = "altstack_flags",
        rseq_signature = "rseq_signature",
        rseq = "rseq",
        rseq_length = "rseq_length",
        pending_count = "pending_count",
        robust_list = "robust_list",
        clear_child_tid = "clear_child_tid",
        xstate_length = "xstate_length",
        flags = "flags"
    ));
    all
}

#[test]
fn the_header_says_the_same() {
    let header = concat!(env!("CARGO_MANIFEST_DIR"), "/../../kmod/uapi/tcmi.h");
    let mut source = format!("#include <stddef.h>\n#include \"{header}\"\n");
    for (expression, value) in checks() {
        source.push_str(&format!(
            "_Static_assert(({expression}) == {value}ULL, \"{expression} is not {value}\");\n"
        ));
    }
    let dir = std::env::temp_dir().join(format!("tcmi-kmod-abi-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let file = dir.join("abi.c");
    std::fs::write(&file, source).unwrap();
    let cc = Command::new("cc").arg("-fsyntax-only").arg(&file).output().expect("cc");
    std::fs::remove_dir_all(&dir).unwrap();
    assert!(cc.status.success(), "{}", String::from_utf8_lossy(&cc.stderr));
}
