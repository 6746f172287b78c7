//! Records made by the kernel (kTLS), the same as ours.

use std::io;
use std::os::fd::AsFd;

use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::sockopt::{TcpTlsTx, TcpUlp, TlsCryptoInfo};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, setsockopt, socket};
use tcmi_call::record::DirectionKeys;

/// From its record number `seq` on, the kernel protects what is written to a socket. Err: nothing
/// has changed for who writes records himself.
pub fn protect_sent(socket: &impl AsFd, keys: &DirectionKeys, seq: u64) -> io::Result<()> {
    let mut info = libc::tls12_crypto_info_aes_gcm_128 {
        info: libc::tls_crypto_info {
            version: libc::TLS_1_3_VERSION,
            cipher_type: libc::TLS_CIPHER_AES_GCM_128,
        },
        iv: [0; 8],
        key: [0; 16],
        salt: [0; 4],
        rec_seq: seq.to_be_bytes(),
    };
    info.key.copy_from_slice(&keys.key[..16]);
    info.salt.copy_from_slice(&keys.iv[..4]);
    info.iv.copy_from_slice(&keys.iv[4..]);
    setsockopt(socket, TcpUlp::default(), b"tls")?;
    Ok(setsockopt(socket, TcpTlsTx, &TlsCryptoInfo::Aes128Gcm(info))?)
}

/// Whether this kernel has TLS. Loads it where it is a module and we may.
pub fn kernel_protects() -> bool {
    let flags = SockFlag::SOCK_CLOEXEC;
    let Ok(probe) = socket(AddressFamily::Inet, SockType::Stream, flags, None) else {
        return false;
    };
    // It is for connected sockets alone, but is looked for first.
    setsockopt(&probe, TcpUlp::default(), b"tls") == Err(Errno::ENOTCONN)
}
