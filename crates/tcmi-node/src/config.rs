//! What a daemon is told: its flags, and the file they override.

use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};

use clap::{CommandFactory, Parser};
use serde::Deserialize;
use tcmi_core::command::{Address, GrammarError, KeyText, NodeName};
use tcmi_core::limits::FAMILY_PROCESSES;

/// tcmid, the node daemon
///
/// Serves this machine's control filesystem, and moves processes as the files in it
/// are told. Runs in the foreground; SIGTERM, SIGINT and SIGHUP end it.
#[derive(Debug, Parser)]
#[command(name = "tcmid", version, max_term_width = 100)]
pub struct Args {
    /// What this node calls itself; the host's name if absent
    #[arg(long)]
    pub name: Option<NodeName>,
    /// Its identity and whom it trusts; made if absent [default: /var/lib/tcmi]
    #[arg(long, value_name = "DIR")]
    pub state: Option<PathBuf>,
    /// Where to mount the control filesystem; made if absent [default: /run/tcmi]
    #[arg(long, value_name = "DIR")]
    pub ctlfs: Option<PathBuf>,
    /// Root directory of guests; a private empty one if absent
    #[arg(long, value_name = "DIR")]
    pub pen_root: Option<PathBuf>,
    /// Serve the control filesystem by FUSE even where the kernel module is loaded
    #[arg(long)]
    pub no_module: bool,
    /// Settings in TOML; flags override it
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
}

/// For the man page.
pub fn definition() -> clap::Command {
    Args::command()
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
struct File {
    name: Option<String>,
    state: Option<PathBuf>,
    ctlfs: Option<PathBuf>,
    pen_root: Option<PathBuf>,
    no_module: bool,
    listen: Vec<String>,
    trust: Vec<String>,
    connect: Vec<FileHome>,
    family_processes: Option<u64>,
    guests: FileGuests,
    resources: FileResources,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
struct FileResources {
    files: Option<String>,
    copy: Vec<String>,
    #[serde(rename = "move")]
    moves: Vec<String>,
    mapped_files: Option<String>,
    devices: Option<String>,
    processors: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
struct FileGuests {
    at_once: Option<u64>,
    memory_mib: Option<u64>,
    threads: Option<u64>,
    cpu_weight: Option<u64>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileHome {
    address: String,
    key: String,
}

/// A home that this machine offers itself to for as long as it runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Home {
    pub address: Address,
    pub key: KeyText,
}

/// What is done with a reference to a resource at home, in the terms of the literature.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// Stays a reference: each call goes home.
    Gr,
    /// Copied by content.
    Cp,
    /// Lives on the node, and comes back.
    Mv,
    /// The node's own.
    Rb,
}

impl Rule {
    const ALL: [Self; 4] = [Self::Gr, Self::Cp, Self::Mv, Self::Rb];

    pub fn name(self) -> &'static str {
        match self {
            Self::Gr => "GR",
            Self::Cp => "CP",
            Self::Mv => "MV",
            Self::Rb => "RB",
        }
    }
}

/// By kind of resource.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rules {
    /// Those in no place that is named below.
    pub files: Rule,
    /// Where files lie that are read on the node, and that do not change: also as this machine's
    /// links lead there.
    pub copied: Vec<String>,
    /// The same of files that are made and written on the node.
    pub moved: Vec<String>,
    pub mapped_files: Rule,
    /// Null, zero and random.
    pub devices: Rule,
    pub processors: Rule,
}

impl Rules {
    /// As a move has to know them.
    pub fn migration(&self) -> tcmi_migr::source::Rules {
        let is_nodes = |rule| rule == Rule::Rb;
        tcmi_migr::source::Rules {
            devices: is_nodes(self.devices),
            processors: is_nodes(self.processors),
            copied: self.copied.clone(),
            moved: self.moved.clone(),
        }
    }
}

/// What a guest here may use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    /// Guests that may be here. None: as many as come.
    pub at_once: Option<usize>,
    /// In bytes. None: what there is.
    pub memory: Option<u64>,
    /// Its program's threads.
    pub threads: u32,
    /// Of processor time, where a group that was given none has 100.
    pub cpu_weight: u64,
}

#[derive(Debug, PartialEq, Eq)]
pub struct Config {
    pub name: NodeName,
    pub state: PathBuf,
    pub ctlfs: PathBuf,
    pub pen_root: Option<PathBuf>,
    /// The kernel module is left alone.
    pub no_module: bool,
    pub listen: Vec<Address>,
    pub trust: Vec<KeyText>,
    pub connect: Vec<Home>,
    /// Processes that may be away because one that is away began them, and that one.
    pub family_processes: usize,
    pub guests: Grant,
    pub resources: Rules,
}

#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("{path}: {source}")]
    Read { path: PathBuf, source: io::Error },
    #[error("{path}: {source}")]
    Toml { path: PathBuf, source: Box<toml::de::Error> },
    #[error("{what} {text:?}: {source}")]
    Value { what: &'static str, text: String, source: GrammarError },
    #[error("{what} is {value}: from {min} to {max} is possible")]
    Range { what: &'static str, value: u64, min: u64, max: u64 },
    #[error("resources: {what} is {value:?}: {possible} is possible")]
    Rule { what: &'static str, value: String, possible: String },
    #[error(
        "resources: {what} is {value:?}: the name of a directory with files on a disk is possible"
    )]
    Place { what: &'static str, value: String },
    #[error("no --name, and the host's name {0:?} cannot be one")]
    NoName(String),
}

const HOST_NAME_FILE: &str = "/proc/sys/kernel/hostname";
const THREADS_DEFAULT: u64 = 1024;
const CPU_WEIGHT_DEFAULT: u64 = 20;
const MIB: u64 = 1 << 20;
/// What is not more is no guest's.
const MEMORY_MIB_MIN: u64 = 4;
const MEMORY_MIB_MAX: u64 = 1 << 40;
/// Of Linux: PID_MAX_LIMIT, CGROUP_WEIGHT_MAX.
const THREADS_MAX: u64 = 1 << 22;
const CPU_WEIGHT_MAX: u64 = 10_000;

impl Config {
    pub fn load(args: Args) -> Result<Self, ConfigError> {
        let file = match &args.config {
            Some(path) => read(path)?,
            None => File::default(),
        };
        let name = match (args.name, file.name) {
            (Some(name), _) => name,
            (None, Some(text)) => value("name", &text)?,
            (None, None) => host_name()?,
        };
        let home = |home: &FileHome| {
            Ok(Home { address: value("address", &home.address)?, key: value("key", &home.key)? })
        };
        Ok(Self {
            name,
            state: args.state.or(file.state).unwrap_or_else(|| "/var/lib/tcmi".into()),
            ctlfs: args.ctlfs.or(file.ctlfs).unwrap_or_else(|| "/run/tcmi".into()),
            pen_root: args.pen_root.or(file.pen_root),
            no_module: args.no_module || file.no_module,
            listen: values("listen", &file.listen)?,
            trust: values("trust", &file.trust)?,
            connect: file.connect.iter().map(home).collect::<Result<_, _>>()?,
            family_processes: within(
                "family-processes",
                file.family_processes.unwrap_or(FAMILY_PROCESSES),
                (1, THREADS_MAX),
            )? as usize,
            guests: grant(&file.guests)?,
            resources: rules(&file.resources)?,
        })
    }
}

fn grant(file: &FileGuests) -> Result<Grant, ConfigError> {
    let mib = |mib| within("memory-mib", mib, (MEMORY_MIB_MIN, MEMORY_MIB_MAX));
    let threads = file.threads.unwrap_or(THREADS_DEFAULT);
    let weight = file.cpu_weight.unwrap_or(CPU_WEIGHT_DEFAULT);
    let at_once = file.at_once.map(|most| within("at-once", most, (1, THREADS_MAX)));
    Ok(Grant {
        at_once: at_once.transpose()?.map(|most| most as usize),
        memory: file.memory_mib.map(mib).transpose()?.map(|mib| mib * MIB),
        threads: within("threads", threads, (1, THREADS_MAX))? as u32,
        cpu_weight: within("cpu-weight", weight, (1, CPU_WEIGHT_MAX))?,
    })
}

fn rules(file: &FileResources) -> Result<Rules, ConfigError> {
    use Rule::{Cp, Gr, Rb};
    Ok(Rules {
        files: rule("files", &file.files, &[Gr])?,
        copied: places("copy", &file.copy)?,
        moved: places("move", &file.moves)?,
        mapped_files: rule("mapped-files", &file.mapped_files, &[Cp])?,
        devices: rule("devices", &file.devices, &[Gr, Rb])?,
        processors: rule("processors", &file.processors, &[Rb, Gr])?,
    })
}

/// The first of those that are `done` is taken where nothing is said.
fn rule(what: &'static str, value: &Option<String>, done: &[Rule]) -> Result<Rule, ConfigError> {
    let names = |rules: &[Rule]| rules.iter().map(|r| r.name()).collect::<Vec<_>>().join(" or ");
    let Some(value) = value else { return Ok(done[0]) };
    let found = done.iter().find(|rule| rule.name() == value);
    found.copied().ok_or_else(|| {
        let is_known = Rule::ALL.iter().any(|rule| rule.name() == value);
        let possible = names(done) + if is_known { " so far" } else { "" };
        ConfigError::Rule { what, value: value.clone(), possible }
    })
}

/// What is below these is no file of a disk, whatever its kind.
const NO_DISKS: [&str; 3] = ["/proc", "/sys", "/dev"];

/// Names as they were given, and where they lead.
fn places(what: &'static str, names: &[String]) -> Result<Vec<String>, ConfigError> {
    let mut all = Vec::new();
    for name in names {
        let tidy: PathBuf = Path::new(name).components().collect();
        // One that is not there yet leads nowhere else.
        let real = fs::canonicalize(&tidy).unwrap_or_else(|_| tidy.clone());
        for path in [tidy, real] {
            let is_odd = path.components().any(|part| part == Component::ParentDir);
            let is_root = path.parent().is_none();
            let has_no_disk = NO_DISKS.iter().any(|dir| path.starts_with(dir));
            if !path.is_absolute() || is_odd || is_root || has_no_disk {
                return Err(ConfigError::Place { what, value: name.clone() });
            }
            all.push(path.display().to_string());
        }
    }
    all.sort();
    all.dedup();
    Ok(all)
}

fn within(what: &'static str, value: u64, (min, max): (u64, u64)) -> Result<u64, ConfigError> {
    match (min..=max).contains(&value) {
        true => Ok(value),
        false => Err(ConfigError::Range { what, value, min, max }),
    }
}

fn read(path: &Path) -> Result<File, ConfigError> {
    let text = fs::read_to_string(path);
    let text = text.map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
    toml::from_str(&text).map_err(|source| {
        let source = Box::new(source);
        ConfigError::Toml { path: path.to_owned(), source }
    })
}

fn value<T>(what: &'static str, text: &str) -> Result<T, ConfigError>
where
    T: std::str::FromStr<Err = GrammarError>,
{
    text.parse().map_err(|source| ConfigError::Value { what, text: text.to_owned(), source })
}

fn values<T>(what: &'static str, texts: &[String]) -> Result<Vec<T>, ConfigError>
where
    T: std::str::FromStr<Err = GrammarError>,
{
    texts.iter().map(|text| value(what, text)).collect()
}

fn host_name() -> Result<NodeName, ConfigError> {
    let path = Path::new(HOST_NAME_FILE);
    let text = fs::read_to_string(path);
    let text = text.map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
    let label = text.trim().split('.').next().unwrap_or_else(|| text.trim());
    label.parse().map_err(|_| ConfigError::NoName(label.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(toml: &str, flags: &[&str]) -> Result<Config, ConfigError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tcmid.toml");
        fs::write(&path, toml).unwrap();
        let flags = ["tcmid", "--config", path.to_str().unwrap()].into_iter().chain(flags.to_vec());
        Config::load(Args::try_parse_from(flags).unwrap())
    }

    #[test]
    fn the_definition_is_consistent() {
        definition().debug_assert();
    }

    #[test]
    fn flags_override_the_file() {
        let config = load("name = 'home'\nstate = '/a'\n", &["--state", "/b"]).unwrap();
        assert_eq!(config.name.as_str(), "home");
        assert_eq!(config.state, Path::new("/b"));
        assert_eq!(config.ctlfs, Path::new("/run/tcmi"));
        assert!(!config.no_module);
        assert!(load("name = 'x'", &["--no-module"]).unwrap().no_module);
    }

    #[test]
    fn the_example_is_valid() {
        let config = load(include_str!("../tcmid.toml"), &["--name", "x"]).unwrap();
        assert_eq!((config.listen.len(), config.connect.len()), (0, 0));
        let Grant { at_once, memory, threads, cpu_weight } = config.guests;
        assert_eq!((at_once, memory, threads, cpu_weight), (None, None, 1024, 20));
        assert_eq!(config.family_processes, 128);
        let rules = |text: &str| load(text, &[]).unwrap().resources;
        assert_eq!(config.resources.devices, Rule::Gr);
        assert_eq!(config.resources.processors, Rule::Rb);
        let other = rules(
            "[resources]\nfiles = 'GR'\nmapped-files = 'CP'\ndevices = 'RB'\nprocessors = 'GR'",
        );
        assert_eq!((other.files, other.mapped_files), (Rule::Gr, Rule::Cp));
        assert_eq!((other.devices, other.processors), (Rule::Rb, Rule::Gr));
        let error = load("[resources]\nfiles = 'CP'", &[]).unwrap_err().to_string();
        assert_eq!(error, "resources: files is \"CP\": GR so far is possible");
        let dir = tempfile::tempdir().unwrap();
        let (real, link) = (dir.path().join("real"), dir.path().join("link"));
        fs::create_dir(&real).unwrap();
        std::os::unix::fs::symlink(&real, &link).unwrap();
        let text = |path: &Path| path.display().to_string();
        let places =
            rules(&format!("[resources]\ncopy = ['{}/']\nmove = ['/no/such']", text(&link)));
        let real = fs::canonicalize(&real).unwrap();
        assert_eq!(places.copied, [text(&link), text(&real)]);
        assert_eq!(places.moved, ["/no/such"]);
        let all_on: String = include_str!("../tcmid.toml")
            .lines()
            .map(|line| line.strip_prefix('#').filter(|l| !l.starts_with(' ')).unwrap_or(line))
            .collect::<Vec<_>>()
            .join("\n");
        let config = load(&all_on, &[]).unwrap();
        assert!(config.no_module);
        assert_eq!((config.listen.len(), config.trust.len(), config.connect.len()), (1, 1, 1));
        let Grant { at_once, memory, threads, cpu_weight } = config.guests;
        assert_eq!((at_once, memory, threads, cpu_weight), (Some(64), Some(2 << 30), 256, 100));
        assert_eq!(config.resources.moved, ["/var/tmp/scratch"]);
        assert_eq!(config.family_processes, 16);
    }

    #[test]
    fn what_is_unknown_or_wrong_is_refused() {
        for toml in [
            "nmae = 'x'",
            "name = '12'",
            "listen = ['127.0.0.1:1']",
            "connect = [{ address = 'tcp:h:1' }]",
            "trust = ['']",
            "family-processes = 0",
            "[guests]\nmemory = 1",
            "[resources]\nfiles = 'MV'",
            "[resources]\ndevices = 'rb'",
            "[resources]\ncopy = ['/']",
            "[resources]\ncopy = ['usr/share']",
            "[resources]\ncopy = ['/usr/../etc']",
            "[resources]\nmove = ['/dev/shm']",
            "[resources]\nmove = ''",
            "[resources]\nsockets = 'GR'",
            "[guests]\nmemory-mib = 3",
            "[guests]\nmemory-mib = 9223372036854775807",
            "[guests]\nthreads = 0",
            "[guests]\nat-once = 0",
            "[guests]\ncpu-weight = 10001",
        ] {
            assert!(load(toml, &[]).is_err(), "{toml}");
        }
    }
}
