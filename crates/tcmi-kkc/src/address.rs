//! Addresses as the control filesystem writes them: `tcp:HOST:PORT`.

use std::fmt;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::str::FromStr;

/// A v4 address, a v6 address in brackets, or a name; and a port.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Address {
    host: String,
    port: u16,
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("'{}' is not tcp:HOST:PORT", .0.escape_default())]
pub struct AddressError(String);

const HOST_BYTES_MAX: usize = 253;

impl FromStr for Address {
    type Err = AddressError;
    fn from_str(s: &str) -> Result<Self, AddressError> {
        let wrong = || AddressError(s.chars().take(80).collect());
        let rest = s.strip_prefix("tcp:").ok_or_else(wrong)?;
        let (host, port) = match rest.strip_prefix('[') {
            Some(v6) => {
                let (host, port) = v6.split_once("]:").ok_or_else(wrong)?;
                host.split('%')
                    .next()
                    .and_then(|h| h.parse::<std::net::Ipv6Addr>().ok())
                    .ok_or_else(wrong)?;
                (host, port)
            }
            None => rest.split_once(':').ok_or_else(wrong)?,
        };
        let host_fits = |c: char| c.is_ascii_alphanumeric() || "-._:%".contains(c);
        let digits = !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit());
        if host.is_empty() || host.len() > HOST_BYTES_MAX || !host.chars().all(host_fits) || !digits
        {
            return Err(wrong());
        }
        Ok(Self { host: host.to_owned(), port: port.parse().map_err(|_| wrong())? })
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host.contains(':') {
            true => write!(f, "tcp:[{}]:{}", self.host, self.port),
            false => write!(f, "tcp:{}:{}", self.host, self.port),
        }
    }
}

impl Address {
    /// At least one, or an error that says why.
    pub(crate) fn resolve(&self) -> io::Result<Vec<SocketAddr>> {
        let found: Vec<_> = (self.host.as_str(), self.port).to_socket_addrs()?.collect();
        match found.is_empty() {
            true => Err(io::Error::new(io::ErrorKind::NotFound, "the name has no address")),
            false => Ok(found),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_read_and_write_alike() {
        for s in ["tcp:127.0.0.1:7770", "tcp:[::1]:7770", "tcp:home.example:1", "tcp:[fe80::1%2]:9"]
        {
            assert_eq!(s.parse::<Address>().unwrap().to_string(), s);
        }
    }

    #[test]
    fn what_is_not_an_address_is_refused() {
        for s in [
            "",
            "tcp:",
            "tcp:a",
            "tcp::1",
            "tcp:a:",
            "tcp:a:65536",
            "tcp:a:-1",
            "tcp:a:+1",
            "udp:a:1",
            "tcp:::1:7770",
            "tcp:[::1]7770",
            "tcp:[::1:7770",
            "tcp:[nope]:1",
            "tcp:a b:1",
            "tcp:a\n:1",
        ] {
            assert!(s.parse::<Address>().is_err(), "{s:?}");
        }
    }

    #[test]
    fn literals_resolve_to_themselves() {
        let a: Address = "tcp:[::1]:7".parse().unwrap();
        assert_eq!(a.resolve().unwrap(), ["[::1]:7".parse::<SocketAddr>().unwrap()]);
    }
}
