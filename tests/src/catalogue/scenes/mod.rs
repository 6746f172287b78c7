//! Programs with others around them.

mod databases;
mod screens;
mod servers;

use super::{Entry, Work};

pub use databases::start_redis;
pub use servers::{connect, free_port};

const POSTGRES: &[(&str, &str)] =
    &[("/usr/lib/postgresql", "postgresql"), ("runuser", "util-linux")];

pub fn entries() -> Vec<Entry> {
    let scene = |name, shows, needs, scene| Entry {
        name,
        shows,
        needs,
        quick: true,
        work: Work::Scene(scene),
    };
    let by_hand = |entry: Entry| Entry { quick: false, ..entry };
    vec![
        scene(
            "redis-server",
            "redis-benchmark and another client are connected: no reset, and each write that was \
             acknowledged is in its file",
            &[("redis-server", "redis-server"), ("redis-benchmark", "redis-tools")],
            databases::redis,
        ),
        scene(
            "sqlite3-killed",
            "it commits, and is killed away: each commit that was told is there, the file is whole",
            &[("sqlite3", "sqlite3")],
            databases::sqlite_killed,
        ),
        scene(
            "sqlite3-two",
            "two write to one database, whose log has an index that both have mapped, and move as a tree",
            &[("sqlite3", "sqlite3")],
            databases::sqlite_two,
        ),
        by_hand(scene(
            "postgres",
            "pgbench has connections and makes more, and the server moves as a tree: no transaction fails, each \
             that was told is there (with dynamic_shared_memory_type=sysv, without autovacuum)",
            POSTGRES,
            databases::postgres,
        )),
        by_hand(scene(
            "postgres-default",
            "the same with the settings that it comes with: files in /dev/shm are mapped shared, and \
             autovacuum works",
            POSTGRES,
            databases::postgres_by_default,
        )),
        scene(
            "node",
            "it serves wrk by HTTP and has a timer: no request fails",
            &[("node", "nodejs"), ("wrk", "wrk")],
            servers::node,
        ),
        scene(
            "nginx",
            "it serves wrk with two workers, which share memory, and moves as a tree: no request fails",
            &[("nginx", "nginx-light"), ("wrk", "wrk")],
            servers::nginx,
        ),
        scene("curl", "it downloads a file", &[("curl", "curl")], servers::curl),
        scene(
            "bash-jobs",
            "jobs of a shell at a terminal are stopped, resumed and interrupted",
            &[("bash", "bash")],
            screens::jobs,
        ),
        scene(
            "tmux",
            "vim writes a file in it, less reads one: screens and file are compared",
            &[("tmux", "tmux"), ("vim", "vim"), ("less", "less")],
            screens::tmux,
        ),
        scene("top", "it shows processes", &[("top", "procps")], screens::top),
    ]
}
