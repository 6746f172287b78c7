//! What may be written to a control file, parsed from its bytes.
//!
//! Strict: a value is what the grammar says, with at most one newline after it,
//! or it is [`GrammarError`] (EINVAL). Words are separated by single spaces.

use std::fmt;
use std::net::Ipv6Addr;
use std::str::FromStr;

use crate::limits::{
    CONTROL_WRITE_BYTES_MAX, HOST_NAME_BYTES_MAX, KEY_TEXT_BYTES_MAX, NODE_NAME_BYTES_MAX,
};

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GrammarError {
    #[error("empty")]
    Empty,
    #[error("longer than {CONTROL_WRITE_BYTES_MAX} bytes")]
    TooLong,
    #[error("not printable ASCII")]
    NotText,
    #[error("more than one line")]
    SeveralLines,
    #[error("expected {0}")]
    Expected(&'static str),
}

/// A process id: 1 to `i32::MAX`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Pid(i32);

impl Pid {
    pub fn new(raw: i32) -> Option<Self> {
        (raw > 0).then_some(Self(raw))
    }
    pub fn raw(self) -> i32 {
        self.0
    }
}

impl fmt::Display for Pid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for Pid {
    type Err = GrammarError;
    fn from_str(s: &str) -> Result<Self, GrammarError> {
        let raw = decimal(s).and_then(|n| i32::try_from(n).ok());
        raw.and_then(Pid::new).ok_or(GrammarError::Expected("a process id"))
    }
}

/// What a node calls itself. Never all digits, so that it cannot be taken for a number.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeName(String);

impl NodeName {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Names that a directory of nodes uses for itself.
const NODE_NAMES_TAKEN: [&str; 1] = ["count"];

impl FromStr for NodeName {
    type Err = GrammarError;
    fn from_str(s: &str) -> Result<Self, GrammarError> {
        let legal = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
        let first_is_legal = s.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric());
        let ok = first_is_legal
            && s.len() <= NODE_NAME_BYTES_MAX
            && s.bytes().all(legal)
            && !s.bytes().all(|b| b.is_ascii_digit())
            && !NODE_NAMES_TAKEN.contains(&s);
        ok.then(|| Self(s.to_owned())).ok_or(GrammarError::Expected("a node name"))
    }
}

impl fmt::Display for NodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// NODE in the grammar: its number or its name.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum NodeRef {
    Number(u64),
    Name(NodeName),
}

impl FromStr for NodeRef {
    type Err = GrammarError;
    fn from_str(s: &str) -> Result<Self, GrammarError> {
        if let Some(number) = decimal(s) {
            return Ok(Self::Number(number));
        }
        s.parse().map(Self::Name).map_err(|_| GrammarError::Expected("a node number or name"))
    }
}

impl fmt::Display for NodeRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(number) => number.fmt(f),
            Self::Name(name) => name.fmt(f),
        }
    }
}

/// `tcp:HOST:PORT`; an IPv6 address stands in brackets.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Address {
    /// Without brackets.
    pub host: String,
    /// 0 asks for any free port, which only a listener may.
    pub port: u16,
}

impl FromStr for Address {
    type Err = GrammarError;
    fn from_str(s: &str) -> Result<Self, GrammarError> {
        let wrong = GrammarError::Expected("tcp:ADDR:PORT");
        let parts = s.strip_prefix("tcp:").and_then(|rest| rest.rsplit_once(':'));
        let Some((host, port)) = parts else { return Err(wrong) };
        let Some(port) = decimal(port).and_then(|n| u16::try_from(n).ok()) else {
            return Err(wrong);
        };
        let bracketed = host.strip_prefix('[').and_then(|h| h.strip_suffix(']'));
        let host = match bracketed {
            Some(v6) if v6.parse::<Ipv6Addr>().is_ok() => v6,
            None if is_host_name(host) => host,
            _ => return Err(wrong),
        };
        Ok(Self { host: host.to_owned(), port })
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "tcp:[{}]:{}", self.host, self.port)
        } else {
            write!(f, "tcp:{}:{}", self.host, self.port)
        }
    }
}

fn is_host_name(s: &str) -> bool {
    let label = |l: &str| {
        !l.is_empty()
            && !l.starts_with('-')
            && l.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
    };
    s.len() <= HOST_NAME_BYTES_MAX && s.split('.').all(label)
}

/// A public key as text. Only its shape is checked here; links know its meaning.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyText(String);

impl KeyText {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for KeyText {
    type Err = GrammarError;
    fn from_str(s: &str) -> Result<Self, GrammarError> {
        let first_is_legal = s.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric());
        let ok = first_is_legal
            && s.len() <= KEY_TEXT_BYTES_MAX
            && s.bytes().all(|b| b.is_ascii_graphic());
        ok.then(|| Self(s.to_owned())).ok_or(GrammarError::Expected("a public key"))
    }
}

impl fmt::Display for KeyText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TrustChange {
    Add(KeyText),
    Remove(KeyText),
}

/// A control file's command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    Listen(Address),
    /// All of them or none.
    Trust(Vec<TrustChange>),
    Connect {
        address: Address,
        key: KeyText,
    },
    Emigrate {
        pid: Pid,
        node: NodeRef,
        /// With all processes below it.
        tree: bool,
    },
    MigrateHome(Pid),
    /// Into the file of this absolute name.
    Checkpoint {
        pid: Pid,
        path: String,
    },
    Explain {
        pid: Pid,
        node: Option<NodeRef>,
        /// With all processes below it.
        tree: bool,
    },
    /// `1` written to a file that has one meaning: `stop`, `kill`, `migrate-home-all`.
    Go,
}

/// How a line of `explain` begins that tells what an image of the process could not hold.
pub const NOT_IN_IMAGES: &str = "no image because of: ";

/// Which of the forms a file takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// `tcp:ADDR:PORT`
    Address,
    /// Lines of `KEY` or `-KEY`
    KeyLines,
    /// `tcp:ADDR:PORT KEY`
    AddressKey,
    /// `PID NODE`
    PidNode,
    /// `PID NODE` or `PID NODE tree`
    PidNodeTree,
    /// `PID`
    Pid,
    /// `PID PATH`
    PidPath,
    /// `PID`, `PID NODE` or `PID NODE tree`
    PidMaybeNode,
    /// `1`
    One,
}

impl Command {
    /// Ok: all of `bytes` is one command of this form. Err: EINVAL, and nothing is done.
    pub fn parse(form: Form, bytes: &[u8]) -> Result<Self, GrammarError> {
        let text = text(bytes)?;
        if form == Form::KeyLines {
            return text.split('\n').map(trust_change).collect::<Result<_, _>>().map(Self::Trust);
        }
        if text.contains('\n') {
            return Err(GrammarError::SeveralLines);
        }
        let pair = text.split_once(' ');
        match form {
            Form::Address => text.parse().map(Self::Listen),
            Form::AddressKey => {
                let (address, key) = pair.ok_or(GrammarError::Expected("tcp:ADDR:PORT KEY"))?;
                let address: Address = address.parse()?;
                if address.port == 0 {
                    return Err(GrammarError::Expected("a port to connect to"));
                }
                Ok(Self::Connect { address, key: key.parse()? })
            }
            Form::PidNode => {
                let (pid, node) = pair.ok_or(GrammarError::Expected("PID NODE"))?;
                Ok(Self::Emigrate { pid: pid.parse()?, node: node.parse()?, tree: false })
            }
            Form::PidNodeTree => {
                let (pid, rest) = pair.ok_or(GrammarError::Expected("PID NODE"))?;
                let (node, tree) = node_and_tree(rest);
                Ok(Self::Emigrate { pid: pid.parse()?, node: node.parse()?, tree })
            }
            Form::Pid => text.parse().map(Self::MigrateHome),
            Form::PidPath => {
                let (pid, path) = pair.ok_or(GrammarError::Expected("PID PATH"))?;
                if !path.starts_with('/') || path.ends_with('/') {
                    return Err(GrammarError::Expected("an absolute file name"));
                }
                Ok(Self::Checkpoint { pid: pid.parse()?, path: path.to_owned() })
            }
            Form::PidMaybeNode => match pair {
                Some((pid, rest)) => {
                    let (node, tree) = node_and_tree(rest);
                    Ok(Self::Explain { pid: pid.parse()?, node: Some(node.parse()?), tree })
                }
                None => Ok(Self::Explain { pid: text.parse()?, node: None, tree: false }),
            },
            Form::One if text == "1" => Ok(Self::Go),
            Form::One => Err(GrammarError::Expected("1")),
            Form::KeyLines => Err(GrammarError::Expected("KEY or -KEY")),
        }
    }
}

/// A node that is called `tree` stands alone.
fn node_and_tree(rest: &str) -> (&str, bool) {
    match rest.strip_suffix(" tree") {
        Some(node) => (node, true),
        None => (rest, false),
    }
}

fn trust_change(line: &str) -> Result<TrustChange, GrammarError> {
    match line.strip_prefix('-') {
        Some(key) => key.parse().map(TrustChange::Remove),
        None => line.parse().map(TrustChange::Add),
    }
}

/// Printable ASCII without its last newline.
fn text(bytes: &[u8]) -> Result<&str, GrammarError> {
    if bytes.len() > CONTROL_WRITE_BYTES_MAX {
        return Err(GrammarError::TooLong);
    }
    let line = bytes.strip_suffix(b"\n").unwrap_or(bytes);
    if line.is_empty() {
        return Err(GrammarError::Empty);
    }
    if !line.iter().all(|b| matches!(b, b' '..=b'~' | b'\n')) {
        return Err(GrammarError::NotText);
    }
    std::str::from_utf8(line).map_err(|_| GrammarError::NotText)
}

/// Digits only: no sign, no leading zero, and it fits.
pub fn decimal(s: &str) -> Option<u64> {
    let canonical = s == "0" || !s.starts_with('0');
    let digits = !s.is_empty() && s.bytes().all(|b| b.is_ascii_digit());
    if canonical && digits { s.parse().ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const FORMS: [Form; 9] = [
        Form::Address,
        Form::KeyLines,
        Form::AddressKey,
        Form::PidNode,
        Form::PidNodeTree,
        Form::Pid,
        Form::PidPath,
        Form::PidMaybeNode,
        Form::One,
    ];

    fn pid(raw: i32) -> Pid {
        Pid::new(raw).unwrap()
    }

    #[test]
    fn each_form_takes_its_example() {
        let parse = |form, s: &str| Command::parse(form, s.as_bytes()).unwrap();
        let key: KeyText = "ed25519:AbC+/=".parse().unwrap();
        let v6 = Address { host: "::1".into(), port: 7770 };
        assert_eq!(parse(Form::Address, "tcp:[::1]:7770\n"), Command::Listen(v6));
        assert_eq!(
            parse(Form::AddressKey, "tcp:home.example:7770 ed25519:AbC+/="),
            Command::Connect {
                address: Address { host: "home.example".into(), port: 7770 },
                key: key.clone()
            }
        );
        assert_eq!(
            parse(Form::KeyLines, "ed25519:AbC+/=\n-ed25519:AbC+/=\n"),
            Command::Trust(vec![TrustChange::Add(key.clone()), TrustChange::Remove(key)])
        );
        assert_eq!(
            parse(Form::PidNode, "12 desk\n"),
            Command::Emigrate { pid: pid(12), node: "desk".parse().unwrap(), tree: false }
        );
        for (text, name, tree) in [
            ("12 desk", "desk", false),
            ("12 desk tree\n", "desk", true),
            ("12 tree", "tree", false),
        ] {
            let node = name.parse().unwrap();
            let command = Command::Emigrate { pid: pid(12), node, tree };
            assert_eq!(parse(Form::PidNodeTree, text), command);
        }
        assert_eq!(
            parse(Form::PidMaybeNode, "12 3 tree"),
            Command::Explain { pid: pid(12), node: Some(NodeRef::Number(3)), tree: true }
        );
        assert_eq!(
            parse(Form::PidMaybeNode, "12 3"),
            Command::Explain { pid: pid(12), node: Some(NodeRef::Number(3)), tree: false }
        );
        assert_eq!(
            parse(Form::PidMaybeNode, "12"),
            Command::Explain { pid: pid(12), node: None, tree: false }
        );
        assert_eq!(parse(Form::Pid, "2147483647"), Command::MigrateHome(pid(i32::MAX)));
        assert_eq!(
            parse(Form::PidPath, "12 /a file\n"),
            Command::Checkpoint { pid: pid(12), path: "/a file".to_owned() }
        );
        assert_eq!(parse(Form::One, "1\n"), Command::Go);
    }

    #[test]
    fn what_is_off_the_grammar_is_refused() {
        let huge = vec![b'7'; 1 << 20];
        for form in FORMS {
            for bytes in [
                b"".as_slice(),
                b"\n",
                b" ",
                b"1\n\n",
                b"1 \n",
                b" 1",
                b"1\0",
                b"\xff\xfe",
                b"1\r\n",
                b"1\t2",
                &huge,
            ] {
                assert!(
                    Command::parse(form, bytes).is_err(),
                    "{form:?} took {:?}",
                    String::from_utf8_lossy(&bytes[..bytes.len().min(40)])
                );
            }
        }
    }

    #[test]
    fn numbers_are_canonical_and_fit() {
        for text in
            ["0", "-1", "+1", "01", "1.0", "1e3", "0x10", "2147483648", "18446744073709551616", "x"]
        {
            assert!(Command::parse(Form::Pid, text.as_bytes()).is_err(), "{text}");
            let with_node = format!("{text} desk");
            assert!(Command::parse(Form::PidNode, with_node.as_bytes()).is_err(), "{text}");
        }
        for text in ["12", "12 ", "12  3", "12 3 4", "12 desk extra", "12 18446744073709551616"] {
            assert!(Command::parse(Form::PidNode, text.as_bytes()).is_err(), "{text}");
            assert!(Command::parse(Form::PidNodeTree, text.as_bytes()).is_err(), "{text}");
        }
        for text in ["12 desk  tree", "12 desk tree tree", "12 desk trees", "12  tree"] {
            assert!(Command::parse(Form::PidNodeTree, text.as_bytes()).is_err(), "{text}");
        }
        assert!(Command::parse(Form::PidNode, b"12 desk tree").is_err());
    }

    #[test]
    fn addresses_are_whole() {
        for text in [
            "tcp:",
            "tcp:1.2.3.4",
            "udp:1.2.3.4:5",
            "tcp::5",
            "tcp:1.2.3.4:65536",
            "tcp:::1:5",
            "tcp:[::1:5",
            "tcp:[x]:5",
            "tcp:-h:5",
            "tcp:a..b:5",
            "tcp:a b:5",
            "1.2.3.4:5",
        ] {
            assert!(Command::parse(Form::Address, text.as_bytes()).is_err(), "{text}");
        }
        assert!(Command::parse(Form::Address, b"tcp:127.0.0.1:0").is_ok());
        assert!(Command::parse(Form::AddressKey, b"tcp:127.0.0.1:0 key").is_err());
    }

    #[test]
    fn a_name_is_not_a_number_a_path_or_a_file_of_the_tree() {
        let long = "a".repeat(NODE_NAME_BYTES_MAX + 1);
        for name in ["", "12", "..", ".a", "a/b", "count", "-a", "a b", long.as_str()] {
            assert!(name.parse::<NodeName>().is_err(), "{name}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            for form in FORMS {
                if Command::parse(form, &bytes).is_ok() {
                    prop_assert!(bytes.is_ascii());
                }
            }
        }

        #[test]
        fn what_is_printed_is_read_back(
            raw in 1..=i32::MAX,
            name in "[a-zA-Z][a-zA-Z0-9._-]{0,63}",
            host in "[a-z][a-z0-9-]{0,20}(\\.[a-z0-9]{1,10}){0,3}",
            port in 1..=u16::MAX,
        ) {
            prop_assume!(name != "count");
            let node = NodeRef::Name(name.parse().unwrap());
            let command = Command::Emigrate { pid: pid(raw), node: node.clone(), tree: false };
            let line = format!("{raw} {node}\n");
            prop_assert_eq!(Command::parse(Form::PidNode, line.as_bytes()), Ok(command));
            let address = Address { host, port };
            let listen = Command::parse(Form::Address, address.to_string().as_bytes());
            prop_assert_eq!(listen, Ok(Command::Listen(address)));
        }

        #[test]
        fn junk_after_a_command_is_refused(raw in 1..=i32::MAX, junk in "[ \\n]{1,3}[ -~]{1,5}") {
            let line = format!("{raw}{junk}");
            prop_assert!(Command::parse(Form::Pid, line.as_bytes()).is_err());
        }

        #[test]
        fn numbers_beyond_a_pid_are_refused(big in (i32::MAX as u128 + 1)..) {
            prop_assert!(Command::parse(Form::Pid, big.to_string().as_bytes()).is_err());
        }
    }
}
