//! From a TCP connection to keys: the handshake, one message each way, extraction.
//!
//! rustls is fed one record at a time and never more, so that nothing that the
//! peer sends after the first messages is left in its buffers when the keys are
//! taken out: the listener may use a stream the moment it has answered.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::Instant;

use rustls::client::AlwaysResolvesClientRawPublicKeys;
use rustls::client::Resumption;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::ServerName;
use rustls::server::{AlwaysResolvesServerRawPublicKeys, NoServerSessionStorage};
use rustls::{
    AlertDescription, CipherSuite, ClientConfig, ClientConnection, Connection,
    ConnectionTrafficSecrets, Error as TlsError, ServerConfig, ServerConnection, version::TLS13,
};
use tcmi_call::record::DirectionKeys;

use crate::codec::{self, CodecError, Frame, HEADER_BYTES};
use crate::identity::{Identity, PeerKey};
use crate::limits::OPENING_BYTES_MAX;
use crate::message::StreamKind;
use crate::pins::{PinVerifier, Pins};
use crate::socket::{recv_some, send_some};

#[derive(Debug, thiserror::Error)]
pub(crate) enum OpenError {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("no answer in time")]
    Timeout,
    #[error("closed during the handshake")]
    Closed,
    #[error("its key is not pinned here")]
    WrongKey,
    #[error("our key is not trusted there")]
    NotTrusted,
    #[error("not a peer: {0}")]
    Tls(TlsError),
    #[error("{0}")]
    Codec(#[from] CodecError),
    #[error("sent more than its first message")]
    TooEager,
    #[error("cipher {0:?} is not the one of its kind")]
    Cipher(Option<CipherSuite>),
    #[error("{0}")]
    Refused(String),
}

fn from_io(e: io::Error) -> OpenError {
    if let Some(tls) = e.get_ref().and_then(|inner| inner.downcast_ref::<TlsError>()) {
        return from_tls(tls.clone());
    }
    match e.kind() {
        io::ErrorKind::TimedOut => OpenError::Timeout,
        io::ErrorKind::UnexpectedEof
        | io::ErrorKind::ConnectionReset
        | io::ErrorKind::BrokenPipe => OpenError::Closed,
        _ => OpenError::Io(e),
    }
}

fn from_tls(e: TlsError) -> OpenError {
    use rustls::CertificateError::ApplicationVerificationFailure as NotPinned;
    match e {
        TlsError::InvalidCertificate(NotPinned) => OpenError::WrongKey,
        TlsError::AlertReceived(AlertDescription::AccessDenied) => OpenError::NotTrusted,
        other => OpenError::Tls(other),
    }
}

fn suite_of(kind: StreamKind) -> CipherSuite {
    match kind {
        StreamKind::Call => CipherSuite::TLS13_CHACHA20_POLY1305_SHA256,
        StreamKind::Bulk => CipherSuite::TLS13_AES_128_GCM_SHA256,
    }
}

fn provider(kinds: &[StreamKind]) -> Arc<CryptoProvider> {
    let mut provider = rustls::crypto::ring::default_provider();
    provider.cipher_suites.retain(|s| kinds.iter().any(|&k| suite_of(k) == s.suite()));
    Arc::new(provider)
}

/// For one peer, one cipher.
pub(crate) fn dialer(identity: &Identity, peer: PeerKey, kind: StreamKind) -> Arc<ClientConfig> {
    let mut config = ClientConfig::builder_with_provider(provider(&[kind]))
        .with_protocol_versions(&[&TLS13])
        .expect("both suites are TLS 1.3")
        .dangerous()
        .with_custom_certificate_verifier(PinVerifier::new(Pins::only(peer)))
        .with_client_cert_resolver(Arc::new(AlwaysResolvesClientRawPublicKeys::new(
            identity.certified(),
        )));
    config.enable_secret_extraction = true;
    config.enable_sni = false;
    config.resumption = Resumption::disabled();
    Arc::new(config)
}

pub(crate) fn listener(identity: &Identity, pins: Pins) -> Arc<ServerConfig> {
    let mut config = ServerConfig::builder_with_provider(provider(&StreamKind::ALL))
        .with_protocol_versions(&[&TLS13])
        .expect("both suites are TLS 1.3")
        .with_client_cert_verifier(PinVerifier::new(pins))
        .with_cert_resolver(Arc::new(AlwaysResolvesServerRawPublicKeys::new(identity.certified())));
    config.enable_secret_extraction = true;
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    Arc::new(config)
}

/// Reads that end where a record ends.
struct RecordAtATime<'a> {
    tcp: &'a TcpStream,
    until: Instant,
    head: [u8; 5],
    head_have: usize,
    body_left: usize,
}

impl Read for RecordAtATime<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if self.body_left == 0 && self.head_have == self.head.len() {
            self.head_have = 0;
        }
        let want = match self.body_left {
            0 => self.head.len() - self.head_have,
            left => left,
        };
        let want = want.min(buf.len());
        let got = recv_some(self.tcp, &mut buf[..want], self.until)?;
        if self.body_left > 0 {
            self.body_left -= got;
        } else {
            self.head[self.head_have..][..got].copy_from_slice(&buf[..got]);
            self.head_have += got;
            if self.head_have == self.head.len() {
                self.body_left = usize::from(u16::from_be_bytes([self.head[3], self.head[4]]));
            }
        }
        Ok(got)
    }
}

impl Write for RecordAtATime<'_> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        send_some(self.tcp, buf, self.until)
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Keys of both directions, as this end uses them.
pub(crate) struct Keys {
    pub tx: DirectionKeys,
    pub rx: DirectionKeys,
    pub exported: ExportedKeys,
}

/// For what the ends of a link say to each other beside it: fresh with each link, and no other
/// node's. No Debug: they are in no log.
#[derive(Clone, Copy)]
pub struct ExportedKeys {
    pub sent: [u8; 32],
    pub received: [u8; 32],
}

const EXPORTER_LABEL: &[u8] = b"EXPORTER-tcmi-peer-v1";

/// An authenticated connection in its first exchange of messages.
pub(crate) struct Handshake<'a> {
    conn: Connection,
    io: RecordAtATime<'a>,
}

impl<'a> Handshake<'a> {
    pub fn dial(
        tcp: &'a TcpStream,
        config: Arc<ClientConfig>,
        until: Instant,
    ) -> Result<Self, OpenError> {
        // Not sent: a peer is its key, and names mean nothing here.
        let name = ServerName::try_from("tcmi").expect("a valid name");
        let conn = ClientConnection::new(config, name).map_err(from_tls)?;
        Self::run(conn.into(), tcp, until)
    }

    pub fn accept(
        tcp: &'a TcpStream,
        config: Arc<ServerConfig>,
        until: Instant,
    ) -> Result<Self, OpenError> {
        let conn = ServerConnection::new(config).map_err(from_tls)?;
        Self::run(conn.into(), tcp, until)
    }

    fn run(conn: Connection, tcp: &'a TcpStream, until: Instant) -> Result<Self, OpenError> {
        let io = RecordAtATime { tcp, until, head: [0; 5], head_have: 0, body_left: 0 };
        let mut this = Self { conn, io };
        while this.conn.is_handshaking() {
            this.conn.complete_io(&mut this.io).map_err(from_io)?;
        }
        Ok(this)
    }

    pub fn peer(&self) -> Result<PeerKey, OpenError> {
        let spki = self.conn.peer_certificates().and_then(|c| c.first());
        spki.and_then(|der| PeerKey::from_spki(der)).ok_or(OpenError::WrongKey)
    }

    pub fn check_cipher(&self, kind: StreamKind) -> Result<(), OpenError> {
        match self.conn.negotiated_cipher_suite().map(|s| s.suite()) {
            Some(suite) if suite == suite_of(kind) => Ok(()),
            other => Err(OpenError::Cipher(other)),
        }
    }

    pub fn send(&mut self, frame: &[u8]) -> Result<(), OpenError> {
        self.conn.writer().write_all(frame).map_err(from_io)?;
        while self.conn.wants_write() {
            self.conn.write_tls(&mut self.io).map_err(from_io)?;
        }
        Ok(())
    }

    pub fn receive(&mut self) -> Result<Frame, OpenError> {
        let mut head = [0; HEADER_BYTES];
        self.read_exact(&mut head)?;
        let header = codec::decode_header(&head, OPENING_BYTES_MAX)?;
        let mut body = vec![0; header.body_len];
        self.read_exact(&mut body)?;
        Ok(Frame { kind: header.kind, body })
    }

    fn read_exact(&mut self, mut out: &mut [u8]) -> Result<(), OpenError> {
        while !out.is_empty() {
            match self.conn.reader().read(out) {
                Ok(0) => return Err(OpenError::Closed),
                Ok(n) => out = &mut out[n..],
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    if self.conn.complete_io(&mut self.io).map_err(from_io)? == (0, 0) {
                        return Err(OpenError::Closed);
                    }
                }
                Err(e) => return Err(from_io(e)),
            }
        }
        Ok(())
    }

    /// Ends rustls's part. Nothing may have arrived that was not asked for.
    pub fn into_keys(mut self) -> Result<Keys, OpenError> {
        let state = self.conn.process_new_packets().map_err(from_tls)?;
        if state.plaintext_bytes_to_read() > 0 || self.io.body_left > 0 {
            return Err(OpenError::TooEager);
        }
        let exported = export(&self.conn)?;
        let secrets = self.conn.dangerous_extract_secrets().map_err(from_tls)?;
        Ok(Keys { tx: direction(secrets.tx)?, rx: direction(secrets.rx)?, exported })
    }
}

fn export(conn: &Connection) -> Result<ExportedKeys, OpenError> {
    let key = |of: &[u8]| conn.export_keying_material([0; 32], EXPORTER_LABEL, Some(of));
    let of_dialer = key(b"dialer").map_err(from_tls)?;
    let of_listener = key(b"listener").map_err(from_tls)?;
    Ok(match conn {
        Connection::Client(_) => ExportedKeys { sent: of_dialer, received: of_listener },
        Connection::Server(_) => ExportedKeys { sent: of_listener, received: of_dialer },
    })
}

fn direction((seq, secrets): (u64, ConnectionTrafficSecrets)) -> Result<DirectionKeys, OpenError> {
    let (key, iv) = match &secrets {
        ConnectionTrafficSecrets::Aes128Gcm { key, iv } => (key, iv),
        ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv } => (key, iv),
        _ => return Err(OpenError::Cipher(None)),
    };
    let mut keys = DirectionKeys { key: [0; 32], iv: [0; 12], pad: 0, seq };
    keys.key[..key.as_ref().len()].copy_from_slice(key.as_ref());
    keys.iv.copy_from_slice(iv.as_ref());
    Ok(keys)
}
